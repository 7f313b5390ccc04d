"""The entropy slot: positions and levels become bytes, without loss."""

from dpcomp.codec.entropy.coder import EntropyCoder as EntropyCoder
from dpcomp.codec.entropy.fixed_width import FixedWidth as FixedWidth
from dpcomp.codec.entropy.range_coder import RangeCoder as RangeCoder

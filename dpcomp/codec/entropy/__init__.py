"""The entropy slot: from positions and levels to bytes and back."""

from dpcomp.codec.entropy.coder import EntropyCoder as EntropyCoder
from dpcomp.codec.entropy.fixed_width import FixedWidth as FixedWidth
from dpcomp.codec.entropy.range_coder import RangeCoder as RangeCoder

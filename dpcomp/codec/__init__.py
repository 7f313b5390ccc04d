"""The public side: what happens to released values on their way to the wire."""

from dpcomp.codec.allocate import Equal as Equal
from dpcomp.codec.codec import Codec as Codec
from dpcomp.codec.fixed_width import FixedWidth as FixedWidth
from dpcomp.codec.quantize import Uniform as Uniform
from dpcomp.codec.range_coder import RangeCoder as RangeCoder

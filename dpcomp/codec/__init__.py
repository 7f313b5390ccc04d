"""The codec: what is done to released values on their way to bytes (predict, sparsify, quantise, entropy-code)."""

from dpcomp.codec.allocation import Equal as Equal
from dpcomp.codec.allocation import FixedStep as FixedStep
from dpcomp.codec.allocation import Waterfill as Waterfill
from dpcomp.codec.codec import Codec as Codec
from dpcomp.codec.compressor import Compressor as Compressor
from dpcomp.codec.entropy import FixedWidth as FixedWidth
from dpcomp.codec.entropy import RangeCoder as RangeCoder
from dpcomp.codec.prediction import LastBroadcast as LastBroadcast
from dpcomp.codec.quantize import Dithered as Dithered
from dpcomp.codec.quantize import ExactGaussian as ExactGaussian
from dpcomp.codec.quantize import Float16 as Float16
from dpcomp.codec.quantize import Float32 as Float32
from dpcomp.codec.quantize import Nearest as Nearest
from dpcomp.codec.quantize import Rotated as Rotated
from dpcomp.codec.quantize import Sign as Sign
from dpcomp.codec.quantize import Stochastic as Stochastic
from dpcomp.codec.quantize import Ternary as Ternary
from dpcomp.codec.quantize import Uniform as Uniform

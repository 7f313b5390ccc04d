"""The quantise slot: values become whole numbers (levels) and side information, and are decoded from them."""

from dpcomp.codec.quantize.exact_gaussian import ExactGaussian as ExactGaussian
from dpcomp.codec.quantize.floats import Float16 as Float16
from dpcomp.codec.quantize.floats import Float32 as Float32
from dpcomp.codec.quantize.quantizer import Bounds as Bounds
from dpcomp.codec.quantize.quantizer import Quantizer as Quantizer
from dpcomp.codec.quantize.rotated import Rotated as Rotated
from dpcomp.codec.quantize.rounding import Dithered as Dithered
from dpcomp.codec.quantize.rounding import Nearest as Nearest
from dpcomp.codec.quantize.rounding import Stochastic as Stochastic
from dpcomp.codec.quantize.sign import Sign as Sign
from dpcomp.codec.quantize.ternary import Ternary as Ternary
from dpcomp.codec.quantize.uniform import Uniform as Uniform

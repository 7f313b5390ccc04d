"""The methods that the benchmark measures, a file each."""

from dpcomp.codec.codec import Codec
from dpcomp.codec.entropy import FixedWidth
from dpcomp.codec.quantize import Rotated
from dpcomp.lab.mean_estimation.method import Method
from dpcomp.lab.mean_estimation.methods.csgm import Csgm
from dpcomp.lab.mean_estimation.methods.dithered import DitheredUniform
from dpcomp.lab.mean_estimation.methods.eden import Eden
from dpcomp.lab.mean_estimation.methods.exact_noise import ExactNoise
from dpcomp.lab.mean_estimation.methods.gaussian import GaussianFloat32
from dpcomp.lab.mean_estimation.methods.noisy_sign import NoisySign
from dpcomp.lab.mean_estimation.methods.own_mask import OwnMask
from dpcomp.lab.mean_estimation.methods.rotated import RotatedBit
from dpcomp.lab.mean_estimation.methods.sqkr import Sqkr
from dpcomp.lab.mean_estimation.methods.top_k import TopKBehindNoise

_ROTATED = Codec(quantize=Rotated(), entropy=FixedWidth())

METHODS: tuple[Method, ...] = (
    GaussianFloat32(trust="nobody"),
    Eden(bits=4),
    Eden(bits=3),
    Eden(bits=2),
    Eden(bits=1),
    RotatedBit(),
    DitheredUniform(bits=4),
    TopKBehindNoise(fraction=0.1),
    NoisySign(),
    OwnMask(kept=100),
    OwnMask(kept=10),
    OwnMask(kept=2),
    OwnMask(kept=256, codec=_ROTATED),
    OwnMask(kept=64, codec=_ROTATED),
    NoisySign(kept=40),
    NoisySign(kept=8),
    Sqkr(),
    GaussianFloat32(trust="server"),
    ExactNoise(),
    Csgm(rate=1.0),
    Csgm(rate=0.4),
    Csgm(rate=0.2),
    Csgm(rate=0.1),
    Csgm(rate=0.05),
)

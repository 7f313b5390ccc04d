"""The private side: what happens to gradients before the release."""

from dpcomp.mechanism.clip import Clip as Clip
from dpcomp.mechanism.noise import Gaussian as Gaussian
from dpcomp.mechanism.sampling import Poisson as Poisson
from dpcomp.mechanism.unsafe import Unsafe as Unsafe
from dpcomp.mechanism.unsafe import unsafe as unsafe

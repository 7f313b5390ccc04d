"""The private side: what happens to gradients before the release, and what the release costs."""

from dpcomp.privacy.clip import Clip as Clip
from dpcomp.privacy.gaussian import Gaussian as Gaussian
from dpcomp.privacy.sampling import Poisson as Poisson
from dpcomp.privacy.unsafe import Unsafe as Unsafe
from dpcomp.privacy.unsafe import unsafe as unsafe

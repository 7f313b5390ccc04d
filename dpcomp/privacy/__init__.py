"""The private side: the mechanism that releases clipped and noised gradients, and the accounting of its cost."""

from dpcomp.privacy.clip import Clip as Clip
from dpcomp.privacy.gaussian import Gaussian as Gaussian
from dpcomp.privacy.sampling import Poisson as Poisson
from dpcomp.privacy.unsafe import Unsafe as Unsafe
from dpcomp.privacy.unsafe import unsafe as unsafe

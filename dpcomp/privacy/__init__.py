"""The private side: the mechanism that releases clipped and noised gradients, and the accounting of its cost.

`PRIVACY_RULES 19` in a docstring is rule 19 of docs/reference/privacy-rules.md, the page "Privacy rules" of the site;
`PRIVACY_RULES hazard 10` is hazard 10 of the same page. The page gives the reason of each and what enforces it.
"""

from dpcomp.privacy.adaptive_clip import AdaptiveClip as AdaptiveClip
from dpcomp.privacy.clip import Clip as Clip
from dpcomp.privacy.gaussian import Gaussian as Gaussian
from dpcomp.privacy.sampling import Poisson as Poisson
from dpcomp.privacy.unsafe import Unsafe as Unsafe
from dpcomp.privacy.unsafe import unsafe as unsafe

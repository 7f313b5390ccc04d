"""RandomK: a random support under a public key."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dpcomp.core.public_context import PublicContext
from dpcomp.core.support import Seeded, Support
from dpcomp.privacy.claim import Claim
from dpcomp.privacy.unit_gradients import Total, Units
from dpcomp.sparsify.fraction import Fraction


@dataclass(frozen=True)
class RandomK(Fraction):
    """Keep round(fraction·d) coordinates drawn uniformly under a public key, the same for all clients of a round.

    Both ends compute the support from the run's seed and the round, so positions cost no byte (the random mask of
    Konečný et al. 2016, §2, there with a mask for each client). In a mechanism, before `Clip`, each unit is restricted
    to the support: at the same ε the noise has only the share k/d of the energy that noise on all d coordinates has. In
    a codec it selects what is sent of a released update; what is dropped waits in the residual, if there is feedback.
    The values are not scaled by d/k, so the decoded update is the released one on the support and zero elsewhere.

    A coordinate is sent once in d/k rounds on average. `TopK` loses less of an update that is not mostly noise, and
    pays for the positions.

    **Privacy:** the support is public and independent of the data, so it reveals nothing. Before `Clip` it restricts
    every unit to the support, and the clip norm is spent there alone; after `Clip` it is valid, since dropping
    coordinates cannot raise a norm, but wastes √(d/k) of the clip (PRIVACY_RULES 2 and 3).

    Attributes:
        fraction: The density k/d, in (0, 1]; at least one coordinate is kept.

    Raises:
        TypeError: The fraction is not a number.
        ValueError: The fraction lies outside (0, 1].

    Examples:
        >>> import dpcomp as dp
        >>> pipeline = dp.Pipeline(mechanism=(dp.RandomK(0.1), dp.Clip(1.0), dp.Gaussian(1.0)))
        >>> context = dp.PublicContext(layout=dp.Layout.of(1000), mask_key=dp.PublicSeed(0).key("mask", 0))
        >>> dp.RandomK(0.1).public_support(context).count(1000)
        100
    """

    def claim(self, before: Claim, where: str) -> Claim:
        """Return the claim about the input: a public mask keeps a bound, and makes none."""
        self.refuse_after_noise(before, where)
        return before

    def public_support(self, context: PublicContext) -> Seeded:
        """Return the support of the round: round(fraction·d) coordinates drawn under the context's `mask_key`."""
        return Seeded(seed=context.mask_key, k=self.count(context.layout.size))

    def apply(self, value: "Units | Total", context: PublicContext) -> "Units | Total":
        """Restrict units, or their sum, to the round's support."""
        return value.restrict(self.public_support(context))

    def select(self, vector: Float[np.ndarray, "d"], candidates: Support, context: PublicContext) -> Support:
        """Return the round's support; it depends on the key alone, never on the values or the candidates.

        Args:
            vector: The (d,) vector to be sent; not used.
            candidates: Not used.
            context: Gives the mask key and the layout.

        Returns:
            The same as `public_support`.
        """
        return self.public_support(context)

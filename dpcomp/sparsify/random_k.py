"""RandomK: coordinates that a public key draws."""

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
    """A support of round(fraction·d) coordinates drawn from (run seed, round): the same for all clients.

    **Privacy:** the support is public and independent of the data, so it reveals nothing. Before `Clip` it
    shrinks every unit to the support, and the clip norm is spent there alone; after `Clip` it is valid, for
    dropping coordinates cannot raise a norm, but wastes √(d/k) of the clip (PRIVACY_RULES 2 and 3).
    """

    def claim(self, before: Claim, where: str) -> Claim:
        """A public mask keeps what is known."""
        self.refuse_after_noise(before, where)
        return before

    def public_support(self, context: PublicContext) -> Seeded:
        """Return the support of the round: round(fraction·d) coordinates drawn under the context's mask key."""
        return Seeded(seed=context.mask_key, k=self.count(context.layout.size))

    def apply(self, value: "Units | Total", context: PublicContext) -> "Units | Total":
        """Return the value on the round's support."""
        return value.restrict(self.public_support(context))

    def select(self, vector: Float[np.ndarray, "d"], candidates: Support, context: PublicContext) -> Support:
        """Return the round's support, in a codec: it looks at the key, never at the values."""
        return self.public_support(context)

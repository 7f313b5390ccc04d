"""RandomK: a random support under a public key."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from dpcomp.core.address import SERVER
from dpcomp.core.public_context import PublicContext
from dpcomp.core.support import Dealt, Listed, Seeded, Support
from dpcomp.privacy.claim import Claim
from dpcomp.privacy.units.unit_gradients import Total, Units
from dpcomp.sparsify.fraction import Fraction

Per = Literal["vector", "layer", "client"]


@dataclass(frozen=True)
class RandomK(Fraction):
    """Keep round(fraction·d) coordinates drawn uniformly under a public key: the same for a round's clients, or not.

    Both ends compute the support from the run's seed and the round, so positions cost no byte. In a mechanism, before
    `Clip`, each unit is restricted to the support: at the same ε the noise has only the share k/d of the energy that
    noise on all d coordinates has. In a codec it selects what is sent of a released update; what is dropped waits in
    the residual, if there is feedback. The values are not scaled by d/k, so the decoded update is the released one on
    the support and zero elsewhere.

    With `per="client"` each client of a round has a support of its own (the random mask of Konečný et al. 2016,
    section 2). The mean of n updates then has the error of masks of density up to nκ, for n times fewer bytes: beside
    the mean of dense updates its second moment exceeds that of the signal by the share (1 − κ)/(κn), where with a
    common support it is (1 − κ)/κ. The supports are dealt without replacement, as examples are in an epoch (random
    reshuffling): d // k supports of one permutation share no coordinate, those of a round are different ones, a client
    has each of them once in d // k rounds, and over any number of rounds all coordinates are sent about equally often.
    A broadcast is sent on the union of the supports, and names them.

    The gain over a common support is lost where clients differ: under label skew a coordinate is moved by the few
    clients that have it. What the draw of its batch adds to a client's update weighs 1/κ times as much as in the mean
    of dense updates, which averages it over n clients (the paper, section 8). With several local steps a client moves
    its coordinates as if all clients did, and the server divides by all of them.

    A coordinate is sent once in d/k rounds on average. `TopK` loses less of an update that is not mostly noise, and
    pays for the positions. Behind it, `Rotated()` needs one bit a value or a few, best where k is a multiple of 64.

    **Privacy:** the support is public and independent of the data, so it reveals nothing. Before `Clip` it restricts
    every unit to the support, and the clip norm is spent there alone; after `Clip` it is valid, since dropping
    coordinates cannot raise a norm, but wastes √(d/k) of the clip (PRIVACY_RULES 2 and 3). A trusted server's noise
    would stand on no client's own support, so `per="client"` is refused in its mechanism.

    Attributes:
        fraction: The density k/d, in (0, 1]; at least one coordinate is kept.
        per: What a support is drawn for: "vector" for one of all coordinates, the same for all clients of a round;
            "layer" for the same with round(fraction·d) coordinates of each layer; "client" for one a client.

    Raises:
        TypeError: The fraction is not a number.
        ValueError: The fraction lies outside (0, 1], or `per` is unknown.

    Examples:
        >>> import dpcomp as dp
        >>> pipeline = dp.Pipeline(mechanism=(dp.RandomK(0.1), dp.Clip(1.0), dp.Gaussian(1.0)))
        >>> context = dp.PublicContext(layout=dp.Layout.of(1000), mask_key=dp.PublicSeed(0).key("mask", 0))
        >>> dp.RandomK(0.1).public_support(context).count(1000)
        100
    """

    per: Per = "vector"

    def __post_init__(self):
        super().__post_init__()
        if self.per not in get_args(Per):
            raise ValueError(f"RandomK(per={self.per!r}): a support is drawn per 'vector', 'layer' or 'client'")

    @property
    def varies_by_client(self) -> bool:
        """Whether clients of a round have different supports."""
        return self.per == "client"

    def claim(self, before: Claim, where: str) -> Claim:
        """Return the claim about the input: a public mask keeps a bound, and makes none."""
        self.refuse_after_noise(before, where)
        return before

    def public_support(self, context: PublicContext) -> Seeded | Dealt | Listed:
        """Return the support of a message: round(fraction·d) coordinates drawn under the context's `mask_key`.

        With `per="client"` it is drawn under `run_key`, and that of a broadcast is of no place: it says by which
        permutations those of clients were dealt, whose union the broadcast has.
        """
        layout, key = context.layout, context.mask_key
        if self.per == "client":
            k = self.count(layout.size)
            places = () if context.client == SERVER else (_place(context.client, context.version, layout.size // k),)
            return Dealt(seed=context.run_key, k=k, places=places)
        if self.per == "layer":
            parts = [
                edge + Seeded(seed=(key + layer) % 2**256, k=self.count(size)).indices(size)
                for layer, (edge, size) in enumerate(zip(layout.edges, layout.sizes, strict=False))
            ]
            return Listed(np.concatenate(parts))
        return Seeded(seed=key, k=self.count(layout.size))

    def apply(self, value: "Units | Total", context: PublicContext) -> "Units | Total":
        """Restrict units, or their sum, to the round's support."""
        return value.restrict(self.public_support(context))

    def select(self, vector: Float[np.ndarray, "d"], candidates: Support, context: PublicContext) -> Support:
        """Return the message's support; it depends on no value.

        Args:
            vector: The (d,) vector to be sent; not used.
            candidates: The support of the update; with `per="client"` that of a broadcast, which is the union of the
                clients' supports. Else not used.
            context: Gives the keys, the version, the client and the layout.

        Returns:
            The same as `public_support`; for the broadcast of clients with own supports, the candidates.
        """
        return candidates if self.per == "client" and context.client == SERVER else self.public_support(context)


def _place(client: int, version: int, together: int) -> int:
    """Return the place that a client has at a version, of those to which `Dealt` deals.

    In as many versions as one permutation has places, a client has each of them once, in steps of about the golden
    section. Neighbours among clients have neighbouring places, so those of any number of clients, over any number of
    versions, cover the permutation about evenly: points of multiples of the golden section do (Niederreiter 1992,
    section 3.1). Clients beyond the first `together` are a permutation ahead.
    """
    lap, turn = divmod(version, together)
    ahead, first = divmod(client, together)
    return (lap + ahead) * together + (first + turn * _step(together)) % together


@lru_cache(maxsize=64)
def _step(together: int) -> int:
    """Return the number nearest to the golden section of a whole number that has no divisor in common with it."""
    step = (math.isqrt(5 * together**2) - together) // 2
    nearest = (step + sign * off for off in range(together + 1) for sign in (1, -1))
    return next(each for each in nearest if math.gcd(each, together) == 1)

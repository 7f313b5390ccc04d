"""Grant: what a permit is handed over as, where the releases are made in another process."""

from dataclasses import dataclass

from dpcomp.core.address import Address
from dpcomp.privacy.cost import Cost


@dataclass(frozen=True, kw_only=True)
class Grant:
    """The right of another process to make the releases that a permit was given for; `Permit.hand_over` makes it.

    Unlike a permit it can be pickled, and so be copied. So it gives no right to draw noise by itself: a `GrantedLedger`
    gives a permit for it, and for all copies of it once.

    Attributes:
        address: Where the noise may be drawn.
        cost: The cost of a single release, as it was charged.
        steps: The number of releases that were charged.
        token: What all copies of the grant have in common, and no other grant has.
    """

    address: Address
    cost: Cost
    steps: int
    token: str

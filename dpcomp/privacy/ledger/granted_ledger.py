"""GrantedLedger: the ledger of a worker process, which gives the permit that another process has charged for."""

from pathlib import Path

from dpcomp.core.address import Address
from dpcomp.core.errors import BudgetExhausted
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.ledger.grant import Grant
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.privacy.ledger.permit import Permit


class GrantedLedger(Ledger):
    """A ledger in memory that allows one charge: that of a grant, which was charged in another process already.

    Args:
        grant: What may be charged; None allows no charge.
        claims: A folder that all processes of this machine share. It keeps a file for each grant that was used, so that
            of all copies of a grant on this machine one gives a permit.
    """

    def __init__(self, grant: Grant | None, claims: Path):
        super().__init__()
        self._grant, self._claims = grant, claims

    @property
    def assumed(self) -> tuple[str, ...]:
        """What those who released assumed, in clauses; the ledger that was charged shall note it too."""
        return tuple(self._assumed)

    def charge(self, cost: Cost, address: Address, steps: int = 1) -> Permit:
        """Return the permit of the grant.

        Args:
            cost: The cost of a single release; it must be that of the grant.
            address: Where the releases are made; it must be that of the grant.
            steps: The number of releases; it must be that of the grant.

        Raises:
            BudgetExhausted: Another charge was granted or none, or the grant or a copy of it was used before. Nothing
                may be drawn.
        """
        granted = self._grant
        if granted is None or (cost, address, steps) != (granted.cost, granted.address, granted.steps):
            had = "no charge" if granted is None else f"{granted.steps} steps of {granted.cost} at {granted.address}"
            raise BudgetExhausted(
                f"the trainer charges {steps} steps of {cost} at {address}, but {had} was granted before the work was "
                "sent to this process: a trainer's `releases` must be the number that its `train` charges"
            )
        self._claims.mkdir(parents=True, exist_ok=True)
        try:
            (self._claims / granted.token).touch(exist_ok=False)
        except FileExistsError as error:
            raise BudgetExhausted(
                f"the grant for {address} was used before, and its noise may have been drawn: forfeit the round"
            ) from error
        return super().charge(cost, address, steps)

    def __repr__(self) -> str:
        return f"GrantedLedger({self._grant})"

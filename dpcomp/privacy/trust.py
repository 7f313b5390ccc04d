"""TrustModel: who may see values before the noise, and all that follows from it."""

from dataclasses import dataclass
from typing import Literal, get_args

Unit = Literal["example", "client"]
Trust = Literal["nobody", "server"]
End = Literal["client", "server"]


@dataclass(frozen=True, kw_only=True)
class TrustModel:
    """What one neighbour adds or removes, and who is trusted with values before the noise.

    The rest of the library asks the properties below instead of testing the pair:

    | unit | trust | noise_at | amplified | server_sees_clean | ledger_of |
    |---|---|---|---|---|---|
    | example | nobody | client, in every local step | yes | no | client |
    | client | nobody | client, on its whole update | no: the server sees who sends | no | client |
    | client | server | server, on the clipped sum | yes | yes | server |
    | example | server | – no guarantee – | | | |

    Args:
        unit: "example" or "client".
        trust: "nobody" or "server".

    Raises:
        ValueError: The unit or the trust is none of these.

    Example:
        >>> TrustModel(unit="client", trust="server").noise_at
        'server'
    """

    unit: Unit = "example"
    trust: Trust = "nobody"

    def __post_init__(self):
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit={self.unit!r}: what one neighbour adds or removes, 'example' or 'client'")
        if self.trust not in get_args(Trust):
            raise ValueError(f"trust={self.trust!r}: who sees values before the noise, 'nobody' or 'server'")

    @property
    def noise_at(self) -> End:
        """The end that draws the noise."""
        return "server" if self.trust == "server" else "client"

    @property
    def amplified(self) -> bool:
        """Whether sampling units lowers the cost: only where nobody untrusted sees who was sampled."""
        return self.trust == "server" or self.unit == "example"

    @property
    def server_sees_clean(self) -> bool:
        """Whether updates reach the server without noise, so that what it decodes was never released."""
        return self.trust == "server"

    @property
    def ledger_of(self) -> End:
        """Whose ledger is charged: each client's own, or the one at the server."""
        return self.noise_at

    @property
    def releases_local_steps(self) -> bool:
        """Whether every local step of a client is a release of its own."""
        return self.unit == "example"

    @property
    def units_per_release(self) -> int | None:
        """The most units that one release may hold; None for no limit."""
        return 1 if (self.unit, self.trust) == ("client", "nobody") else None

    @property
    def cohort_is_secret(self) -> bool:
        """Whether who takes part in a round must stay with the server, because amplification rests on it."""
        return self.unit == "client" and self.amplified

    @property
    def why_refused(self) -> str:
        """Why no mechanism has a guarantee under this model, and what to use; empty where one may."""
        if (self.unit, self.trust) == ("example", "server"):
            return (
                "unit='example' with trust='server': a client's clean local steps move its update by no bounded amount "
                "an example. Use unit='client', or trust='nobody' with the noise on the client"
            )
        return ""

    @property
    def words(self) -> str:
        """Who is trusted, as a guarantee prints it."""
        return (
            "for the released model; trusts the server and the channel" if self.server_sees_clean else "trusts nobody"
        )

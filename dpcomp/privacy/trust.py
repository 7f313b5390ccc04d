"""TrustModel: who may see values before the noise, and what follows for noise, sampling and ledger."""

from dataclasses import dataclass
from typing import Literal, get_args

Unit = Literal["example", "client"]
Trust = Literal["nobody", "server"]
End = Literal["client", "server"]
_UNITS, _TRUSTS = get_args(Unit), get_args(Trust)


@dataclass(frozen=True, kw_only=True)
class TrustModel:
    """A trust model: what one neighbour adds or removes, and who may see values before the noise.

    The rest of the library asks its properties instead of testing the pair of unit and trust:

    | unit | trust | noise_at | amplified | server_sees_clean | ledger_of |
    |---|---|---|---|---|---|
    | example | nobody | client, in every local step | yes | no | client |
    | client | nobody | client, on its whole update | no: the server sees who sends | no | client |
    | client | server | server, on the clipped sum | yes | yes | server |
    | example | server | – no guarantee – | | | |

    **Privacy:** example-level noise at the server has no guarantee, since a client's clean local steps move its update
    by no bounded amount an example. Sampling clients amplifies nothing if the server sees who sends (PRIVACY_RULES 21
    and 22).

    Args:
        unit: What one neighbour adds or removes, "example" or "client".
        trust: Who sees values before the noise, "nobody" or "server".

    Raises:
        ValueError: The unit or the trust is unknown.

    Examples:
        >>> TrustModel(unit="client", trust="server").noise_at
        'server'
    """

    unit: Unit = "example"
    trust: Trust = "nobody"

    def __post_init__(self):
        if self.unit not in _UNITS:
            raise ValueError(f"unit={self.unit!r}: what one neighbour adds or removes, 'example' or 'client'")
        if self.trust not in _TRUSTS:
            raise ValueError(f"trust={self.trust!r}: who sees values before the noise, 'nobody' or 'server'")

    @property
    def noise_at(self) -> End:
        """The end that draws the noise."""
        return "server" if self.trust == "server" else "client"

    @property
    def amplified(self) -> bool:
        """Whether sampling amplifies: only if nobody who is not trusted sees which units were sampled."""
        return self.trust == "server" or self.unit == "example"

    @property
    def server_sees_clean(self) -> bool:
        """Whether updates reach the server without noise; what it decodes is then not released."""
        return self.trust == "server"

    @property
    def ledger_of(self) -> End:
        """The end whose ledger is charged: that of each client, or that of the server."""
        return self.noise_at

    @property
    def releases_local_steps(self) -> bool:
        """Whether each local step of a client is a release."""
        return self.unit == "example"

    @property
    def units_per_release(self) -> int | None:
        """The most units that a release may hold; None for no limit."""
        return 1 if (self.unit, self.trust) == ("client", "nobody") else None

    @property
    def cohort_is_secret(self) -> bool:
        """Whether the server must keep secret which clients take part in a round, since amplification relies on it."""
        return self.unit == "client" and self.amplified

    @property
    def why_refused(self) -> str:
        """Why no mechanism has a guarantee under this model, and what to use instead; empty for the other models."""
        if (self.unit, self.trust) == ("example", "server"):
            return (
                "unit='example' with trust='server': a client's clean local steps move its update by no bounded amount "
                "an example. Use unit='client', or trust='nobody' with the noise on the client"
            )
        return ""

    @property
    def words(self) -> str:
        """Who is trusted, in the words that a guarantee prints."""
        return (
            "for the released model; trusts the server and the channel" if self.server_sees_clean else "trusts nobody"
        )

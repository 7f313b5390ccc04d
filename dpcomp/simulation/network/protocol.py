"""Variants of the protocol: the classes of server and client, and their policies."""

from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from dpcomp.federated.absence import AbsencePolicy, Keep
from dpcomp.federated.participant import Participant
from dpcomp.federated.server import Server
from dpcomp.federated.server.late import LatePolicy, Reject


@runtime_checkable
class ProtocolVariant(Protocol):
    """The class of the server, the class of the clients, and what they do with late updates and old residuals."""

    server: ClassVar[type[Server]]
    participant: ClassVar[type[Participant]]

    @property
    def late_policy(self) -> LatePolicy:
        """The server's policy for updates that arrive after their round."""
        ...

    @property
    def absence_policy(self) -> AbsencePolicy:
        """The clients' policy for the residual after rounds that they missed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Versioned:
    """The protocol: both ends check version, digest and link of every message.

    Args:
        late_policy: The server's policy for updates that arrive after their round: `Reject()` or `Weigh(max_age=...)`.
        absence_policy: The clients' policy for the residual after rounds that they missed: `Keep()`,
            `Decay(half_life)` or `Drop()`.
    """

    server: ClassVar[type[Server]] = Server
    participant: ClassVar[type[Participant]] = Participant
    late_policy: LatePolicy = field(default_factory=Reject)
    absence_policy: AbsencePolicy = field(default_factory=Keep)

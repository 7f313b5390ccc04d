"""What the two ends of a federation are, and what they do with what comes late or has been away."""

from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from dpcomp.federated.absence import AbsencePolicy, Keep
from dpcomp.federated.late import LatePolicy, Reject
from dpcomp.federated.participant import Participant
from dpcomp.federated.server import Server


@runtime_checkable
class Ends(Protocol):
    """The kinds of both, and their policies."""

    server: ClassVar[type[Server]]
    participant: ClassVar[type[Participant]]

    @property
    def late_policy(self) -> LatePolicy:
        """What a server does with late updates."""
        ...

    @property
    def absence_policy(self) -> AbsencePolicy:
        """What a client does with an old residual."""
        ...


@dataclass(frozen=True, kw_only=True)
class Versioned:
    """Ends that check version, digest and link of all that they hear."""

    server: ClassVar[type[Server]] = Server
    participant: ClassVar[type[Participant]] = Participant
    late_policy: LatePolicy = field(default_factory=Reject)
    absence_policy: AbsencePolicy = field(default_factory=Keep)

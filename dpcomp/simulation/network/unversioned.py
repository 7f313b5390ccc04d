"""Unversioned: the protocol without version checks, to study what the checks are worth.

Every message that arrives, early, late or twice, is read as the next one, against whatever its reader remembers.
Damaged bytes are still refused.
"""

import math
import os
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from dpcomp.core.address import SERVER
from dpcomp.core.errors import CorruptPayload, NotPrivate
from dpcomp.federated.absence import Keep
from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import BroadcastReceived, Event, Phase, Trained
from dpcomp.federated.server import Server
from dpcomp.federated.server.aggregation import Accepted, TrustedRelease
from dpcomp.federated.server.cohort import Cohort
from dpcomp.federated.server.late import LatePolicy, Reject
from dpcomp.federated.server.optimizers import ServerOptimizer, ServerRule
from dpcomp.wire import exchange
from dpcomp.wire.channel import Channel
from dpcomp.wire.headers import Payload, sealed, stated, unsealed
from dpcomp.wire.memory import ClientMemory, ServerMemory


class UnversionedServer(Server):
    """A server that reads any payload as its sender's next one; it cannot be trusted, and cannot restart.

    The arguments are those of `Server`.

    Raises:
        NotPrivate: The pipeline trusts the server. A repeated payload would be added twice: twice the sensitivity.
        ValueError: A folder is given.
    """

    def __init__(
        self,
        channel: Channel,
        memory: ServerMemory,
        model: Float32[np.ndarray, "d"],
        *,
        optimizer: ServerRule = ServerOptimizer(),
        late_policy: LatePolicy = Reject(),
        trusted_release: TrustedRelease | None = None,
        clients: int = SERVER,
        cohort: Cohort | None = None,
        largest_update: float = math.inf,
        folder: str | os.PathLike[str] | None = None,
    ):
        if channel.server_sees_clean:
            raise NotPrivate(
                "Unversioned() with a trusted server adds up repeated payloads, which is twice the sensitivity: use "
                "Versioned()"
            )
        if folder is not None:
            raise ValueError("Unversioned() keeps no journal, so its server cannot restart: use server_restart=0")
        super().__init__(
            channel,
            memory,
            model,
            optimizer=optimizer,
            late_policy=late_policy,
            trusted_release=trusted_release,
            clients=clients,
            cohort=cohort,
            largest_update=largest_update,
        )

    def handle(self, message: bytes, sender: int) -> bytes | None:
        """Accept an undamaged payload, whatever version of shared memory it was coded against; there is no reply."""
        try:
            payload = _stamped(message, self.memory)
            update, self.memory = exchange.receive(self._channel, payload, self.memory)
        except CorruptPayload:
            self.refusals["corrupt"] += 1
        else:
            self._sum.add(update, 1.0)
            self.accepted.append(Accepted(payload.client, 1.0, len(message)))


class UnversionedParticipant(Participant):
    """A client that reads any broadcast as the next one, and assumes that all it sends arrives."""

    @property
    def may_train(self) -> bool:
        """Whether the address was not charged before."""
        return not self.ledger.charged(self.state.memory.address)

    def handle(self, event: Event) -> list[bytes]:
        """Send and commit an update at once, follow any broadcast, and do nothing at other events."""
        memory, messages = self.state.memory, []
        if isinstance(event, Trained):
            payload, memory = exchange.send(self._channel, event.update, memory)
            self._save(replace(self.state, memory=memory), {})
            messages.append(payload.message)
        if isinstance(event, BroadcastReceived):
            memory = exchange.follow(self._channel, _stamped(event.broadcast, memory), memory)
            assert memory.step is not None
            self._save(replace(self.state, memory=memory, model=self.state.model + memory.step.dense()), {})
        self.state = replace(self._saved, phase=Phase.SYNCED)
        return messages


@dataclass(frozen=True)
class Unversioned:
    """The protocol without version checks, for study: it has no policies for late updates and absent clients."""

    server: ClassVar[type[Server]] = UnversionedServer
    participant: ClassVar[type[Participant]] = UnversionedParticipant
    late_policy: ClassVar[Reject] = Reject()
    absence_policy: ClassVar[Keep] = Keep()


def _stamped(message: bytes, memory: ClientMemory | ServerMemory) -> Payload:
    """Return the payload with headers as if it had been coded against this state."""
    payload = unsealed(message)
    return sealed(stated(payload.client, memory.shared.version, memory), [payload.body], memory)

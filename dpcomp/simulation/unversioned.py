"""A federation without version checks, for study: every end takes what comes for what it expects.

This is what is left of the protocol once its headers say nothing: whatever arrives, early, late or twice, is read as
the next message, against whatever its reader remembers. Damaged bytes are still noticed.
"""

import os
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from dpcomp.core.address import SERVER
from dpcomp.core.errors import CorruptPayload, NotPrivate
from dpcomp.federated.absence import Keep
from dpcomp.federated.aggregation import ServerOptimizer
from dpcomp.federated.late import LatePolicy, Reject
from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import BroadcastReceived, Event, Phase, Trained
from dpcomp.federated.server import Accepted, Server, TrustedRelease
from dpcomp.wire import exchange
from dpcomp.wire.channel import Channel
from dpcomp.wire.frame import LINK_BYTES, PAYLOAD
from dpcomp.wire.memory import Link, ServerMemory, Shared


class UnversionedServer(Server):
    """A server that takes any payload for its sender's next.

    Raises:
        NotPrivate: the server is trusted: a repeat would be twice the sensitivity.
        ValueError: it is to outlive its process.
    """

    def __init__(
        self,
        channel: Channel,
        memory: ServerMemory,
        model: Float32[np.ndarray, "d"],
        *,
        optimizer: ServerOptimizer = ServerOptimizer(),
        late_policy: LatePolicy = Reject(),
        trusted_release: TrustedRelease | None = None,
        clients: int = SERVER,
        folder: str | os.PathLike[str] | None = None,
    ):
        if channel.server_sees_clean:
            raise NotPrivate("Unversioned() with trust='server' would add repeats up: twice the sensitivity")
        if folder is not None:
            raise ValueError("Unversioned() keeps no journal, so it cannot restart: server_restart=0")
        super().__init__(
            channel,
            memory,
            model,
            optimizer=optimizer,
            late_policy=late_policy,
            trusted_release=trusted_release,
            clients=clients,
        )

    def handle(self, message: bytes, sender: int) -> bytes | None:
        """Take a payload, whatever it was coded against; there is no word on it."""
        try:
            frame, _ = PAYLOAD.unseal(message)
            payload = _stamped(message, self.memory.shared, self.memory.link(frame.client))
            update, self.memory = exchange.receive(self._channel, payload, self.memory)
        except CorruptPayload:
            self.refusals["corrupt"] += 1
        else:
            self.accepted.append(Accepted(update, 1.0, len(message)))


class UnversionedParticipant(Participant):
    """A client that takes any broadcast for its next, and believes that all it sends arrives."""

    @property
    def may_train(self) -> bool:
        """Whether the address was not charged yet."""
        return not self.ledger.charged(self.state.memory.address)

    def handle(self, event: Event) -> list[bytes]:
        """Commit what is sent at once, and follow any broadcast; nothing else happens."""
        memory, messages = self.state.memory, []
        if isinstance(event, Trained):
            payload, memory = exchange.send(self._channel, event.update, memory)
            self._save(replace(self.state, memory=memory))
            messages.append(payload)
        if isinstance(event, BroadcastReceived):
            memory = exchange.follow(self._channel, _stamped(event.broadcast, memory.shared, Link()), memory)
            assert memory.step is not None
            self._save(replace(self.state, memory=memory, model=self.state.model + memory.step.dense()))
        self.state = replace(self._saved, phase=Phase.SYNCED)
        return messages


@dataclass(frozen=True)
class Unversioned:
    """Ends without version checks, which know of no lateness and no absence."""

    server: ClassVar[type[Server]] = UnversionedServer
    participant: ClassVar[type[Participant]] = UnversionedParticipant
    late_policy: ClassVar[Reject] = Reject()
    absence_policy: ClassVar[Keep] = Keep()


def _stamped(payload: bytes, shared: Shared, link: Link) -> bytes:
    """A payload as if it had been coded against these."""
    frame, body = PAYLOAD.unseal(payload)
    frame = replace(
        frame,
        version=shared.version,
        shared=shared.digest,
        link_count=link.count,
        link=link.digest[:LINK_BYTES],
    )
    return PAYLOAD.seal(frame, body)

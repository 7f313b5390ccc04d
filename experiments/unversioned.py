"""A federation without version checks, for study: every end takes what comes for what it expects.

This is what is left of the protocol once its headers say nothing: whatever arrives, early, late or twice, is read as
the next message, against whatever its reader remembers. Damaged bytes are still noticed.
"""

import os
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from dpcomp.codec.frame import LINK_BYTES, PAYLOAD
from dpcomp.errors import CorruptPayload, NotPrivate
from dpcomp.federated.aggregate import ServerOptimizer
from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import Event, Heard, Phase, Trained
from dpcomp.federated.server import Accepted, Releasing, Server
from dpcomp.ledger import Ledger
from dpcomp.memory import ClientMemory, Link, ServerMemory, Shared
from dpcomp.pipeline import Pipeline


@dataclass(frozen=True)
class Unversioned:
    """Ends without version checks; not where the server is trusted, for a repeat would be twice the sensitivity."""

    def server(
        self,
        pipeline: Pipeline,
        memory: ServerMemory,
        model: Float32[np.ndarray, "d"],
        optimizer: ServerOptimizer,
        releasing: Releasing | None,
        folder: str | os.PathLike[str] | None,
    ) -> Server:
        """A server that takes any payload for its sender's next.

        Raises:
            NotPrivate: the server is trusted.
            ValueError: it is to outlive its process.
        """
        if pipeline.trust == "server":
            raise NotPrivate("Unversioned() with trust='server' would add repeats up: twice the sensitivity")
        if folder is not None:
            raise ValueError("Unversioned() keeps no journal, so it cannot restart: server_restart=0")
        return _Server(pipeline, memory, model, optimizer=optimizer)

    def participant(
        self, pipeline: Pipeline, memory: ClientMemory, model: Float32[np.ndarray, "d"], ledger: Ledger
    ) -> Participant:
        """A client that takes any broadcast for its next, and believes that all it sends arrives."""
        return _Participant(pipeline, memory, model, ledger)


class _Server(Server):
    def hear(self, message: bytes, sender: int) -> bytes | None:
        try:
            frame, _ = PAYLOAD.unseal(message)
            payload = _stamped(message, self.memory.shared, self.memory.link(frame.client))
            update, self.memory = self._pipeline.receive(payload, self.memory)
        except CorruptPayload:
            self.refusals["corrupt"] += 1
        else:
            self.accepted.append(Accepted(update, 1.0, len(message)))


class _Participant(Participant):
    @property
    def may_train(self) -> bool:
        return not self.ledger.charged(self.state.memory.address)

    def on(self, event: Event) -> list[bytes]:
        memory, messages = self.state.memory, []
        if isinstance(event, Trained):
            payload, memory = self._pipeline.send(event.update, memory)
            self._save(replace(self.state, memory=memory))
            messages.append(payload)
        if isinstance(event, Heard):
            memory = self._pipeline.follow(_stamped(event.broadcast, memory.shared, Link()), memory)
            assert memory.step is not None
            self._save(replace(self.state, memory=memory, model=self.state.model + memory.step.dense()))
        self.state = replace(self._saved, phase=Phase.SYNCED)
        return messages


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

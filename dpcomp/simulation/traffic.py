"""Everything that passes between the server and its clients, delivered, answered, and counted in bytes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dpcomp.core.address import SERVER
from dpcomp.core.errors import CorruptPayload, VersionMismatch
from dpcomp.federated.messages import REPLY
from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import BroadcastReceived, Phase, ReplyReceived, TimedOut
from dpcomp.federated.server import Server
from dpcomp.simulation.faulty_network import Faults, Network
from dpcomp.wire.frame import PAYLOAD


@dataclass
class Counts:
    """Bytes as they were sent, repeats included; `control` are questions and words, less what brings a client back."""

    uplink: int = 0
    downlink: int = 0
    control: int = 0


class Traffic:
    """The clock of a simulated federation: what is sent at one tick arrives at a later one."""

    def __init__(
        self, server: Server, participants: Sequence[Participant], faults: Faults, stream: np.random.Generator
    ):
        self._server, self._participants, self._faults = server, participants, faults
        self._network, self._now, self._spoke = Network(faults, stream), 0, [-faults.retry] * len(participants)
        self.away: set[int] = set()  # who hears and says nothing
        self.counts = Counts()

    def send(self, client: int, messages: Iterable[bytes]) -> None:
        """Messages of a client to the server."""
        for message in messages:
            if PAYLOAD.begins(message):
                self.counts.uplink += len(message)
            else:
                self.counts.control += len(message)
            self._network.send(client, SERVER, message)
            self._spoke[client] = self._now

    def broadcast(self, broadcast: bytes) -> None:
        """A message of the server to all clients."""
        for client in range(len(self._participants)):
            self.counts.downlink += len(broadcast)
            self._network.send(SERVER, client, broadcast)

    def invite(self, clients: Iterable[int]) -> None:
        """Tell clients that their updates are wanted at the server's version: who has missed it asks first."""
        for client in clients:
            state = self._participants[client].state
            behind = state.memory.shared.digest != self._server.memory.shared.digest
            if client not in self.away and state.phase is Phase.SYNCED and behind:
                self.send(client, self._participants[client].handle(TimedOut()))
        self.run()

    def run(self) -> None:
        """Deliver until all is said, or patience ends; who has no answer asks again."""
        for _ in range(self._faults.patience):
            self._remind()
            if self._network.quiet and not self._open:
                break
            for sender, recipient, message in self._network.tick():
                self._deliver(sender, recipient, message)
            self._now += 1

    def restart(self, client: int) -> None:
        """A client crashes, or comes back: it goes on from what it had saved, and asks at once."""
        self._participants[client].restart()
        self._spoke[client] = self._now - self._faults.retry

    @property
    def _open(self) -> list[int]:
        """Who is here, and has no answer."""
        phases = ((client, participant.state.phase) for client, participant in enumerate(self._participants))
        return [client for client, phase in phases if phase is not Phase.SYNCED and client not in self.away]

    def _remind(self) -> None:
        for client in self._open:
            if self._now - self._spoke[client] >= self._faults.retry:
                self.send(client, self._participants[client].handle(TimedOut()))

    def _deliver(self, sender: int, recipient: int, message: bytes) -> None:
        if recipient != SERVER:
            if recipient not in self.away:
                self._told(recipient, message)
            return
        word = self._server.handle(message, sender)
        if word is not None:
            head = min(len(word), REPLY.header_bytes)
            self.counts.control += head
            self.counts.downlink += len(word) - head
            self._network.send(SERVER, sender, word)

    def _told(self, client: int, message: bytes) -> None:
        event = ReplyReceived(message) if REPLY.begins(message) else BroadcastReceived(message)
        try:
            answers = self._participants[client].handle(event)
        except (CorruptPayload, VersionMismatch):
            return  # nothing changed; who waits asks again
        self.send(client, answers)

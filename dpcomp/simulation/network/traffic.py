"""Traffic: delivers all messages between server and clients, and counts their bytes."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dpcomp.core.address import SERVER
from dpcomp.core.errors import CorruptPayload, VersionMismatch
from dpcomp.federated.messages import REPLY, is_reply
from dpcomp.federated.phases import BroadcastReceived, Phase, ReplyReceived, TimedOut
from dpcomp.federated.server import Server
from dpcomp.simulation.clients.simulated_clients import SimulatedClients
from dpcomp.simulation.network.faulty_network import Faults, Network
from dpcomp.wire.headers import is_payload


@dataclass
class ByteCounts:
    """Bytes as they were sent, repeats included.

    Attributes:
        uplink: Payloads.
        downlink: Broadcasts, and the bodies of replies, which bring back clients that were away.
        control: Questions, and the headers of replies.
    """

    uplink: int = 0
    downlink: int = 0
    control: int = 0


class Traffic:
    """Carries the messages of a simulated federation, tick by tick.

    Args:
        server: Replies to payloads and questions.
        clients: The clients, by number.
        faults: What happens to messages, and how long clients and rounds wait.
        stream: Where faults are drawn from.
    """

    def __init__(self, server: Server, clients: SimulatedClients, faults: Faults, stream: np.random.Generator):
        self._server, self._clients, self._faults = server, clients, faults
        self._network, self._now = Network(faults, stream), 0
        self._last_sent: dict[int, int] = {}  # tick of each client's last message
        self.away: set[int] = set()  # clients that neither receive nor send
        self.counts = ByteCounts()

    def introduce(self) -> None:
        """Let all clients ask the server where it stands; of clients that are alike one asks, and all are counted."""
        self.deliver()
        alike, counts = self._clients.begin(), self.counts
        self.counts = ByteCounts(counts.uplink * alike, counts.downlink * alike, counts.control * alike)

    def send(self, client: int, messages: Iterable[bytes]) -> None:
        """Send messages of a client to the server."""
        for message in messages:
            if is_payload(message):
                self.counts.uplink += len(message)
            else:
                self.counts.control += len(message)
            self._network.send(client, SERVER, message)
            self._last_sent[client] = self._now

    def broadcast(self, broadcast: bytes) -> None:
        """Send a broadcast of the server to all clients; those that stand together follow it at once."""
        self.counts.downlink += len(broadcast) * len(self._clients)
        for client in self.away:
            _ = self._clients[client]  # it stays behind
        self._clients.follow(broadcast)
        for client in self._clients.apart:
            self._network.send(SERVER, client, broadcast)

    def invite(self, clients: Iterable[int]) -> None:
        """Ask clients for an update at the server's version; those that missed a broadcast catch up first."""
        for client in clients:
            state = self._clients[client].state
            behind = state.memory.shared.digest != self._server.memory.shared.digest
            if client not in self.away and state.phase is Phase.SYNCED and behind:
                self.send(client, self._clients[client].handle(TimedOut()))
        self.deliver()

    def deliver(self) -> None:
        """Deliver messages until every client has its reply, or the patience of a round ends."""
        for _ in range(self._faults.patience):
            self._resend()
            if self._network.idle and not self._without_reply:
                break
            for sender, recipient, message in self._network.tick():
                self._arrive(sender, recipient, message)
            self._now += 1

    def restart(self, client: int) -> None:
        """Restart a client from what it had saved; it asks the server where they stand at the next tick."""
        self._clients[client].restart()
        self._last_sent[client] = self._now - self._faults.retry

    def take_counts(self) -> ByteCounts:
        """Return the numbers of bytes sent each way since the last call, and count from zero again."""
        counts, self.counts = self.counts, ByteCounts()
        return counts

    @property
    def _without_reply(self) -> list[int]:
        """The clients that are here and wait for a reply."""
        here = (client for client in self._clients.apart if client not in self.away)
        return [client for client in here if self._clients[client].state.phase is not Phase.SYNCED]

    def _resend(self) -> None:
        for client in self._without_reply:
            if self._now - self._last_sent.get(client, -self._faults.retry) >= self._faults.retry:
                self.send(client, self._clients[client].handle(TimedOut()))

    def _arrive(self, sender: int, recipient: int, message: bytes) -> None:
        if recipient != SERVER:
            if recipient not in self.away:
                self._arrive_at_client(recipient, message)
            return
        reply = self._server.handle(message, sender)
        if reply is not None:
            header = min(len(reply), REPLY.header_bytes)
            self.counts.control += header
            self.counts.downlink += len(reply) - header
            self._network.send(SERVER, sender, reply)

    def _arrive_at_client(self, client: int, message: bytes) -> None:
        event = ReplyReceived(message) if is_reply(message) else BroadcastReceived(message)
        try:
            answers = self._clients[client].handle(event)
        except (CorruptPayload, VersionMismatch):
            return  # the client's state is unchanged; if it waits for a reply, it sends again
        self.send(client, answers)

"""Loopback: client and server of a channel in the same process, without a network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpcomp.wire import exchange
from dpcomp.wire.channel import Channel
from dpcomp.wire.memory import ClientMemory, ServerMemory
from dpcomp.wire.update import Update


@dataclass(frozen=True, kw_only=True, eq=False)
class Delivery:
    """One delivery of `Loopback.send`: a client's payload, and what the server made of it when it accepted it.

    Attributes:
        payload: The bytes that were sent; their number is what the update costs on the wire.
        received: The update as the server decoded it.
        server_before: The server's memory before it, with which `measure_payload` measures the payload.
    """

    payload: bytes
    received: Update
    server_before: ServerMemory


class Loopback:
    """Delivers the messages of a server and its clients at once, for studies, benchmarks and tests.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        server: The server's memory: `pipeline.init_server(layout, seed)`.
        clients: The clients' memories, by client number; each client follows each broadcast.

    Examples:
        >>> import numpy as np
        >>> import dpcomp as dp
        >>> from dpcomp.wire.loopback import Loopback
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(quantize=dp.Uniform(4)))
        >>> seed = dp.PublicSeed(0)
        >>> ends = Loopback(pipeline.channel, pipeline.init_server(10, seed), {7: pipeline.init_client(10, seed, 7)})
        >>> permit = dp.Ledger().charge(pipeline.cost, ends.clients[7].address)
        >>> update = pipeline.release([np.ones((32, 10))], ends.clients[7], dp.SecretSeed(), permit)
        >>> delivery = ends.send(update)
        >>> _ = ends.broadcast(delivery.received)
        >>> ends.clients[7].shared.version
        1
    """

    def __init__(self, channel: Channel, server: ServerMemory, clients: Mapping[int, ClientMemory]):
        self.channel, self.server, self.clients = channel, server, dict(clients)

    def send(self, update: Update) -> Delivery:
        """Send an update, from the client that its address names, and receive it at the server.

        Raises:
            NotPrivate, VersionMismatch, ValueError: As `exchange.send` and `exchange.receive` do.
        """
        client, before = update.address.client, self.server
        payload, memory = exchange.send(self.channel, update, self.clients[client])
        received, self.server = exchange.receive(self.channel, payload.message, before)
        self.clients[client] = memory
        return Delivery(payload=payload.message, received=received, server_before=before)

    def broadcast(self, aggregate: Any) -> bytes:
        """Broadcast a step, let each client follow it, and return the payload.

        Raises:
            NotPrivate, VersionMismatch, ValueError: As `exchange.broadcast` does.
        """
        sent, self.server = exchange.broadcast(self.channel, aggregate, self.server)
        payload = sent.message
        self.clients = {
            client: exchange.follow(self.channel, payload, memory) for client, memory in self.clients.items()
        }
        return payload

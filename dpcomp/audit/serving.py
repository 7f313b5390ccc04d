"""The door of a trusted server: a cohort delivers, also twice and from threads; the broadcasts are observed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from dpcomp.audit.observations import Features, Observations, message_features, stacked
from dpcomp.core.checks import whole_number
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import DitherKeys, PublicSeed, SecretSeed
from dpcomp.federated.server import Server
from dpcomp.federated.server.aggregation import TrustedRelease
from dpcomp.pipeline import Pipeline
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.wire.memory import ClientMemory, ServerMemory
from dpcomp.wire.update import Update


@runtime_checkable
class ServesRounds(Protocol):
    """A server as clients and observers see it: it takes messages, and closes rounds with a broadcast."""

    @property
    def memory(self) -> ServerMemory:
        """The server's memory, with whose genesis clients begin."""
        ...

    def cohort(self) -> list[int]:
        """Return the clients that are invited to the present round."""
        ...

    def handle(self, message: bytes, sender: int) -> bytes | None:
        """Take a client's payload, and return the reply."""
        ...

    def close_round(self) -> bytes:
        """Close the round, and return the broadcast."""
        ...


def open_server(pipeline: Pipeline, layout: Layout, seed: PublicSeed, clients: int) -> ServesRounds:
    """Open dpcomp's server with a fresh ledger, in memory.

    Args:
        pipeline: With trust="server".
        layout: The layers of the model.
        seed: The public seed of the run.
        clients: The number of clients, a public constant.
    """
    rate = 1.0 if pipeline.sampling is None else pipeline.sampling.rate
    release = TrustedRelease(pipeline=pipeline, secret=SecretSeed(), ledger=Ledger(), divisor=rate * clients)
    keys = None if pipeline.largest_cohort is None else DitherKeys.drawn(release.secret)
    memory = pipeline.init_server(layout, seed, dither_keys=keys)
    model = np.zeros(layout.size, dtype=np.float32)
    return Server(pipeline.channel, memory, model, trusted_release=release, clients=clients)


@dataclass(frozen=True, kw_only=True, eq=False)
class Serving:
    """Runs of a trusted server, whose clients are a canary and others, or the others alone.

    In each round the server draws a cohort. Each client of the cohort sends its clean update, and its messages are
    delivered as often as `copies` says, from a pool of threads; a canary that is absent sends nothing. An observer sees
    the broadcasts, and knows the other clients' updates.

    Args:
        pipeline: What is audited, with unit="client" and trust="server".
        canaries: (rounds, d) the canary's update in each round; it is client 0.
        others: (rounds, n, d) the updates of the other clients, 1 to n.
        copies: How often a client delivers its payload.
        threads: The threads that deliver; 1 for one after the other.
        uninvited: Whether the canary sends also in rounds whose cohort it is not in.
        open_server: Opens the server: of a pipeline, layout, public seed and number of clients.
        seed: The public seed of every run.

    Raises:
        ValueError: The server is not trusted, or the shapes do not fit together.
        TypeError, ValueError: `copies` or `threads` is not a whole number from 1 on.
    """

    pipeline: Pipeline
    canaries: Float64[np.ndarray, "rounds d"]
    others: Float64[np.ndarray, "rounds n d"]
    copies: int = 1
    threads: int = 1
    uninvited: bool = False
    open_server: Callable[[Pipeline, Layout, PublicSeed, int], ServesRounds] = open_server
    seed: PublicSeed = field(default_factory=lambda: PublicSeed(0))

    def __post_init__(self):
        for name in ("copies", "threads"):
            object.__setattr__(self, name, whole_number(getattr(self, name), f"Serving({name})", least=1))
        if not self.pipeline.trust_model.server_sees_clean:
            raise ValueError(
                f"Serving observes broadcasts alone, but with trust={self.pipeline.trust!r} payloads are seen too: use "
                "Blocks"
            )
        rounds, d = self.canaries.shape
        if self.others.ndim != 3 or self.others.shape[::2] != (rounds, d):
            raise ValueError(
                f"others of shape {self.others.shape} do not fit canaries of shape {self.canaries.shape}: give "
                "(rounds, n, d) beside (rounds, d)"
            )

    def __str__(self) -> str:
        rounds, d = self.canaries.shape
        how = f"{self.others.shape[1]} + 1 clients, {d} coordinates, {rounds} round{'s' * (rounds > 1)}"
        how += f", {self.copies} deliveries each from {self.threads} threads" if self.copies > 1 else ""
        return how + (", the canary sends uninvited too" if self.uninvited else "")

    def observe(self, present: bool, runs: int) -> Observations:
        """Run the server, as `Door.observe` says."""
        with ThreadPoolExecutor(self.threads) as pool:
            return stacked([self._run(present, pool) for _ in range(runs)])

    def _run(self, present: bool, pool: ThreadPoolExecutor) -> Features:
        pipeline, clients = self.pipeline, 1 + self.others.shape[1]
        server = self.open_server(pipeline, self._layout, self.seed, clients)
        memories = {number: self._client_memory(number, server.memory) for number in range(clients)}
        seen: dict[str, np.ndarray] = {}
        for place in range(len(self.canaries)):
            invited = [number for number in server.cohort() if present or number > 0]
            senders = sorted({*invited, 0}) if self.uninvited and present else invited
            updates = dict(enumerate([self.canaries[place], *self.others[place]]))
            sent = {number: self._sent(updates[number], memories[number]) for number in senders}
            messages = [(payload, number) for number, (payload, _) in sent.items()] * self.copies
            list(pool.map(lambda message: server.handle(*message), messages))
            broadcast, before = server.close_round(), memories[0]
            # The payloads of invited clients count, whatever else was delivered.
            memories |= {number: sent[number][1] for number in invited}
            memories = {number: pipeline.follow(broadcast, memory) for number, memory in memories.items()}
            step = memories[0].step
            assert step is not None
            seen |= message_features(
                pipeline.channel, broadcast, step, before, where=f"round {place}", directions=self.canaries
            )
        return seen

    def _client_memory(self, number: int, server: ServerMemory) -> ClientMemory:
        keys = server.dither_keys
        own = None if keys is None else keys.of(number)
        memory = self.pipeline.init_client(self._layout, self.seed, number, dither_key=own)
        return memory.with_genesis(server.genesis)

    def _sent(self, vector: Float64[np.ndarray, "d"], memory: ClientMemory) -> tuple[bytes, ClientMemory]:
        return self.pipeline.send(Update(values=vector, layout=memory.layout, address=memory.address), memory)

    @cached_property
    def _layout(self) -> Layout:
        return Layout.of(self.canaries.shape[1])

"""Server state: what a server begins a round with, how it is saved, and what brings a client to its version."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32

from dpcomp.core.errors import VersionMismatch
from dpcomp.federated.messages import (
    BROADCAST_BYTES,
    NO_DIGEST,
    Hello,
    Snapshot,
    write_broadcasts,
    write_snapshot,
)
from dpcomp.federated.server.optimizers import Moments
from dpcomp.wire.checkpoint import Checkpoint
from dpcomp.wire.headers import Payload, read
from dpcomp.wire.memory import ServerMemory

ESTIMATE, BROADCAST = "estimate", "broadcast "  # names of arrays in a checkpoint, the latter before a number


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerState:
    """Holds what a server begins a round with.

    Attributes:
        memory: The server's memory.
        model: The parameters as a (d,) vector.
        moments: What the optimiser keeps of earlier rounds.
        estimate: The estimate of the mean update as a (d,) vector, where clients send differences; else None.
        broadcasts: The last broadcasts, as long as they are shorter than a snapshot.
    """

    memory: ServerMemory
    model: Float32[np.ndarray, "d"]
    moments: Moments
    estimate: Float32[np.ndarray, "d"] | None = None
    broadcasts: Sequence[Payload] = ()

    def with_run_id(self) -> "ServerState":
        """Return this state with a new run id, unless its memory names one; only secret dither derives from it."""
        genesis = self.memory.genesis
        if genesis.run_id != NO_DIGEST or self.memory.shared.version:
            return self
        return replace(
            self, memory=self.memory.with_genesis(replace(genesis, run_id=secrets.token_bytes(len(NO_DIGEST))))
        )

    def after(
        self,
        broadcast: Payload,
        memory: ServerMemory,
        moments: Moments,
        estimate: Float32[np.ndarray, "d"] | None,
    ) -> "ServerState":
        """Return the state after a broadcast.

        Args:
            broadcast: The broadcast.
            memory: The memory after it.
            moments: The optimiser's, after its step.
            estimate: The estimate after the round, where clients send differences; else None.
        """
        assert memory.step is not None
        broadcasts = [*self.broadcasts, broadcast]
        least_snapshot_bytes = 4 * memory.layout.size * (1 if memory.shared.reference is None else 2)
        while sum(BROADCAST_BYTES + len(kept.body) for kept in broadcasts) > least_snapshot_bytes:
            del broadcasts[0]
        model = self.model + memory.step.dense()
        return ServerState(memory=memory, model=model, moments=moments, estimate=estimate, broadcasts=broadcasts)

    def checkpoint(self, arrays: Mapping[str, np.ndarray] = MappingProxyType({})) -> Checkpoint:
        """Return a checkpoint with this state and other arrays, from which `in_checkpoint` reads the state."""
        held: dict[str, np.ndarray] = {**arrays, **self.moments}
        if self.estimate is not None:
            held[ESTIMATE] = self.estimate
        for place, broadcast in enumerate(self.broadcasts):
            held[f"{BROADCAST}{place}"] = np.frombuffer(broadcast.in_full(), dtype=np.uint8)
        return Checkpoint(self.memory, self.model, extra_arrays=held)

    @classmethod
    def in_checkpoint(cls, saved: Checkpoint, moments: Iterable[str]) -> "ServerState | None":
        """Return the state that a checkpoint holds; None if it is not that of a server.

        Args:
            saved: The checkpoint.
            moments: The names of the optimiser's moments.
        """
        memory, model, _, arrays = saved
        if not isinstance(memory, ServerMemory) or model is None:
            return None
        count = sum(name.startswith(BROADCAST) for name in arrays)
        return cls(
            memory=memory,
            model=model,
            moments={name: arrays[name] for name in moments if name in arrays},
            estimate=arrays.get(ESTIMATE),
            broadcasts=[read(arrays[f"{BROADCAST}{place}"].tobytes(), memory) for place in range(count)],
        )

    def broadcasts_since(self, version: int, digest: bytes) -> bytes | None:
        """Return the broadcasts from a version to this one, as the body of a reply.

        Args:
            version: The version.
            digest: The digest of shared memory at it.

        Returns:
            The body; None where a snapshot is shorter, or no such version was.
        """
        shared = self.memory.shared
        if (version, digest) == (shared.version, shared.digest):
            return b""
        place = version - (shared.version - len(self.broadcasts))
        if not 0 <= place < len(self.broadcasts) or self.broadcasts[place].frame.shared != digest:
            return None
        return write_broadcasts(self.broadcasts[place:])

    @cached_property
    def snapshot(self) -> bytes:
        """The snapshot of this version as the body of a reply, written for the first client that needs it."""
        return write_snapshot(Snapshot(self.memory.shared, self.model), self.memory.layout)


def other_configuration(memory: ServerMemory, pipeline: bytes, run: int) -> VersionMismatch | None:
    """Return why a message is of another configuration or run than a server; None if it is not.

    Args:
        memory: The server's memory.
        pipeline: The fingerprint of pipeline and layout that the message states.
        run: The number of the public seed that it states.
    """
    if pipeline != memory.pipeline:
        return VersionMismatch(
            f"the message is of pipeline and layout {pipeline.hex()}, this server has {memory.pipeline.hex()}"
            ": both ends must be built from one configuration",
            reason="pipeline",
        )
    if run != memory.seed.number:
        return VersionMismatch(
            f"the message is of run {run}, this server has run {memory.seed.number}: build both ends with the "
            "same PublicSeed",
            reason="run",
        )
    return None


def other_genesis(memory: ServerMemory, hello: Hello) -> VersionMismatch | None:
    """Return why a client began another federation than that of a server's memory; None if it did not."""
    mine = memory.genesis
    if hello.first_model != mine.first_model:
        return VersionMismatch(
            f"the client began with the first model {hello.first_model.hex()}, this server with "
            f"{mine.first_model.hex()}: give both ends the same first model",
            reason="model",
        )
    return other_run(memory, hello.run_id)


def other_run(memory: ServerMemory, run_id: bytes) -> VersionMismatch | None:
    """Return why a client with a run id is of another federation than a server's memory; None if it is not."""
    mine = memory.genesis
    if run_id in (NO_DIGEST, mine.run_id):
        return None
    return VersionMismatch(
        f"the client takes part in run id {run_id.hex()}, this server runs {mine.run_id.hex()}, another federation of "
        "the same seed, or one of other terms: ask the server that it began with, or begin anew in an empty folder",
        reason="run",
    )

"""The server: takes payloads, answers, closes rounds, and brings back whoever was away."""

import os
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from dpcomp.core.address import SERVER
from dpcomp.core.errors import CorruptPayload, DpcompError, NotPrivate, VersionMismatch
from dpcomp.core.randomness import SecretSeed
from dpcomp.federated.aggregation import ServerOptimizer, mean_of_released, release_mean
from dpcomp.federated.journal import Journal
from dpcomp.federated.late import Late, Reject
from dpcomp.federated.messages import (
    HELLO,
    NOTHING,
    WORD,
    Snapshot,
    Word,
    name_of,
    write_link,
    write_snapshot,
)
from dpcomp.pipeline import Pipeline
from dpcomp.privacy.ledger import Ledger
from dpcomp.wire import checkpoint
from dpcomp.wire.checkpoint import Checkpoint
from dpcomp.wire.frame import PAYLOAD
from dpcomp.wire.memory import ServerMemory, Shared
from dpcomp.wire.update import Update

LARGEST = 2.0**64  # of an update's values: far above any sum of clipped gradients, far below the end of float32


@dataclass(frozen=True, kw_only=True)
class Releasing:
    """What a trusted server releases with: its noise, its ledger, and the expected number of senders of a round."""

    secret: SecretSeed
    ledger: Ledger
    divisor: float


class Accepted(NamedTuple):
    """An update of the present round, and how it counts."""

    update: Update
    weight: float
    payload_bytes: int


class Server:
    """A server whose memory and model change by accepted payloads and closed rounds alone.

    Given a folder, a payload is in its journal before it is called accepted, and a round in a checkpoint before its
    broadcast leaves; a new server on the same folder goes on from there. `clients` is their number, if it is known: who
    is not below it is refused. `refusals` counts what was not accepted, by reason; where the server is trusted these
    are facts of clean messages, for research alone.

    **Privacy:** the transport must know who sends: a trusted server's answer to a client tells what it has of that
    client, and each client may move the sum by one clip norm.

    Raises:
        NotPrivate: late updates are to be weighed under a trusted server: late and fresh in one round are twice the
            sensitivity.
        ValueError: `releasing` is missing where the server is trusted, or given where it is not.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        memory: ServerMemory,
        model: Float32[np.ndarray, "d"],
        *,
        optimizer: ServerOptimizer = ServerOptimizer(),
        late: Late = Reject(),
        releasing: Releasing | None = None,
        clients: int = SERVER,
        folder: str | os.PathLike[str] | None = None,
    ):
        if pipeline.trust == "server" and late.max_age:
            raise NotPrivate(
                f"late={late} with trust='server': a late update beside a fresh one is twice the sensitivity. Reject()"
            )
        if (pipeline.trust == "server") != (releasing is not None):
            raise ValueError(f"trust={pipeline.trust!r}, releasing={releasing}: a trusted server releases, no other")
        self._pipeline, self._late, self._releasing = pipeline, late, releasing
        self.memory, self.model, self._optimizer = memory, model, optimizer
        self.accepted: list[Accepted] = []  # in this round
        self.refusals: Counter[str] = Counter()
        self._history: list[bytes] = []  # the last broadcasts, as long as they are shorter than a snapshot
        self._clients, self._folder, self._journal, self._shut = clients, None, None, False
        if folder is not None:
            self._folder = Path(folder)
            checkpoint.make_folder(self._folder)
            self._journal = Journal(self._folder / "journal.db")
            with ExitStack() as on_failure:
                on_failure.callback(self._journal.close)
                try:
                    self.restart()
                except FileNotFoundError:
                    self._save(self.memory, self.model, self._optimizer, self._history)
                on_failure.pop_all()

    def hear(self, message: bytes, sender: int) -> bytes | None:
        """Take a client's payload or question, and give the word on it; None where nobody could be told.

        Raises:
            DpcompError: the journal takes nothing; the payload is not accepted.
        """
        self._refuse_shut()
        try:
            return self._answer(message, sender) if HELLO.begins(message) else self._receive(message, sender)
        except VersionMismatch as error:
            self.refusals[error.reason] += 1
        except CorruptPayload:
            self.refusals["corrupt"] += 1
        return None

    def close(self) -> bytes:
        """End the round: the broadcast that brings every client from this version to the next.

        Raises:
            BudgetExhausted: a trusted server's budget allows no further release. Nothing changed.
            OSError: the round could not be saved. Nothing changed; a trusted server's round is forfeit.
        """
        self._refuse_shut()
        step, optimizer = self._optimizer.step(self._mean())
        broadcast, memory = self._pipeline.broadcast(step, self.memory)
        assert memory.step is not None
        model, history = self.model + memory.step.dense(), [*self._history, broadcast]
        memory = replace(memory, older=self._still_received((*self.memory.older, self.memory.shared)))
        while sum(map(len, history)) > self._least_snapshot_bytes:
            del history[0]
        if self._journal is not None:
            self._save(memory, model, optimizer, history)  # first: what could not be saved did not happen
            self._journal.forget_before(memory.shared.version - 1)  # the checkpoint before this one needs the rest
        self.memory, self.model, self._optimizer, self._history, self.accepted = memory, model, optimizer, history, []
        return broadcast

    def restart(self) -> None:
        """Go on from what is in the folder, as a new process does: nothing that was called accepted is lost."""
        if self._folder is None or self._journal is None:
            raise ValueError("a server without a folder has nothing to restart from: give it one")
        self._restore(self._folder, self._journal)

    def shut(self) -> None:
        """Let another process go on in the folder; this server is of no use any more."""
        if self._journal is not None:
            self._journal.close()
            self._shut = True

    def _receive(self, payload: bytes, sender: int) -> bytes:
        frame, _ = PAYLOAD.unseal(payload)
        self._refuse_foreign(frame.pipeline, frame.run, frame.client, sender)
        try:
            update, memory = self._pipeline.receive(payload, self.memory)
            if np.abs(update.values).max(initial=0.0) > LARGEST:
                raise CorruptPayload(f"the update holds values beyond {LARGEST:g}, which no sum in float32 can bear")
        except VersionMismatch as error:
            self.refusals[error.reason] += 1
        except CorruptPayload:
            self.refusals["corrupt"] += 1
        else:
            if self._journal is not None:
                self._journal.append(memory.shared.version, payload)
            self.memory = memory
            weight = self._late.weight(memory.shared.version - frame.version)
            self.accepted.append(Accepted(update, weight, len(payload)))
        return self._word(payload, frame.client)

    def _answer(self, message: bytes, sender: int) -> bytes:
        hello, _ = HELLO.unseal(message)
        self._refuse_foreign(hello.pipeline, hello.run, hello.client, sender)
        link, then = self.memory.link(hello.client), self.memory.at(hello.pending_version)
        same = (hello.link_count, hello.link) == (link.count, link.digest)
        known = same or hello.pending == link.digest != NOTHING
        told = b"" if known else write_link(link, self.memory.layout)
        in_time = (then.version, then.digest) == (hello.pending_version, hello.pending_shared)
        usable = hello.pending != NOTHING and same and in_time
        since = self._since(hello.version, hello.shared)
        snapshot = since is None
        if since is None:
            since = write_snapshot(Snapshot(self.memory.shared, self.model), self.memory.layout)
        return self._word(message, hello.client, usable=usable, link=told, snapshot=snapshot, body=since)

    def _word(
        self,
        message: bytes,
        client: int,
        *,
        usable: bool = False,
        link: bytes = b"",
        snapshot: bool = False,
        body: bytes = b"",
    ) -> bytes:
        known, shared = self.memory.link(client), self.memory.shared
        word = Word(
            answers=name_of(message),
            client=client,
            version=shared.version,
            shared=shared.digest,
            link_count=known.count,
            link=known.digest,
            usable=int(usable),
            link_bytes=len(link),
            snapshot=int(snapshot),
        )
        return WORD.seal(word, link + body)

    def _since(self, version: int, chained: bytes) -> bytes | None:
        """The broadcasts from a version to the present one; None where they are longer than a snapshot."""
        shared = self.memory.shared
        if (version, chained) == (shared.version, shared.digest):
            return b""
        place = version - (shared.version - len(self._history))
        if not 0 <= place < len(self._history) or PAYLOAD.unseal(self._history[place])[0].shared != chained:
            return None
        return b"".join(self._history[place:])

    @property
    def _least_snapshot_bytes(self) -> int:
        return 4 * self.memory.layout.size * (1 if self.memory.shared.reference is None else 2)

    def _mean(self) -> Update:
        updates, weights = [one.update for one in self.accepted], [one.weight for one in self.accepted]
        releasing = self._releasing
        if releasing is None:
            return mean_of_released(self._pipeline, updates, self.memory, weights)
        if releasing.ledger.charged(self.memory.address):
            # It crashed after the charge: a second release would not be paid for, so the round is forfeit.
            return mean_of_released(self._pipeline, [], self.memory)
        return release_mean(self._pipeline, updates, self.memory, releasing.secret, releasing.ledger, releasing.divisor)

    def _refuse_foreign(self, pipeline: bytes, run: int, client: int, sender: int) -> None:
        if pipeline != self.memory.pipeline:
            raise VersionMismatch(
                f"the message is of pipeline and layout {pipeline.hex()}, here is {self.memory.pipeline.hex()}: both "
                "ends must be built from one configuration",
                reason="pipeline",
            )
        if run != self.memory.seed.number:
            raise VersionMismatch(f"the message is of run {run}, here is {self.memory.seed.number}", reason="run")
        if client != sender or not 0 <= client < self._clients:
            raise VersionMismatch(
                f"the message is of client {client} and came from {sender}; clients have numbers below {self._clients}",
                reason="direction",
            )

    def _refuse_shut(self) -> None:
        if self._shut:
            raise DpcompError(f"this server was shut, and another may hold {self._folder}: open a new one")

    def _still_received(self, older: tuple[Shared, ...]) -> tuple[Shared, ...]:
        return older[-self._late.max_age :] if self._late.max_age else ()

    def _save(
        self, memory: ServerMemory, model: Float32[np.ndarray, "d"], optimizer: ServerOptimizer, history: list[bytes]
    ) -> None:
        assert self._folder is not None
        beside: dict[str, np.ndarray] = {} if optimizer.velocity is None else {"velocity": optimizer.velocity}
        for place, broadcast in enumerate(history):
            beside[f"broadcast {place}"] = np.frombuffer(broadcast, dtype=np.uint8)
        checkpoint.save(self._folder / "checkpoints", Checkpoint(memory, model, beside=beside))

    def _restore(self, folder: Path, journal: Journal) -> None:
        memory, model, _, beside = checkpoint.load(folder / "checkpoints", self._pipeline)
        if not isinstance(memory, ServerMemory) or model is None:
            raise DpcompError(f"{folder} holds no checkpoint of a server: name another folder")
        if (memory.seed, memory.pipeline) != (self.memory.seed, self.memory.pipeline):
            raise DpcompError(
                f"{folder} is of run {memory.seed} and layout {memory.layout}; this is run {self.memory.seed} and "
                f"layout {self.memory.layout}: name another folder"
            )
        if self._releasing is not None and memory.shared.version:
            last = replace(memory.address, round=memory.shared.version - 1)
            if not self._releasing.ledger.charged(last):
                raise DpcompError(
                    f"{folder} holds the release of {last}, which {self._releasing.ledger} never charged: restore the "
                    "newest ledger; what is spent cannot be taken back"
                )
        self.memory = replace(memory, older=self._still_received(memory.older))
        self.model, self._history, self.accepted = model, _broadcasts(beside), []
        self._optimizer = replace(self._optimizer, velocity=beside.get("velocity"))
        counted, self._journal = self.refusals.copy(), None  # what stands in the journal is not written again
        try:
            for version, payload in journal.payloads():
                if version == memory.shared.version:
                    self._receive(payload, PAYLOAD.unseal(payload)[0].client)
                elif version > memory.shared.version:
                    warnings.warn(f"{folder}: an update accepted at version {version} is lost with it", stacklevel=3)
        finally:
            self._journal, self.refusals = journal, counted


def _broadcasts(beside: Mapping[str, np.ndarray]) -> list[bytes]:
    count = sum(name.startswith("broadcast ") for name in beside)
    return [beside[f"broadcast {place}"].tobytes() for place in range(count)]

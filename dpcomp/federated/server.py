"""The server: takes payloads, replies, closes rounds, and brings back whoever was away."""

import os
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from dpcomp.core.address import SERVER
from dpcomp.core.errors import CorruptPayload, DpcompError, NotPrivate, VersionMismatch
from dpcomp.core.storage import make_folder
from dpcomp.federated.aggregation import ServerOptimizer, TrustedRelease, mean_of_released
from dpcomp.federated.journal import Journal
from dpcomp.federated.late import LatePolicy, Reject
from dpcomp.federated.messages import (
    HELLO,
    NO_DIGEST,
    REPLY,
    Reply,
    Snapshot,
    message_digest,
    write_link,
    write_snapshot,
)
from dpcomp.wire import checkpoint, exchange
from dpcomp.wire.channel import Channel
from dpcomp.wire.checkpoint import Checkpoint
from dpcomp.wire.frame import PAYLOAD, OpenedPayload
from dpcomp.wire.memory import ServerMemory, Shared
from dpcomp.wire.update import Update

LARGEST = 2.0**64  # of an update's values: far above any sum of clipped gradients, far below the end of float32


class Accepted(NamedTuple):
    """An update that was accepted in the present round: its weight in the mean, and the length of its payload."""

    update: Update
    weight: float
    payload_bytes: int


class Server:
    """Takes clients' messages and closes rounds; only accepted payloads and closed rounds change memory and model.

    Given a folder, a payload is in its journal before it is called accepted, and a round in a checkpoint before its
    broadcast leaves; a new server on the same folder goes on from there. `refusals` counts what was not accepted, by
    reason; where the server is trusted these are facts of clean messages, for research alone.

    **Privacy:** the transport must know who sends: a trusted server's reply to a client shows what it has of that
    client, and each client may move the sum by one clip norm.

    Args:
        channel: What both ends are built from: `pipeline.channel`.
        memory: `pipeline.init_server(layout, seed)`.
        model: The first (d,) vector of parameters, the same at all ends.
        optimizer: Makes the round's step of the mean.
        late_policy: What counts of updates that come after their round.
        trusted_release: What a trusted server draws its noise with; None where the server is not trusted.
        clients: How many clients there are; who is not numbered below it is refused.
        folder: Where journal and checkpoints lie; None keeps nothing.

    Raises:
        NotPrivate: Late updates are to be weighed under a trusted server: late and fresh in one round are twice the
            sensitivity.
        ValueError: `trusted_release` is missing where the server is trusted, or given where it is not, or is of another
            pipeline.

    Examples:
        >>> import numpy as np
        >>> import dpcomp as dp
        >>> from dpcomp.federated import Server
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
        >>> server = Server(pipeline.channel, pipeline.init_server(10, dp.PublicSeed(0)), np.zeros(10, np.float32))
        >>> broadcast = server.close_round()
        >>> server.memory.shared.version
        1
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
        if channel.server_sees_clean and late_policy.max_age:
            raise NotPrivate(
                f"late_policy={late_policy} under a trusted server: a late update beside a fresh one is twice the "
                "sensitivity. Use Reject()"
            )
        if channel.server_sees_clean != (trusted_release is not None):
            raise ValueError(
                f"trusted_release={trusted_release}: a server that is trusted needs one, and no other server has one"
            )
        if trusted_release is not None and trusted_release.pipeline.channel.identity != channel.identity:
            raise ValueError("trusted_release is of another pipeline than the channel: build both from one pipeline")
        self._channel, self._late_policy, self._trusted_release = channel, late_policy, trusted_release
        self.memory, self.model, self._optimizer = memory, model, optimizer
        self.accepted: list[Accepted] = []  # in this round
        self.refusals: Counter[str] = Counter()
        self._history: list[bytes] = []  # the last broadcasts, as long as they are shorter than a snapshot
        self._clients, self._folder, self._journal, self._closed = clients, None, None, False
        if folder is not None:
            self._folder = Path(folder)
            make_folder(self._folder)
            self._journal = Journal(self._folder / "journal.db")
            with ExitStack() as on_failure:
                on_failure.callback(self._journal.close)
                try:
                    self.restart()
                except FileNotFoundError:
                    self._save(self.memory, self.model, self._optimizer, self._history)
                on_failure.pop_all()

    def handle(self, message: bytes, sender: int) -> bytes | None:
        """Take a client's payload or hello, and return the reply; None for a message that gets none.

        A message that is damaged, or not of this federation, is counted in `refusals` and gets no reply.

        Args:
            message: What arrived.
            sender: The number of the client that the transport knows it came from.

        Raises:
            DpcompError: The journal takes nothing, so the payload is not accepted; or this server was closed.
        """
        self._refuse_closed()
        try:
            return self._take_hello(message, sender) if HELLO.begins(message) else self._take_payload(message, sender)
        except VersionMismatch as error:
            self.refusals[error.reason] += 1
        except CorruptPayload:
            self.refusals["corrupt"] += 1
        return None

    def close_round(self) -> bytes:
        """Close the round, and return the broadcast that brings every client to the next version.

        Raises:
            BudgetExhausted: A trusted server's budget allows no further release. Nothing changed.
            DpcompError: This server was closed.
            OSError: The round could not be saved. Nothing changed; a trusted server's round is forfeit.
        """
        self._refuse_closed()
        step, optimizer = self._optimizer.step(self._mean())
        broadcast, memory = exchange.broadcast(self._channel, step, self.memory)
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

    def close(self) -> None:
        """Release the folder for another process; this server takes no message any more."""
        if self._journal is not None:
            self._journal.close()
            self._closed = True

    def _take_payload(self, payload: bytes, sender: int) -> bytes:
        opened = OpenedPayload.of(payload)
        frame = opened.frame
        self._refuse_foreign(frame.pipeline, frame.run, frame.client, sender)
        try:
            update, memory = exchange.receive(self._channel, opened, self.memory)
            if np.abs(update.values).max(initial=0.0) > LARGEST:
                raise CorruptPayload(f"the update holds values beyond {LARGEST:g}, which no sum in float32 can hold")
        except VersionMismatch as error:
            self.refusals[error.reason] += 1
        except CorruptPayload:
            self.refusals["corrupt"] += 1
        else:
            if self._journal is not None:
                self._journal.append(memory.shared.version, payload)
            self.memory = memory
            weight = self._late_policy.weight(memory.shared.version - frame.version)
            self.accepted.append(Accepted(update, weight, len(payload)))
        return self._reply(payload, frame.client)

    def _take_hello(self, message: bytes, sender: int) -> bytes:
        hello, _ = HELLO.unseal(message)
        self._refuse_foreign(hello.pipeline, hello.run, hello.client, sender)
        link, then = self.memory.link(hello.client), self.memory.shared_at(hello.pending_version)
        same = (hello.link_count, hello.link) == (link.count, link.digest)
        known = same or hello.pending == link.digest != NO_DIGEST
        whole_link = b"" if known else write_link(link, self.memory.layout)
        in_time = (then.version, then.digest) == (hello.pending_version, hello.pending_shared)
        usable = hello.pending != NO_DIGEST and same and in_time
        since = self._since(hello.version, hello.shared)
        snapshot = since is None
        if since is None:
            since = write_snapshot(Snapshot(self.memory.shared, self.model), self.memory.layout)
        return self._reply(message, hello.client, usable=usable, link=whole_link, snapshot=snapshot, body=since)

    def _reply(
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
        reply = Reply(
            answers=message_digest(message),
            client=client,
            version=shared.version,
            shared=shared.digest,
            link_count=known.count,
            link=known.digest,
            usable=int(usable),
            link_bytes=len(link),
            snapshot=int(snapshot),
        )
        return REPLY.seal(reply, link + body)

    def _since(self, version: int, chained: bytes) -> bytes | None:
        """Return the broadcasts from a version to the present one; None where they are longer than a snapshot."""
        shared = self.memory.shared
        if (version, chained) == (shared.version, shared.digest):
            return b""
        place = version - (shared.version - len(self._history))
        if not 0 <= place < len(self._history) or PAYLOAD.record_of(self._history[place]).shared != chained:
            return None
        return b"".join(self._history[place:])

    @property
    def _least_snapshot_bytes(self) -> int:
        return 4 * self.memory.layout.size * (1 if self.memory.shared.reference is None else 2)

    def _mean(self) -> Update:
        updates = [accepted.update for accepted in self.accepted]
        release = self._trusted_release
        if release is None:
            return mean_of_released(
                self._channel, updates, self.memory, [accepted.weight for accepted in self.accepted]
            )
        if release.ledger.charged(self.memory.address):
            # It crashed after the charge: a second release would not be paid for, so the round is forfeit.
            return mean_of_released(self._channel, [], self.memory)
        return release.mean(updates, self.memory)

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

    def _refuse_closed(self) -> None:
        if self._closed:
            raise DpcompError(f"this server was closed, and another may hold {self._folder}: open a new one")

    def _still_received(self, older: tuple[Shared, ...]) -> tuple[Shared, ...]:
        return older[-self._late_policy.max_age :] if self._late_policy.max_age else ()

    def _save(
        self, memory: ServerMemory, model: Float32[np.ndarray, "d"], optimizer: ServerOptimizer, history: list[bytes]
    ) -> None:
        assert self._folder is not None
        arrays: dict[str, np.ndarray] = {} if optimizer.velocity is None else {"velocity": optimizer.velocity}
        for place, broadcast in enumerate(history):
            arrays[f"broadcast {place}"] = np.frombuffer(broadcast, dtype=np.uint8)
        checkpoint.save(self._folder / "checkpoints", Checkpoint(memory, model, extra_arrays=arrays))

    def _restore(self, folder: Path, journal: Journal) -> None:
        memory, model, _, arrays = checkpoint.load(folder / "checkpoints", self._channel)
        if not isinstance(memory, ServerMemory) or model is None:
            raise DpcompError(f"{folder} holds no checkpoint of a server: name another folder")
        if (memory.seed, memory.pipeline) != (self.memory.seed, self.memory.pipeline):
            raise DpcompError(
                f"{folder} is of run {memory.seed} and layout {memory.layout}; this is run {self.memory.seed} and "
                f"layout {self.memory.layout}: name another folder"
            )
        if self._trusted_release is not None and memory.shared.version:
            last = replace(memory.address, round=memory.shared.version - 1)
            if not self._trusted_release.ledger.charged(last):
                raise DpcompError(
                    f"{folder} holds the release of {last}, which {self._trusted_release.ledger} never charged: "
                    "restore the newest ledger; what is spent cannot be taken back"
                )
        self.memory = replace(memory, older=self._still_received(memory.older))
        self.model, self._history, self.accepted = model, _broadcasts(arrays), []
        self._optimizer = replace(self._optimizer, velocity=arrays.get("velocity"))
        counted, self._journal = self.refusals.copy(), None  # what stands in the journal is not written again
        try:
            for version, payload in journal.payloads():
                if version == memory.shared.version:
                    self._take_payload(payload, PAYLOAD.record_of(payload).client)
                elif version > memory.shared.version:
                    warnings.warn(f"{folder}: an update accepted at version {version} is lost with it", stacklevel=3)
        finally:
            self._journal, self.refusals = journal, counted


def _broadcasts(arrays: Mapping[str, np.ndarray]) -> list[bytes]:
    count = sum(name.startswith("broadcast ") for name in arrays)
    return [arrays[f"broadcast {place}"].tobytes() for place in range(count)]

"""Server: accepts payloads, replies to clients, closes rounds, and brings returning clients up to date."""

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

LARGEST_VALUE = 2.0**64  # of an update: far above any sum of clipped gradients, far below the end of float32


class Accepted(NamedTuple):
    """An update that the server has accepted in the present round.

    Attributes:
        update: The decoded update.
        weight: Its weight in the mean.
        payload_bytes: The length of its payload.
    """

    update: Update
    weight: float
    payload_bytes: int


class Server:
    """Handles the messages of clients and closes rounds.

    Only accepted payloads and closed rounds change memory and model. With a folder, the server survives its process: it
    writes a payload to a journal before it replies, and a round to a checkpoint before it returns the broadcast; a new
    server with the same folder continues from there.

    `refusals` counts the messages that were not accepted, by reason. If the server is trusted, these counts depend on
    clean messages and are for research alone.

    **Privacy:** the transport must authenticate senders. A trusted server's reply to a client shows what the server has
    accepted of that client; and the sensitivity of a round is one clip norm a client, so nobody may send as several
    clients.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        memory: The server's memory: `pipeline.init_server(layout, seed)`.
        model: The initial parameters as a (d,) vector, the same at all ends.
        optimizer: Computes a round's step from the mean of its updates.
        late_policy: Whether updates that arrive after their round are accepted, and with what weight.
        trusted_release: Makes the releases of a trusted server; None if the server is not trusted.
        clients: The number of clients; messages from a client with this number or a higher one are refused.
        folder: Where journal and checkpoints are written; None writes nothing.

    Raises:
        NotPrivate: `late_policy` accepts late updates under a trusted server; a late update beside a fresh one has
            twice the sensitivity.
        ValueError: `trusted_release` is None although the server is trusted, or given although it is not, or is of
            another pipeline.
        DpcompError: The folder is that of another run or of a client, is in use, or holds a release that the ledger of
            `trusted_release` was never charged for.

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
                f"late_policy={late_policy} under a trusted server: a late update beside a fresh one has twice the "
                "sensitivity. Use Reject()"
            )
        if channel.server_sees_clean != (trusted_release is not None):
            raise ValueError(
                f"trusted_release={trusted_release}: give one if the pipeline has trust='server', and only then"
            )
        if trusted_release is not None and trusted_release.pipeline.channel.identity != channel.identity:
            raise ValueError(
                "trusted_release is of another pipeline than the channel: build both from the same pipeline"
            )
        self._channel, self._late_policy, self._trusted_release = channel, late_policy, trusted_release
        self.memory, self.model, self._optimizer = memory, model, optimizer
        self._velocity: np.ndarray | None = None  # the optimiser's, after the last round
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
                    self._save(self.memory, self.model, self._velocity, self._history)
                on_failure.pop_all()

    def handle(self, message: bytes, sender: int) -> bytes | None:
        """Handle a client's payload or hello.

        A message that is damaged, or of another run or pipeline, is counted in `refusals` and gets no reply.

        Args:
            message: The bytes that arrived.
            sender: The number of the client that sent it, as the transport has authenticated it.

        Returns:
            The reply to send to that client; None for no reply.

        Raises:
            DpcompError: The journal cannot be written, so the payload is not accepted; or this server was closed.
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
        """Close the round: aggregate its updates, move the model, and return the broadcast for all clients.

        After an error memory and model are as they were.

        Returns:
            The payload that brings each client to the next version.

        Raises:
            BudgetExhausted: A trusted server's budget allows no further release.
            DpcompError: This server was closed.
            OSError: The round could not be saved. A trusted server has charged it, so the next call releases zeros.
        """
        self._refuse_closed()
        step, velocity = self._optimizer.step(self._mean(), self._velocity)
        broadcast, memory = exchange.broadcast(self._channel, step, self.memory)
        assert memory.step is not None
        model, history = self.model + memory.step.dense(), [*self._history, broadcast]
        memory = replace(memory, older=self._still_received((*self.memory.older, self.memory.shared)))
        while sum(map(len, history)) > self._least_snapshot_bytes:
            del history[0]
        if self._journal is not None:
            self._save(memory, model, velocity, history)  # first: an unsaved round must not be broadcast
            self._forget(self._journal, memory.shared.version)
        self.memory, self.model, self._velocity, self._history, self.accepted = memory, model, velocity, history, []
        return broadcast

    def restart(self) -> None:
        """Continue from the state in the folder, as a new process does; no accepted payload is lost.

        Raises:
            ValueError: The server has no folder.
            DpcompError: As for the constructor.
        """
        if self._folder is None or self._journal is None:
            raise ValueError("a server without a folder has no saved state to restart from: give it a folder")
        self._restore(self._folder, self._journal)

    def close(self) -> None:
        """Close the folder, so that another process may use it; this server handles no message after that."""
        if self._journal is not None:
            self._journal.close()
            self._closed = True

    def _take_payload(self, payload: bytes, sender: int) -> bytes:
        opened = OpenedPayload.of(payload)
        frame = opened.frame
        self._refuse_foreign(frame.pipeline, frame.run, frame.client, sender)
        try:
            update, memory = exchange.receive(self._channel, opened, self.memory)
            if np.abs(update.values).max(initial=0.0) > LARGEST_VALUE:
                raise CorruptPayload(f"the update holds values above {LARGEST_VALUE:g}, whose sum float32 may not hold")
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
        link, at_pending = self.memory.link(hello.client), self.memory.shared_at(hello.pending_version)
        same = (hello.link_count, hello.link) == (link.count, link.digest)
        client_has_link = same or hello.pending == link.digest != NO_DIGEST
        whole_link = b"" if client_has_link else write_link(link, self.memory.layout)
        in_time = (at_pending.version, at_pending.digest) == (hello.pending_version, hello.pending_shared)
        usable = hello.pending != NO_DIGEST and same and in_time
        since = self._broadcasts_since(hello.version, hello.shared)
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
        counted, shared = self.memory.link(client), self.memory.shared
        reply = Reply(
            answers=message_digest(message),
            client=client,
            version=shared.version,
            shared=shared.digest,
            link_count=counted.count,
            link=counted.digest,
            usable=int(usable),
            link_bytes=len(link),
            snapshot=int(snapshot),
        )
        return REPLY.seal(reply, link + body)

    def _broadcasts_since(self, version: int, chained: bytes) -> bytes | None:
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
            # A crash came after the charge: a second release would not be charged, so the step is zero.
            return mean_of_released(self._channel, [], self.memory)
        return release.mean(updates, self.memory)

    def _refuse_foreign(self, pipeline: bytes, run: int, client: int, sender: int) -> None:
        if pipeline != self.memory.pipeline:
            raise VersionMismatch(
                f"the message is of pipeline and layout {pipeline.hex()}, this server has {self.memory.pipeline.hex()}"
                ": both ends must be built from one configuration",
                reason="pipeline",
            )
        if run != self.memory.seed.number:
            raise VersionMismatch(
                f"the message is of run {run}, this server has run {self.memory.seed.number}: build both ends with the "
                "same PublicSeed",
                reason="run",
            )
        if client != sender or not 0 <= client < self._clients:
            raise VersionMismatch(
                f"the message names client {client} and came from client {sender}: a client sends its own messages, "
                f"and has a number below {self._clients}",
                reason="direction",
            )

    def _refuse_closed(self) -> None:
        if self._closed:
            raise DpcompError(f"this server was closed, and another may hold {self._folder}: open a new one")

    def _still_received(self, older: tuple[Shared, ...]) -> tuple[Shared, ...]:
        return older[-self._late_policy.max_age :] if self._late_policy.max_age else ()

    def _save(
        self,
        memory: ServerMemory,
        model: Float32[np.ndarray, "d"],
        velocity: Float32[np.ndarray, "d"] | None,
        history: list[bytes],
    ) -> None:
        assert self._folder is not None
        arrays: dict[str, np.ndarray] = {} if velocity is None else {"velocity": velocity}
        for place, broadcast in enumerate(history):
            arrays[f"broadcast {place}"] = np.frombuffer(broadcast, dtype=np.uint8)
        checkpoint.save(self._folder / "checkpoints", Checkpoint(memory, model, extra_arrays=arrays))

    def _forget(self, journal: Journal, version: int) -> None:
        """Delete the payloads of closed rounds, but for those that the checkpoint before the newest needs.

        A trusted server has charged a closed round, and can't release it again, so it needs none of its clean payloads.
        """
        journal.forget_before(version if self._channel.server_sees_clean else version - 1)

    def _restore(self, folder: Path, journal: Journal) -> None:
        memory, model, _, arrays = checkpoint.load(folder / "checkpoints", self._channel)
        if not isinstance(memory, ServerMemory) or model is None:
            raise DpcompError(f"{folder} holds no checkpoint of a server: give another folder")
        if (memory.seed, memory.pipeline) != (self.memory.seed, self.memory.pipeline):
            raise DpcompError(
                f"{folder} is of run {memory.seed} and layout {memory.layout}; this is run {self.memory.seed} and "
                f"layout {self.memory.layout}: give another folder"
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
        self._velocity = arrays.get("velocity")
        self._forget(journal, memory.shared.version)  # a crash may have come between the checkpoint and this
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

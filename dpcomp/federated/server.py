"""Server: accepts payloads, replies to clients, closes rounds, and brings returning clients up to date."""

import math
import os
import secrets
import threading
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from dpcomp.core.address import SERVER
from dpcomp.core.errors import BudgetExhausted, CorruptPayload, DpcompError, NotPrivate, VersionMismatch
from dpcomp.core.storage import make_folder
from dpcomp.federated.aggregation import (
    Accepted,
    AcceptedUpdates,
    ClippedSum,
    ReleasedSum,
    RoundSum,
    TrustedRelease,
    estimate_after,
    mean_of_released,
)
from dpcomp.federated.cohort import Cohort, enforced_cohort
from dpcomp.federated.journal import Journal
from dpcomp.federated.late import LatePolicy, Reject
from dpcomp.federated.messages import (
    BROADCAST_BYTES,
    FOREIGN,
    HELLO,
    LONGEST_REASON,
    NO_DIGEST,
    REFUSALS,
    REPLY,
    WITHDRAWAL,
    WITHDRAWAL_REASONS,
    Hello,
    Reply,
    Snapshot,
    WithdrawalReason,
    largest_message,
    name_of,
    receipt_of,
    seal_receipt,
    write_broadcasts,
    write_link,
    write_snapshot,
)
from dpcomp.federated.saved_state import ledger_arrays, refuse_older_ledger, refuse_other_genesis
from dpcomp.federated.server_optimizers import Moments, ServerOptimizer, ServerRule
from dpcomp.federated.traffic import Traffic, counts_as_arrays, counts_in_arrays
from dpcomp.wire import checkpoint, exchange
from dpcomp.wire.channel import Channel
from dpcomp.wire.checkpoint import Checkpoint
from dpcomp.wire.frame import Frame
from dpcomp.wire.headers import Payload, ShortPayload, read, unsealed
from dpcomp.wire.memory import ServerMemory, Shared
from dpcomp.wire.update import Update

LARGEST_VALUE = 2.0**64  # of an update: far above any sum of clipped gradients, far below the end of float32


class Server:
    """Handles the messages of clients and closes rounds; every method may be called from any thread.

    Only accepted payloads and closed rounds change memory and model. With a folder, the server survives its process: it
    writes a payload to a journal before it replies, and a round to a checkpoint before it returns the broadcast; a new
    server with the same folder continues from there.

    A client counts once in a round, whatever it sends. Where a cohort is drawn, only its clients count: under a trusted
    server whose pipeline samples clients always, else if `cohort` is given.

    An update is added to the round's sum as it arrives, and is not kept. The sum is exact, so the broadcast does not
    depend on the order in which updates came.

    `refusals` counts the messages that were not accepted, by reason. If the server is trusted, these counts depend on
    clean messages and are for research alone. `withdrawn` says of each client that takes no further part why not,
    `given_up` which clients can send none in the present round alone, and `awaited` for how many it still waits.

    **Privacy:** the transport must authenticate senders. A trusted server's reply to a client shows what the server has
    accepted of that client; and the sensitivity of a round is one clip norm a client, so nobody may send as several
    clients.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        memory: The server's memory: `pipeline.init_server(layout, seed)`. If it names no run id, the server draws one.
        model: The initial parameters as a (d,) vector, the same at all ends.
        optimizer: Computes a round's step from the mean of its updates.
        late_policy: Whether updates that arrive after their round are accepted, and with what weight.
        trusted_release: Makes the releases of a trusted server; None if the server is not trusted.
        clients: The number of clients; messages from a client with this number or a higher one are refused.
        cohort: Draws the clients of each round; None accepts updates of all clients. Under a trusted server it is drawn
            as the pipeline says, from the secret of `trusted_release`.
        largest_update: The largest L2 norm of a decoded update; updates above it are refused. `largest_update(...)`
            computes it from public numbers. A trusted server clips, and needs none.
        folder: Where journal and checkpoints are written; None writes nothing.

    Raises:
        NotPrivate: The server is trusted, and `late_policy` accepts late updates, of which one beside a fresh one has
            twice the sensitivity; or `cohort` is given, although the pipeline says how clients are drawn.
        ValueError: `trusted_release` is None although the server is trusted, or given although it is not, or is of
            another pipeline; a cohort is drawn or clients send differences, but `clients` is not given; more clients
            than the pipeline's largest cohort may come; the optimiser has momentum behind feedback, and was not asked
            for it; late differences would not count in full; the model does not fit the memory's layout; or the memory
            names another first model.
        DpcompError: The folder is that of another federation or of a client, is in use, lacks its journal, or holds a
            release that the ledger of `trusted_release` was never charged for.

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
        optimizer: ServerRule = ServerOptimizer(),
        late_policy: LatePolicy = Reject(),
        trusted_release: TrustedRelease | None = None,
        clients: int = SERVER,
        cohort: Cohort | None = None,
        largest_update: float = math.inf,
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
        optimizer.refuse_feedback(channel)
        if channel.sends_differences:
            _refuse_differences(channel, late_policy, clients)
        if not largest_update > 0:
            raise ValueError(f"largest_update={largest_update}: the largest norm of an update is a number above 0")
        self._lock = threading.RLock()
        self._channel, self._late_policy, self._trusted_release = channel, late_policy, trusted_release
        self._cohort = enforced_cohort(cohort, trusted_release, clients)
        self._ended = False  # whether no further round is closed
        self._cohorts: dict[int, np.ndarray] = {}  # version → the clients of that round, ascending
        self._largest_update, self._largest_message = largest_update, largest_message(memory.layout.size)
        self._clients, self._folder, self._journal, self._closed = clients, None, None, False
        self._interrupted = False
        self.refusals: Counter[str] = Counter()
        self.traffic = Traffic()
        self.withdrawn: dict[int, WithdrawalReason] = {}
        self._optimizer = optimizer
        self._begin(memory.with_first_model(model), model, {}, None, [])
        self._genesis = self.memory.genesis
        if folder is None:
            self._draw_run_id()
        else:
            self._folder = Path(folder)
            make_folder(self._folder)
            self._open_folder(self._folder)

    @property
    def sees_clean(self) -> bool:
        """Whether clients send clean updates, so that what is counted of their messages is private."""
        return self._channel.server_sees_clean

    @property
    def rounds_ended(self) -> bool:
        """Whether `end_rounds` was called, so that no update is taken."""
        return self._ended

    def handle(self, message: bytes, sender: int) -> bytes | None:
        """Handle a client's payload or hello.

        A message that is damaged, too long or of another client than its sender is counted in `refusals`, and gets no
        reply. A client of another federation gets a reply that says so.

        Args:
            message: The bytes that arrived.
            sender: The number of the client that sent it, as the transport has authenticated it.

        Returns:
            The reply to send to that client; None for no reply.

        Raises:
            DpcompError: The journal cannot be written, so the payload is not accepted; or this server was closed.
        """
        with self._lock:
            self._refuse_closed()
            reply = self._reply_to(message, sender)
            self.traffic = self.traffic.after(len(message), 0 if reply is None else len(reply))
            return reply

    @property
    def awaited(self) -> int:
        """For how many clients the present round still waits: those that may send, have not, and did not withdraw.

        Raises:
            ValueError: As `cohort` does.
        """
        with self._lock:
            asked, version = self.cohort(), self.memory.shared.version
            links, away = self.memory.links, self.given_up.union(self.withdrawn)
            last = {client: links[client].last for client in away if client in links}
            sent = {client for client, address in last.items() if address is not None and address.round == version}
            return len(asked) - self._in_time - len((away - sent).intersection(asked))

    @property
    def next_round_only(self) -> int:
        """How many clients may send in a later round, but not in the present one: not asked, or they gave it up.

        Raises:
            DpcompError: As `cohort` does.
        """
        with self._lock:
            gone = set(self.withdrawn)
            unasked = 0 if self._cohort is None else self._clients - len(gone.union(self.cohort()))
            return unasked + len((self.given_up - gone).intersection(self.cohort()))

    def cohort(self) -> list[int]:
        """Return the clients that are asked for an update in the present round.

        They are drawn at the first call in a round, and written to the journal before they are returned; each later
        call returns the same, in a later process too. Updates of other clients are refused.

        **Privacy:** under a trusted server that samples, the draw is secret: tell only those who were drawn.

        Returns:
            Their numbers, ascending; all clients, where none are drawn.

        Raises:
            DpcompError: The journal cannot be written; or this server was closed.
            ValueError: The server accepts all clients, and does not know their number.
        """
        with self._lock:
            self._refuse_closed()
            if self._cohort is not None:
                return self._drawn(self.memory.shared.version).tolist()
            if self._clients == SERVER:
                raise ValueError("this server accepts all clients, and does not know their number: give it clients=")
            return list(range(self._clients))

    def asks(self, client: int) -> bool:
        """Return whether a client is asked for an update in the present round, as `cohort` says.

        **Privacy:** under a trusted server that samples, tell this to the client alone.

        Raises:
            DpcompError: The journal cannot be written; or this server was closed.
        """
        with self._lock:
            self._refuse_closed()
            asked = 0 <= client < self._clients and self._is_drawn(client, self.memory.shared.version)
            return asked and not self._ended

    def close_round(self) -> bytes:
        """Close the round: aggregate its updates, move the model, and return the broadcast for all clients.

        After an error memory and model are as they were.

        Returns:
            The payload that brings each client to the next version.

        Raises:
            BudgetExhausted: A trusted server's budget allows no further release. Its clean payloads are deleted, since
                none of them can be released later; a restarted server is in the same round without them.
            DpcompError: This server was closed.
            OSError: The round could not be saved. A trusted server has charged it, so the next call releases zeros.
        """
        with self._lock:
            self._refuse_closed()
            mean, estimate = self._mean(), None
            if self._channel.sends_differences:
                mean = estimate_after(mean, self._estimate)
                estimate = mean.dense()
            step, moments = self._optimizer.step(mean, self._moments)
            broadcast, memory = exchange.broadcast(self._channel, step, self.memory)
            assert memory.step is not None
            model, history = self.model + memory.step.dense(), [*self._history, broadcast]
            memory = replace(memory, older=self._still_received((*self.memory.older, self.memory.shared)))
            if self._sum.next_clip_norm is not None:
                memory = replace(memory, clip_norm=self._sum.next_clip_norm)
            while sum(BROADCAST_BYTES + len(kept.body) for kept in history) > self._least_snapshot_bytes:
                del history[0]
            if self._journal is not None:
                self._save(memory, model, moments, estimate, history)  # first: an unsaved round must not be broadcast
                self._forget(self._journal, memory.shared.version)
            oldest = self._oldest_cohort(memory.shared.version)
            self._cohorts = {version: drawn for version, drawn in self._cohorts.items() if version >= oldest}
            self._begin(memory, model, moments, estimate, history)
            return broadcast.message

    def end_rounds(self) -> None:
        """Take no update any more, until `restart`, since no further round is closed; questions are answered as before.

        A trusted server deletes the clean payloads of the round that is not closed, for which nothing was charged.

        Raises:
            DpcompError: This server was closed.
        """
        with self._lock:
            self._refuse_closed()
            self._ended = True
            if self._journal is not None and self._channel.server_sees_clean:
                self._forget(self._journal, self.memory.shared.version + 1)

    def between_rounds(self) -> Checkpoint:
        """Return what another server goes on from with `go_on`; the secrets of the clients are left out.

        Raises:
            DpcompError: This round has an update or a cohort already.
        """
        with self._lock:
            if len(self.accepted) or self.memory.shared.version in self._cohorts:
                raise DpcompError("the round has begun, so there is no state between two rounds: close it first")
            return Checkpoint(
                self.memory,
                self.model,
                extra_arrays=_beside(self._moments, self._estimate, self._history),
            )

    def go_on(self, saved: Checkpoint) -> None:
        """Begin the round that another server was about to begin, in place of the first one.

        Args:
            saved: What its `between_rounds` returned.

        Raises:
            DpcompError: The state is of another federation, or this server has closed a round or has a folder.
        """
        with self._lock:
            memory, model = saved.memory, saved.model
            if self._folder is not None or self.memory.shared.version:
                raise DpcompError(
                    "a server goes on from a state before its first round, and without a folder: make one"
                )
            mine = self.memory
            same = (memory.seed, memory.pipeline, memory.genesis.first_model)
            if model is None or not isinstance(memory, ServerMemory):
                raise DpcompError("this is no state of a server: give what between_rounds returned")
            if same != (mine.seed, mine.pipeline, mine.genesis.first_model):
                raise DpcompError(
                    "the state is of another run, pipeline or first model than this server: make the server as the one "
                    "that it was taken of"
                )
            self._take_up(memory, model, saved.extra_arrays)

    def restart(self) -> None:
        """Continue from the state in the folder, as a new process does; no accepted payload is lost.

        Raises:
            ValueError: The server has no folder.
            DpcompError: As for the constructor.
        """
        with self._lock:
            if self._folder is None or self._journal is None:
                raise ValueError("a server without a folder has no saved state to restart from: give it a folder")
            self._restore(self._folder, self._journal)

    def close(self) -> None:
        """Close the folder, so that another process may use it; this server handles no message after that."""
        with self._lock:
            if self._journal is not None:
                self._journal.close()
                self._closed = True

    def _reply_to(self, message: bytes, sender: int) -> bytes | None:
        if len(message) > self._largest_message:  # before anything of it is hashed or decoded
            self.refusals["length"] += 1
            return None
        try:
            if HELLO.begins(message):
                return self._take_hello(message, sender)
            if WITHDRAWAL.begins(message):
                return self._take_withdrawal(message, sender)
            return self._take_payload(message, sender, self._journal)
        except CorruptPayload:
            self.refusals["corrupt"] += 1
        except VersionMismatch as error:
            self.refusals[error.reason] += 1
        return None

    def _begin(
        self,
        memory: ServerMemory,
        model: Float32[np.ndarray, "d"],
        moments: Moments,
        estimate: Float32[np.ndarray, "d"] | None,
        history: list[Payload],
    ) -> None:
        """Begin a round without updates."""
        self.memory, self.model = memory, model
        self._moments = moments  # the optimiser's, after the last round
        self._estimate = estimate  # of the mean update, where clients send differences
        self._history = history  # the last broadcasts, as long as they are shorter than a snapshot
        self._snapshot: bytes | None = None  # made once a version, for the first client that needs it
        self.accepted, self._interrupted = AcceptedUpdates(), False
        self.given_up = set[int]()
        self._in_time = 0  # updates of the present round, of which a client sends one
        self._sum: RoundSum = (
            ReleasedSum(self._channel, memory, self._clients if self._channel.sends_differences else None)
            if self._trusted_release is None
            else ClippedSum(self._trusted_release, memory)
        )

    def _take_payload(self, message: bytes, sender: int, journal: Journal | None) -> bytes:
        """Add an update to the round, once its payload is in the journal, and return the reply."""
        arrived, refusal = unsealed(message), ""
        self._refuse_other_sender(arrived.client, sender)
        if isinstance(arrived, ShortPayload):
            try:
                payload = arrived.read_against(self.memory)
            except VersionMismatch as error:
                self.refusals[error.reason] += 1
                return self._reply(message, sender, refusal="unread")
        else:
            payload = arrived
            if foreign := self._foreign(payload.frame.pipeline, payload.frame.run):
                return self._refusal(message, sender, foreign)
        frame = payload.frame
        try:
            exchange.read_at_server(self._channel, payload, self.memory)
            self._refuse_out_of_turn(frame)
            update, memory = exchange.receive(self._channel, payload, self.memory)
            self._refuse_large(update)
        except VersionMismatch as error:
            refusal = error.reason
        except CorruptPayload:
            refusal = "corrupt"
        else:
            weight = self._late_policy.weight(memory.shared.version - frame.round)
            if journal is not None:
                journal.append(memory.shared.version, message, frame.client)
            # An interrupt in between would leave a part of the update in the sum, and the client free to send it again.
            self._interrupted = True
            self._sum.add(update, weight)
            self.memory = memory
            self.accepted.append(Accepted(frame.client, weight, len(message)))
            self._in_time += frame.round == memory.shared.version
            self._interrupted = False
            self.withdrawn.pop(frame.client, None)
            self.given_up.discard(frame.client)
            shared = memory.shared
            # To a late update there is a whole reply, which says where the server is.
            if isinstance(arrived, ShortPayload) and (frame.version, frame.shared) == (shared.version, shared.digest):
                return seal_receipt(receipt_of(frame, payload.tag, memory.genesis.run_id))
        if refusal:
            self.refusals[refusal] += 1
        return self._reply(message, frame.client, refusal=refusal)

    def _refuse_out_of_turn(self, frame: Frame) -> None:
        """Refuse an update of a round that does not count, of a client that was not asked, or beside another one."""
        version, last = self.memory.shared.version, self.memory.link(frame.client).last
        if frame.round > frame.version or version - frame.round > self._late_policy.max_age:
            raise VersionMismatch(
                f"client {frame.client} sends an update of round {frame.round}, coded at version {frame.version}; the "
                f"server is at version {version}, and late_policy={self._late_policy}: send the update of a round "
                "before the next broadcast",
                reason="round",
            )
        if last is not None and frame.round <= last.round:
            raise VersionMismatch(
                f"client {frame.client} sends another update of round {frame.round}, after one of round {last.round}: "
                "a client counts once in a round. Wait for the next broadcast",
                reason="twice",
            )
        if self._ended:
            raise VersionMismatch(
                f"client {frame.client} sends an update of round {frame.round}, but no further round is closed",
                reason="uninvited",
            )
        if not self._is_drawn(frame.client, frame.round):
            raise VersionMismatch(
                f"client {frame.client} sends an update of round {frame.round}, for which it was not drawn: send one "
                "where the server asks for it",
                reason="uninvited",
            )

    def _refuse_large(self, update: Update) -> None:
        """Refuse values that no client of this configuration sends."""
        if np.abs(update.values).max(initial=0.0) > LARGEST_VALUE:
            raise CorruptPayload(f"the update holds values above {LARGEST_VALUE:g}, whose sum float32 may not hold")
        norm = float(np.linalg.norm(update.values.astype(np.float64)))
        if norm > self._largest_update:
            raise VersionMismatch(
                f"client {update.address.client} sends an update of norm {norm:g}, above largest_update="
                f"{self._largest_update:g}: check its clip norm, learning rate and noise",
                reason="size",
            )

    def _is_drawn(self, client: int, version: int) -> bool:
        """Return whether a client was drawn for a round; where none are drawn, all are."""
        if self._cohort is None:
            return True
        drawn = self._drawn(version)
        place = int(np.searchsorted(drawn, client))
        return place < len(drawn) and bool(drawn[place] == client)

    def _drawn(self, version: int) -> Int64[np.ndarray, "chosen"]:
        """Return the clients that were drawn for a round; those of the present round are drawn now if need be."""
        assert self._cohort is not None
        if version not in self._cohorts and version == self.memory.shared.version:
            drawn = self._cohort.draw(self._clients, self.memory)
            if self._journal is not None:
                self._journal.keep_cohort(version, drawn)
            self._cohorts[version] = drawn
        return self._cohorts.get(version, np.empty(0, np.int64))  # nobody was drawn for a round that nobody asked about

    def _take_hello(self, message: bytes, sender: int) -> bytes:
        hello, _ = HELLO.unseal(message)
        self._refuse_other_sender(hello.client, sender)
        if foreign := self._foreign(hello.pipeline, hello.run) or self._other_genesis(hello):
            return self._refusal(message, hello.client, foreign)
        link, at_pending = self.memory.link(hello.client), self.memory.shared_at(hello.pending_version)
        same = (hello.link_count, hello.link) == (link.count, link.digest)
        client_has_link = same or hello.pending == link.digest != NO_DIGEST
        whole_link = b"" if client_has_link else write_link(link, self.memory.layout)
        in_time = (at_pending.version, at_pending.digest) == (hello.pending_version, hello.pending_shared)
        usable = hello.pending != NO_DIGEST and same and in_time
        # A client that does not know the run id yet does not know the digest that begins with it.
        new = hello.run_id == NO_DIGEST and hello.version == 0
        begun = self._digest_at_start() if new else hello.shared
        since = self._broadcasts_since(hello.version, begun)
        snapshot = since is None
        if since is None:
            if self._snapshot is None:
                self._snapshot = write_snapshot(Snapshot(self.memory.shared, self.model), self.memory.layout)
            since = self._snapshot
        return self._reply(message, hello.client, usable=usable, link=whole_link, snapshot=snapshot, body=since)

    def _take_withdrawal(self, message: bytes, sender: int) -> bytes:
        withdrawal, _ = WITHDRAWAL.unseal(message)
        self._refuse_other_sender(withdrawal.client, sender)
        foreign = self._foreign(withdrawal.pipeline, withdrawal.run) or self._other_run(withdrawal.run_id)
        if foreign:
            return self._refusal(message, withdrawal.client, foreign)
        if not 0 <= withdrawal.reason < len(WITHDRAWAL_REASONS):
            raise CorruptPayload(f"a withdrawal has the reason {withdrawal.reason}, which this dpcomp does not know")
        reason = WITHDRAWAL_REASONS[withdrawal.reason]
        if reason == "round":  # kept in no file, since a client says it again as long as the round lasts
            last = self.memory.link(withdrawal.client).last
            if last is None or last.round < self.memory.shared.version:
                self.given_up.add(withdrawal.client)
            return self._reply(message, withdrawal.client)
        if self._journal is not None:
            self._journal.keep_withdrawal(withdrawal.client, reason)
        self.withdrawn[withdrawal.client] = reason
        return self._reply(message, withdrawal.client)

    def _digest_at_start(self) -> bytes:
        memory = self.memory
        return self._channel.shared_at_start(memory.layout, memory.seed, memory.genesis).digest

    def _reply(
        self,
        message: bytes,
        client: int,
        *,
        usable: bool = False,
        link: bytes = b"",
        snapshot: bool = False,
        body: bytes = b"",
        refusal: str = "",
    ) -> bytes:
        counted, shared = self.memory.link(client), self.memory.shared
        reply = Reply(
            answers=name_of(message),
            run_id=self.memory.genesis.run_id,
            client=client,
            version=shared.version,
            shared=shared.digest,
            link_count=counted.count,
            link=counted.digest,
            usable=int(usable),
            link_bytes=len(link),
            snapshot=int(snapshot),
            refusal=REFUSALS.index(refusal),
        )
        return REPLY.seal(reply, link + body)

    def _broadcasts_since(self, version: int, chained: bytes) -> bytes | None:
        """Return the broadcasts from a version to the present one; None where they are longer than a snapshot."""
        shared = self.memory.shared
        if (version, chained) == (shared.version, shared.digest):
            return b""
        place = version - (shared.version - len(self._history))
        if not 0 <= place < len(self._history) or self._history[place].frame.shared != chained:
            return None
        return write_broadcasts(self._history[place:])

    @property
    def _least_snapshot_bytes(self) -> int:
        return 4 * self.memory.layout.size * (1 if self.memory.shared.reference is None else 2)

    def _mean(self) -> Update:
        release = self._trusted_release
        if release is not None and release.ledger.charged(self.memory.address):
            # A crash came after the charge: a second release would not be charged, so the step is zero.
            return mean_of_released(self._channel, [], self.memory)
        try:
            return self._sum.mean()
        except BudgetExhausted:
            if self._journal is not None:  # no budget is ever raised, so these clean payloads can't be released later
                self._forget(self._journal, self.memory.shared.version + 1)
            raise

    def _foreign(self, pipeline: bytes, run: int) -> VersionMismatch | None:
        """Return why a message is of another configuration or run; None if it is not."""
        if pipeline != self.memory.pipeline:
            return VersionMismatch(
                f"the message is of pipeline and layout {pipeline.hex()}, this server has {self.memory.pipeline.hex()}"
                ": both ends must be built from one configuration",
                reason="pipeline",
            )
        if run != self.memory.seed.number:
            return VersionMismatch(
                f"the message is of run {run}, this server has run {self.memory.seed.number}: build both ends with the "
                "same PublicSeed",
                reason="run",
            )
        return None

    def _other_genesis(self, hello: Hello) -> VersionMismatch | None:
        """Return why a client began another federation than this one; None if it did not."""
        mine = self.memory.genesis
        if hello.first_model != mine.first_model:
            return VersionMismatch(
                f"the client began with the first model {hello.first_model.hex()}, this server with "
                f"{mine.first_model.hex()}: give both ends the same first model",
                reason="model",
            )
        return self._other_run(hello.run_id)

    def _other_run(self, run_id: bytes) -> VersionMismatch | None:
        """Return why a client takes part in another federation than this one; None if it does not."""
        mine = self.memory.genesis.run_id
        if run_id in (NO_DIGEST, mine):
            return None
        return VersionMismatch(
            f"the client takes part in run id {run_id.hex()}, this server runs {mine.hex()}, another federation of the "
            "same seed, or one of other terms: ask the server that it began with, or begin anew in an empty folder",
            reason="run",
        )

    def _refusal(self, message: bytes, client: int, foreign: VersionMismatch) -> bytes:
        """Count a message of another federation, and return the reply that says so."""
        assert foreign.reason in FOREIGN
        self.refusals[foreign.reason] += 1
        return self._reply(message, client, refusal=foreign.reason, body=str(foreign).encode()[:LONGEST_REASON])

    def _refuse_other_sender(self, client: int, sender: int) -> None:
        if client != sender or not 0 <= client < self._clients:
            raise VersionMismatch(
                f"the message names client {client} and came from client {sender}: a client sends its own messages, "
                f"and has a number below {self._clients}",
                reason="direction",
            )

    def _refuse_closed(self) -> None:
        if self._closed:
            raise DpcompError(f"this server was closed, and another may hold {self._folder}: open a new one")
        if self._interrupted:
            raise DpcompError(
                "this server was interrupted while it counted an update, which may be in the sum in part: call "
                "restart(), which counts the round anew from its folder; without a folder, make a new server"
            )

    def _still_received(self, older: tuple[Shared, ...]) -> tuple[Shared, ...]:
        return older[-self._late_policy.max_age :] if self._late_policy.max_age else ()

    def _draw_run_id(self) -> None:
        """Draw a run id, unless the memory was made with one; of all streams, only secret dither derives from it."""
        genesis = self.memory.genesis
        if genesis.run_id == NO_DIGEST and not self.memory.shared.version:
            self.memory = self.memory.with_genesis(replace(genesis, run_id=secrets.token_bytes(len(NO_DIGEST))))

    def _open_folder(self, folder: Path) -> None:
        path, begun = folder / "journal.db", checkpoint.exists(folder / "checkpoints")
        if begun and not path.exists():
            raise DpcompError(
                f"{folder} holds checkpoints, but no {path.name}: payloads that were called accepted are missing. "
                "Restore both from one copy"
            )
        if not begun and not path.exists():
            self._draw_run_id()
            self._journal = Journal.create(path, self.memory.genesis.run_id)
        else:
            self._journal = Journal(path)
        with ExitStack() as on_failure:
            on_failure.callback(self._journal.close)
            if begun:
                self._restore(folder, self._journal)
            else:
                self._adopt(folder, self._journal)
            on_failure.pop_all()

    def _adopt(self, folder: Path, journal: Journal) -> None:
        """Begin with a new journal, or one whose server was killed before it saved its first checkpoint."""
        if journal.count or journal.cohorts():
            raise DpcompError(
                f"{folder} holds the journal of a server, but no checkpoint: restore both from one copy, or give an "
                "empty folder"
            )
        self.memory = self.memory.with_genesis(replace(self._genesis, run_id=journal.run_id))
        refuse_other_genesis(folder, self.memory, self._genesis)
        self._save(self.memory, self.model, self._moments, self._estimate, self._history)

    def _save(
        self,
        memory: ServerMemory,
        model: Float32[np.ndarray, "d"],
        moments: Moments,
        estimate: Float32[np.ndarray, "d"] | None,
        history: list[Payload],
    ) -> None:
        assert self._folder is not None
        assert self._journal is not None
        arrays: dict[str, np.ndarray] = {"accepted": np.array([self._journal.count], dtype=np.int64)}
        arrays |= counts_as_arrays(self.traffic, self.refusals)
        if self._trusted_release is not None:
            arrays |= ledger_arrays(self._trusted_release.ledger)
        arrays |= _beside(moments, estimate, history)
        checkpoint.save(self._folder / "checkpoints", Checkpoint(memory, model, extra_arrays=arrays))

    def _forget(self, journal: Journal, version: int) -> None:
        """Delete the payloads and cohorts of closed rounds, but for those that the checkpoint before the newest needs.

        A trusted server has charged a closed round, and can't release it again, so it needs none of its clean payloads.
        """
        try:
            journal.forget_before(version if self._channel.server_sees_clean else version - 1)
            if self._cohort is not None:
                journal.forget_cohorts_before(self._oldest_cohort(version))
        except DpcompError as error:  # the round is saved, so it is closed; the next one deletes what is left here
            warnings.warn(
                f"{self._folder}: what came in closed rounds could not be deleted, and is tried again after the next "
                f"round or at the next start: {error}",
                stacklevel=3,
            )

    def _oldest_cohort(self, version: int) -> int:
        """Return the version of the first round whose cohort is needed once the server is at a version."""
        return version - 1 - self._late_policy.max_age

    def _restore(self, folder: Path, journal: Journal) -> None:
        memory, model, _, arrays = checkpoint.load(folder / "checkpoints", self._channel)
        if not isinstance(memory, ServerMemory) or model is None:
            raise DpcompError(f"{folder} holds no checkpoint of a server: give another folder")
        if (memory.seed, memory.pipeline) != (self.memory.seed, self.memory.pipeline):
            raise DpcompError(
                f"{folder} is of run {memory.seed} and layout {memory.layout}; this is run {self.memory.seed} and "
                f"layout {self.memory.layout}: give another folder"
            )
        refuse_other_genesis(folder, memory, self._genesis)
        journal.refuse_other(folder, memory.genesis.run_id, int(arrays["accepted"][0]))
        if self._trusted_release is not None:
            self._refuse_older_ledger(folder, memory, arrays, self._trusted_release)
        memory = self._take_up(memory, model, arrays)
        self._ended = False  # as in a new process: what was accepted is taken again
        self._forget(journal, memory.shared.version)  # a crash may have come between the checkpoint and this
        self._cohorts = journal.cohorts()
        # A restart in this process knows more than the checkpoint: no count ever falls.
        traffic, refusals = counts_in_arrays(arrays)
        self.traffic = max(self.traffic, traffic)
        counted, self.refusals = self.refusals | refusals, Counter()
        for version, payload in journal.payloads():
            if version == memory.shared.version:
                self._take_payload(payload, unsealed(payload).client, None)  # it is in the journal already
            elif version > memory.shared.version:
                warnings.warn(f"{folder}: an update accepted at version {version} is lost with it", stacklevel=3)
        self.withdrawn = journal.withdrawals()  # of them, some may have come after the client's update
        for reason in self.refusals:
            warnings.warn(
                f"{folder}: updates that were accepted before are refused now ({reason}): has the configuration "
                "changed within a round?",
                stacklevel=3,
            )
        self.refusals = counted

    def _take_up(
        self, memory: ServerMemory, model: Float32[np.ndarray, "d"], arrays: Mapping[str, np.ndarray]
    ) -> ServerMemory:
        """Begin the round after a saved one, and return the memory at its beginning."""
        memory = replace(memory, older=self._still_received(memory.older), dither_keys=self.memory.dither_keys)
        moments = {name: arrays[name] for name in self._optimizer.moments if name in arrays}
        self._begin(memory, model, moments, arrays.get("estimate"), _broadcasts(arrays, memory))
        return memory

    def _refuse_older_ledger(
        self, folder: Path, memory: ServerMemory, arrays: Mapping[str, np.ndarray], release: TrustedRelease
    ) -> None:
        """Refuse a ledger that lacks a charge of a release in the folder."""
        last = replace(memory.address, round=memory.shared.version - 1) if memory.shared.version else None
        if last is not None and not release.ledger.charged(last):
            raise DpcompError(
                f"{folder} holds the release of {last}, which {release.ledger} never charged: restore the newest "
                "ledger; what is spent cannot be taken back"
            )
        refuse_older_ledger(release.ledger, arrays)


def _refuse_differences(channel: Channel, late_policy: LatePolicy, clients: int) -> None:
    """Refuse a server whose sum of differences would not be the mean of what the clients take it for."""
    if clients == SERVER:
        raise ValueError(
            f"feedback={channel.feedback}: the server's estimate is the mean over all clients, of whom only some send "
            "in a round, so their number is needed: give Server(clients=...)"
        )
    if any(late_policy.weight(age) != 1 for age in range(1, late_policy.max_age + 1)):
        raise ValueError(
            f"late_policy={late_policy} beside feedback={channel.feedback}: a difference that counts less leaves the "
            "server's estimate apart from the client's for good. Use Reject(), or Weigh(exponent=0.0, max_age=...)"
        )


def _beside(
    moments: Moments, estimate: Float32[np.ndarray, "d"] | None, history: Sequence[Payload]
) -> dict[str, np.ndarray]:
    """Return what a server keeps besides memory and model, as arrays by name."""
    arrays: dict[str, np.ndarray] = dict(moments)
    if estimate is not None:
        arrays["estimate"] = estimate
    return arrays | {
        f"broadcast {place}": np.frombuffer(broadcast.in_full(), dtype=np.uint8)
        for place, broadcast in enumerate(history)
    }


def _broadcasts(arrays: Mapping[str, np.ndarray], memory: ServerMemory) -> list[Payload]:
    count = sum(name.startswith("broadcast ") for name in arrays)
    return [read(arrays[f"broadcast {place}"].tobytes(), memory) for place in range(count)]

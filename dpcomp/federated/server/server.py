"""Server: accepts payloads, replies to clients, closes rounds, and brings returning clients up to date."""

import math
import os
import threading
import warnings
from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Int64

from dpcomp.core.address import SERVER
from dpcomp.core.checks import whole_number
from dpcomp.core.errors import BudgetExhausted, CorruptPayload, DpcompError, VersionMismatch
from dpcomp.federated.messages import (
    FOREIGN,
    HELLO,
    LONGEST_REASON,
    NO_DIGEST,
    REFUSALS,
    REPLY,
    WITHDRAWAL,
    WITHDRAWAL_REASONS,
    Reply,
    WithdrawalReason,
    first_unsent_round,
    largest_message,
    name_of,
    receipt_of,
    seal_receipt,
    write_link,
)
from dpcomp.federated.server.aggregation import (
    Accepted,
    AcceptedUpdates,
    ClippedSum,
    ReleasedSum,
    RoundSum,
    TrustedRelease,
    estimate_after,
    mean_of_released,
)
from dpcomp.federated.server.cohort import Cohort, enforced_cohort
from dpcomp.federated.server.configuration import refuse_contradictions
from dpcomp.federated.server.folder import ServerFolder, charged_from
from dpcomp.federated.server.journal import Journal
from dpcomp.federated.server.late import LatePolicy, Reject
from dpcomp.federated.server.optimizers import ServerOptimizer, ServerRule
from dpcomp.federated.server.state import ServerState, other_configuration, other_genesis, other_run
from dpcomp.federated.server.traffic import Traffic
from dpcomp.wire import exchange
from dpcomp.wire.channel import Channel
from dpcomp.wire.checkpoint import Checkpoint
from dpcomp.wire.frame import Frame
from dpcomp.wire.headers import ShortPayload, unsealed
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

    A trusted server whose ledger was charged for a round before closes it without a release, since its noise may have
    been drawn: after a crash between the charge and the end of the round, and in each round that it plays again from a
    folder that was set back. A warning names these rounds when the folder is opened, and `forfeited` has them.

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
        TypeError: `optimizer` or `late_policy` is a class, and no instance of it.
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
        refuse_contradictions(channel, optimizer, late_policy, clients)
        if channel.server_sees_clean != (trusted_release is not None):
            raise ValueError(
                f"trusted_release={trusted_release}: give one if the pipeline has trust='server', and only then"
            )
        if trusted_release is not None and trusted_release.pipeline.channel.identity != channel.identity:
            raise ValueError(
                "trusted_release is of another pipeline than the channel: build both from the same pipeline"
            )
        if not largest_update > 0:
            raise ValueError(f"largest_update={largest_update}: the largest norm of an update is a number above 0")
        self._lock = threading.RLock()
        self._channel, self._late_policy, self._trusted_release = channel, late_policy, trusted_release
        self._cohort = enforced_cohort(cohort, trusted_release, clients)
        self._ended = False  # whether no further round is closed
        self._forfeited: tuple[int, ...] = ()  # closed rounds without a release
        self._cohorts: dict[int, np.ndarray] = {}  # version → the clients of that round, ascending
        self._largest_update, self._largest_message = largest_update, largest_message(memory.layout.size)
        self._clients, self._closed, self._interrupted = clients, False, False
        self.refusals: Counter[str] = Counter()
        self.traffic = Traffic()
        self.withdrawn: dict[int, WithdrawalReason] = {}
        self._withdrawn_from: dict[int, int] = {}  # client → the first round of which it sends no update
        self._optimizer = optimizer
        first = ServerState(memory=memory.with_first_model(model), model=model, moments={})
        self._folder: ServerFolder | None = None
        if folder is None:
            self._begin(first.with_run_id())
            return
        self._begin(first)
        ledger = None if trusted_release is None else trusted_release.ledger
        with ExitStack() as on_failure:
            self._folder = ServerFolder(folder, first, channel, ledger)
            on_failure.callback(self._folder.close)
            self._restore(self._folder)
            on_failure.pop_all()

    @property
    def channel(self) -> Channel:
        """The channel of both ends."""
        return self._channel

    @property
    def sees_clean(self) -> bool:
        """Whether clients send clean updates, so that what is counted of their messages is private."""
        return self._channel.server_sees_clean

    @property
    def clients(self) -> int:
        """The number of clients, which have the numbers below it; `SERVER`, the highest number, where it is unknown."""
        return self._clients

    @property
    def rounds(self) -> int | None:
        """The number of rounds that it closes, as the terms of the federation say it; None for no end."""
        return self.memory.rounds

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
    def forfeited(self) -> tuple[int, ...]:
        """The rounds that have no release, ascending: closed ones, and those to come that were charged already."""
        with self._lock:
            release = self._trusted_release
            ahead = [] if release is None else charged_from(release.ledger, self.memory)
            return (*self._forfeited, *ahead)

    @property
    def awaited(self) -> int:
        """For how many clients the present round still waits: those that may send, have not, and did not withdraw.

        Raises:
            ValueError: As `cohort` does.
        """
        with self._lock:
            asked = self.cohort()
            return len(asked) - self._in_time - self._missing(asked, self.given_up.union(self.withdrawn))

    @property
    def expected(self) -> int:
        """How many clients may show in this round that they take part: those that were asked and have not withdrawn.

        Raises:
            ValueError: As `cohort` does.
        """
        with self._lock:
            asked = self.cohort()
            return len(asked) - self._missing(asked, set(self.withdrawn))

    @property
    def present(self) -> int:
        """How many clients have shown in this round that they take part: by an update, or by giving the round up.

        Raises:
            DpcompError: As `cohort` does.
        """
        with self._lock:
            waiting = self._waiting()
            sent = {each.client for each in self.accepted} if waiting else set[int]()
            return len(self.accepted) + len(waiting - sent)

    @property
    def unasked(self) -> int:
        """How many clients only a later round may ask: those outside of its cohort that have not withdrawn.

        Raises:
            DpcompError: As `cohort` does.
        """
        with self._lock:
            return 0 if self._cohort is None else self._clients - len(set(self.withdrawn).union(self.cohort()))

    @property
    def next_round_only(self) -> int:
        """How many clients may send in a later round, but not in the present one: not asked, or they gave it up.

        Raises:
            DpcompError: As `cohort` does.
        """
        with self._lock:
            return self.unasked + len(self._waiting())

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
            return asked and not self._takes_no_update

    def withdraw(self, client: int, reason: WithdrawalReason) -> None:
        """Take note that a client sends no further update for now, where its transport says so in place of a message.

        Args:
            client: The client's number.
            reason: Why, as for `Participant.withdrawal`; "round" is for clients alone to say.

        Raises:
            ValueError: No client of the federation has that number; or the reason is another.
            DpcompError: The journal cannot be written; or this server was closed.
        """
        client = whole_number(client, "withdraw(client)", least=0, most=self._clients - 1)
        if reason not in WITHDRAWAL_REASONS or reason == "round":
            known = ", ".join(repr(each) for each in WITHDRAWAL_REASONS if each != "round")
            raise ValueError(f"withdraw(reason={reason!r}): give one of {known}")
        with self._lock:
            self._refuse_closed()
            first = first_unsent_round(self.memory.shared.version, self.memory.link(client).last)
            self._keep_withdrawal(client, first, reason)

    def close_round(self) -> bytes:
        """Close the round: aggregate its updates, move the model, and return the broadcast for all clients.

        After an error memory and model are as they were.

        Returns:
            The payload that brings each client to the next version.

        Raises:
            BudgetExhausted: A trusted server's budget allows no further release. Its clean payloads are deleted, since
                none of them can be released later; a restarted server is in the same round without them.
            DpcompError: This server was closed, or all rounds of the federation's terms were.
            OSError: The round could not be saved. A trusted server has charged it, so the next call forfeits it.
        """
        with self._lock:
            self._refuse_closed()
            if self._all_closed:
                raise DpcompError(
                    f"close_round at version {self.memory.shared.version}: all {self.rounds:,} rounds of the terms are "
                    "closed, and no client has agreed on what another one would cost. Agree on terms of more rounds"
                )
            forfeits = self._forfeits_round()
            forfeited = (*self._forfeited, self.memory.shared.version) if forfeits else self._forfeited
            mean, estimate = self._mean(forfeits), None
            if self._channel.sends_differences:
                mean = estimate_after(mean, self._state.estimate)
                estimate = mean.dense()
            step, moments = self._optimizer.step(mean, self._state.moments)
            broadcast, memory = exchange.broadcast(self._channel, step, self.memory)
            memory = replace(memory, older=self._still_received((*self.memory.older, self.memory.shared)))
            if self._sum.next_clip_norm is not None and not forfeits:  # else it is of a release that was not saved
                memory = replace(memory, clip_norm=self._sum.next_clip_norm)
            state = self._state.after(broadcast, memory, moments, estimate)
            if self._folder is not None:  # first: an unsaved round must not be broadcast
                self._interrupted = True  # by what is no such error, the folder may be a round ahead of this process
                try:
                    self._folder.save(state, self.traffic, self.refusals, forfeited)
                except (OSError, DpcompError):
                    self._interrupted = False
                    raise
                self._forget(self._folder, memory.shared.version)
            oldest = self._oldest_cohort(memory.shared.version)
            self._cohorts = {version: drawn for version, drawn in self._cohorts.items() if version >= oldest}
            self._begin(state)
            self._forfeited = forfeited
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
            if self._folder is not None and self._channel.server_sees_clean:
                self._forget(self._folder, self.memory.shared.version + 1)

    def between_rounds(self) -> Checkpoint:
        """Return what another server goes on from with `go_on`; the secrets of the clients are left out.

        Raises:
            DpcompError: This round has an update or a cohort already.
        """
        with self._lock:
            if len(self.accepted) or self.memory.shared.version in self._cohorts:
                raise DpcompError("the round has begun, so there is no state between two rounds: close it first")
            return replace(self._state, memory=self.memory).checkpoint()

    def go_on(self, saved: Checkpoint) -> None:
        """Begin the round that another server was about to begin, in place of the first one.

        Args:
            saved: What its `between_rounds` returned.

        Raises:
            DpcompError: The state is of another federation, or this server has closed a round or has a folder.
        """
        with self._lock:
            if self._folder is not None or self.memory.shared.version:
                raise DpcompError(
                    "a server goes on from a state before its first round, and without a folder: make one"
                )
            state = ServerState.in_checkpoint(saved, self._optimizer.moments)
            if state is None:
                raise DpcompError("this is no state of a server: give what between_rounds returned")
            mine, memory = self.memory, state.memory
            same = (memory.seed, memory.pipeline, memory.genesis.first_model)
            if same != (mine.seed, mine.pipeline, mine.genesis.first_model):
                raise DpcompError(
                    "the state is of another run, pipeline or first model than this server: make the server as the one "
                    "that it was taken of"
                )
            self._take_up(state)

    def restart(self) -> None:
        """Continue from the state in the folder, as a new process does; no accepted payload is lost.

        Raises:
            ValueError: The server has no folder.
            DpcompError: As for the constructor.
        """
        with self._lock:
            if self._folder is None:
                raise ValueError("a server without a folder has no saved state to restart from: give it a folder")
            self._restore(self._folder)

    def close(self) -> None:
        """Close the folder, so that another process may use it; this server handles no message after that."""
        with self._lock:
            if self._folder is not None:
                self._folder.close()
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
            journal = None if self._folder is None else self._folder.journal
            return self._take_payload(message, sender, journal)
        except CorruptPayload:
            self.refusals["corrupt"] += 1
        except VersionMismatch as error:
            self.refusals[error.reason] += 1
        return None

    def _begin(self, state: ServerState) -> None:
        """Begin a round without updates."""
        self._state = state
        self.memory, self.model = state.memory, state.model
        self.accepted = AcceptedUpdates()
        self.given_up = set[int]()
        self._in_time = 0  # updates of the present round, of which a client sends one
        self._sum: RoundSum = (
            ReleasedSum(self._channel, state.memory, self._clients if self._channel.sends_differences else None)
            if self._trusted_release is None
            else ClippedSum(self._trusted_release, state.memory)
        )
        self._interrupted = False

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
            if foreign := other_configuration(self.memory, payload.frame.pipeline, payload.frame.run):
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
                journal.append(memory.shared.version, message, frame.client, frame.round)
            # An interrupt in between would leave a part of the update in the sum, and the client free to send it again.
            self._interrupted = True
            self._sum.add(update, weight)
            self.memory = memory
            self.accepted.append(Accepted(frame.client, weight, len(message)))
            self._in_time += frame.round == memory.shared.version
            self._interrupted = False
            if frame.round >= self._withdrawn_from.get(frame.client, 0):  # else it was sent before the withdrawal
                self.withdrawn.pop(frame.client, None)
                self._withdrawn_from.pop(frame.client, None)
            if frame.round == memory.shared.version:  # a late update says nothing of this round
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
        if self._takes_no_update:
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

    @property
    def _all_closed(self) -> bool:
        """Whether all rounds of the federation's terms are closed."""
        return self.rounds is not None and self.memory.shared.version >= self.rounds

    @property
    def _takes_no_update(self) -> bool:
        """Whether no further round is closed, in which an update could count."""
        return self._ended or self._all_closed

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

    def _missing(self, asked: Collection[int], away: set[int]) -> int:
        """Return how many clients that were asked are away, and have not sent in the present round."""
        links, version = self.memory.links, self.memory.shared.version
        last = {client: links[client].last for client in away if client in links}
        sent = {client for client, address in last.items() if address is not None and address.round == version}
        return len((away - sent).intersection(asked))

    def _waiting(self) -> set[int]:
        """Return the clients that were asked in the present round, gave it up, and take part in later ones."""
        version = self.memory.shared.version
        return {client for client in self.given_up.difference(self.withdrawn) if self._is_drawn(client, version)}

    def _drawn(self, version: int) -> Int64[np.ndarray, "chosen"]:
        """Return the clients that were drawn for a round; those of the present round are drawn now if need be."""
        assert self._cohort is not None
        if version not in self._cohorts and version == self.memory.shared.version:
            drawn = self._cohort.draw(self._clients, self.memory)
            if self._folder is not None:
                self._folder.journal.keep_cohort(version, drawn)
            self._cohorts[version] = drawn
        return self._cohorts.get(version, np.empty(0, np.int64))  # nobody was drawn for a round that nobody asked about

    def _take_hello(self, message: bytes, sender: int) -> bytes:
        hello, _ = HELLO.unseal(message)
        self._refuse_other_sender(hello.client, sender)
        foreign = other_configuration(self.memory, hello.pipeline, hello.run) or other_genesis(self.memory, hello)
        if foreign:
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
        since = self._state.broadcasts_since(hello.version, begun)
        snapshot = since is None
        body = self._state.snapshot if since is None else since
        return self._reply(message, hello.client, usable=usable, link=whole_link, snapshot=snapshot, body=body)

    def _take_withdrawal(self, message: bytes, sender: int) -> bytes:
        withdrawal, _ = WITHDRAWAL.unseal(message)
        self._refuse_other_sender(withdrawal.client, sender)
        foreign = other_configuration(self.memory, withdrawal.pipeline, withdrawal.run)
        foreign = foreign or other_run(self.memory, withdrawal.run_id)
        if foreign:
            return self._refusal(message, withdrawal.client, foreign)
        if not 0 <= withdrawal.reason < len(WITHDRAWAL_REASONS):
            raise CorruptPayload(f"a withdrawal has the reason {withdrawal.reason}, which this dpcomp does not know")
        reason, version = WITHDRAWAL_REASONS[withdrawal.reason], self.memory.shared.version
        withdrawn_from = self._withdrawn_from.get(withdrawal.client, 0)
        newest = first_unsent_round(withdrawn_from, self.memory.link(withdrawal.client).last)
        if withdrawal.round < newest or (reason == "round" and withdrawal.round != version):
            # The client has come back since, or has withdrawn anew; or it is of another round than this one.
            self.refusals["round"] += 1
            return self._reply(message, withdrawal.client, refusal="round")
        if reason == "round":  # kept in no file, since a client says it again as long as the round lasts
            self.given_up.add(withdrawal.client)
        else:
            # A client that is beyond the next round knows a server that was not set back yet, and will play this round.
            self._keep_withdrawal(withdrawal.client, min(withdrawal.round, version + 1), reason)
        return self._reply(message, withdrawal.client)

    def _keep_withdrawal(self, client: int, number: int, reason: WithdrawalReason) -> None:
        """Take note that a client sends no update of a round or a later one."""
        if self._folder is not None:
            self._folder.journal.keep_withdrawal(client, number, reason)
        self.withdrawn[client], self._withdrawn_from[client] = reason, number

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

    def _forfeits_round(self) -> bool:
        """Return whether the present round is closed without a release, since a trusted server was charged for it."""
        release = self._trusted_release
        if release is None or not release.ledger.charged(self.memory.address):
            return False
        warnings.warn(
            f"round {self.memory.shared.version} is closed without a release: {release.ledger} was charged for it "
            "before, and its noise may have been drawn",
            stacklevel=3,
        )
        return True

    def _mean(self, forfeits: bool) -> Update:
        if forfeits:  # a second release would not be charged
            return mean_of_released(self._channel, [], self.memory)
        try:
            return self._sum.mean()
        except BudgetExhausted:
            if self._folder is not None:  # no budget is ever raised, so these clean payloads can't be released later
                self._forget(self._folder, self.memory.shared.version + 1)
            raise

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
            assert self._folder is not None
            raise DpcompError(f"this server was closed, and another may hold {self._folder.path}: open a new one")
        if self._interrupted:
            raise DpcompError(
                "this server was interrupted while it counted an update or saved a round, so the update may be in the "
                "sum in part, or the folder be a round ahead: call restart(), which goes on from its folder and counts "
                "the round anew; without a folder, make a new server"
            )

    def _still_received(self, older: tuple[Shared, ...]) -> tuple[Shared, ...]:
        return older[-self._late_policy.max_age :] if self._late_policy.max_age else ()

    def _oldest_cohort(self, version: int) -> int:
        """Return the version of the first round whose cohort is needed once the server is at a version."""
        return max(0, version - 1 - self._late_policy.max_age)  # an own policy may have any age

    def _forget(self, folder: ServerFolder, version: int) -> None:
        """Delete what came in the rounds before a version, and is needed no more."""
        folder.forget(version, None if self._cohort is None else self._oldest_cohort(version))

    def _restore(self, folder: ServerFolder) -> None:
        """Go on from a folder: from its last closed round, and with what was accepted and drawn since."""
        state, traffic, refusals, self._forfeited, payloads = folder.load(self._optimizer.moments)
        version = state.memory.shared.version
        self._take_up(state)
        self._ended = False  # as in a new process: what was accepted is taken again
        self._forget(folder, version)  # a crash may have come between the checkpoint and this
        self._cohorts = folder.journal.cohorts()
        # A restart in this process knows more than the checkpoint: no count ever falls.
        self.traffic = max(self.traffic, traffic)
        counted, self.refusals = self.refusals | refusals, Counter()
        for accepted_at, payload in payloads:
            if accepted_at == version:
                self._take_payload(payload, unsealed(payload).client, None)  # it is in the journal already
            else:  # of a later version, whose checkpoint is lost; or of one whose round is closed without it
                why = "is lost with it" if accepted_at > version else f"is in no round: the folder is at {version}"
                warnings.warn(f"{folder.path}: an update accepted at version {accepted_at} {why}", stacklevel=3)
        withdrawals = folder.journal.withdrawals()  # of them, some may have come after the client's update
        self.withdrawn = {client: reason for client, (_, reason) in withdrawals.items()}
        self._withdrawn_from = {client: number for client, (number, _) in withdrawals.items()}
        for reason in self.refusals:
            warnings.warn(
                f"{folder.path}: updates that were accepted before are refused now ({reason}): has the configuration "
                "changed within a round?",
                stacklevel=3,
            )
        self.refusals = counted

    def _take_up(self, state: ServerState) -> None:
        """Begin the round after a saved one."""
        mine, saved = self.memory, state.memory
        older, rounds = self._still_received(saved.older), saved.rounds or mine.rounds
        memory = replace(saved, older=older, dither_keys=mine.dither_keys, rounds=rounds)
        self._begin(replace(state, memory=memory))

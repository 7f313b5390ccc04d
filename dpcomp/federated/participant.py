"""Participant: a client whose state survives its process."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Float32

from dpcomp.core.address import Address, address_of_all_rounds
from dpcomp.core.errors import DpcompError
from dpcomp.federated.absence import AbsencePolicy, Keep
from dpcomp.federated.client import ClientState, Follow, LinkSetBack, Question, follow_broadcast, transition
from dpcomp.federated.messages import (
    WITHDRAWAL,
    WITHDRAWAL_REASONS,
    Withdrawal,
    WithdrawalReason,
    first_unsent_round,
)
from dpcomp.federated.phases import Event, Phase, Restarted, Save, Trained
from dpcomp.federated.saved_state import ledger_arrays, refuse_older_ledger, refuse_other_genesis
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.wire import checkpoint
from dpcomp.wire.channel import Channel
from dpcomp.wire.checkpoint import Checkpoint
from dpcomp.wire.links import Link
from dpcomp.wire.memory import NO_DIGEST, ClientMemory, Pending


class Participant:
    """Runs the state machine of a client, and saves its state before a message is sent.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        memory: The memory of a new client: `pipeline.init_client(layout, seed, client)`.
        model: The initial parameters as a (d,) vector, the same at all ends.
        ledger: The ledger that the client's releases are charged to. The caller opens and closes it; it is never
            restored from a checkpoint.
        folder: Where checkpoints are saved; None keeps them in memory, for simulations. If the folder holds a
            checkpoint, the client continues from it.
        absence_policy: What the client keeps, after rounds that it missed, of its residual, which is what its codec has
            dropped so far: `Keep()` all of it, `Decay(half_life)` less for each missed round, `Drop()` nothing.
        all_rounds: Under terms whose server is trusted, the cost of a release and the number of releases that the
            ledger has to hold for all rounds; `terms.participant` gives it.

    Raises:
        DpcompError: The folder is that of another client or federation, or the ledger is older than the checkpoint.
        ValueError: The memory was made for another first model.

    Examples:
        >>> import numpy as np
        >>> import dpcomp as dp
        >>> from dpcomp.federated import Participant, Server, TimedOut, ReplyReceived
        >>> pipeline, model = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0))), np.zeros(10, np.float32)
        >>> server = Server(pipeline.channel, pipeline.init_server(10, dp.PublicSeed(0)), model)
        >>> client = Participant(pipeline.channel, pipeline.init_client(10, dp.PublicSeed(0), 7), model, dp.Ledger())
        >>> for hello in client.handle(TimedOut()):
        ...     _ = client.handle(ReplyReceived(server.handle(hello, sender=7)))
        >>> client.may_train
        True
    """

    _follow: Follow = staticmethod(follow_broadcast)

    def __init__(
        self,
        channel: Channel,
        memory: ClientMemory,
        model: Float32[np.ndarray, "d"],
        ledger: Ledger,
        folder: str | os.PathLike[str] | None = None,
        absence_policy: AbsencePolicy = Keep(),
        all_rounds: tuple[Cost, int] | None = None,
    ):
        self._all_rounds = all_rounds
        self._channel, self._absence_policy, self.ledger = channel, absence_policy, ledger
        self._folder = None if folder is None else Path(folder)
        self.state = self._saved = ClientState(memory=memory, model=model)
        self._unaccepted: Mapping[int, bytes] = {}  # round → digest of a release that the server has not accepted
        self._genesis = self.state.memory.genesis
        if self._folder is not None and self._folder.exists():
            self.restart()

    @property
    def may_train(self) -> bool:
        """Whether the client may train and release an update now.

        It may if it is synced with the server, and has neither sent an update nor charged the ledger in this round. A
        round that was charged before a crash, and whose update was not saved, is lost. There is none beyond the rounds
        of the federation's terms.
        """
        memory = self.state.memory
        over = memory.rounds is not None and memory.address.round >= memory.rounds
        spent = memory.address == memory.link.last or self.ledger.charged(memory.address)
        return self.state.phase is Phase.SYNCED and not over and not spent

    @property
    def gives_round_up(self) -> bool:
        """Whether the client can send no update in this round, since the round was charged and its update was not kept.

        So it is after a crash between the charge and the update, and in rounds that a server which was restored from a
        backup plays again. Then `withdrawal("round")` tells the server that it need not wait for this client.
        """
        memory = self.state.memory
        unsent = self.state.pending is None and memory.address != memory.link.last
        return self.state.phase is Phase.SYNCED and unsent and self.ledger.charged(memory.address)

    def handle(self, event: Event) -> list[bytes]:
        """Apply an event, save the new state if needed, and return the messages to send to the server.

        After an error the state is the state before the event, and no message may be sent.

        Args:
            event: `Trained`, `BroadcastReceived`, `ReplyReceived`, `TimedOut` or `Restarted`.

        Raises:
            CorruptPayload, VersionMismatch, NotPrivate, ValueError: As `transition` does.
            DpcompError: An update was trained, or the server has accepted a release, that was never charged to the
                ledger, so the ledger would report too small an ε; or the update is of a round beyond those of the
                terms. In a federation with terms whose server is trusted, the charge is that of all rounds, as
                `ClientPolicy.charge_all_rounds` makes it.
            OSError: The state could not be saved.
        """
        if isinstance(event, Trained):
            self._refuse_uncharged(event.update.address)
        try:
            after, actions = transition(self._channel, self.state, event, self._absence_policy, self._follow)
        except LinkSetBack as error:
            self._refuse_uncounted(error.link, self._unaccepted_with(self.state.pending))
            raise
        pending, unaccepted = self.state.pending, self._unaccepted
        if pending is not None and after.pending is None and after.memory.link != pending.link:
            unaccepted = self._unaccepted_with(pending)
        if after.memory.link not in (self.state.memory.link, None if pending is None else pending.link):
            self._refuse_uncounted(after.memory.link, unaccepted)
        for action in actions:
            if isinstance(action, Save):
                self._save(after, unaccepted)
        self.state, self._unaccepted = after, unaccepted
        return [action.message for action in actions if not isinstance(action, Save)]

    def withdrawal(self, reason: WithdrawalReason) -> bytes:
        """Return the message by which this client says that it will send no further update, for now.

        The server then waits no longer for it. It counts again once it sends an update of a later round than those
        that it has sent so far.

        Args:
            reason: "budget" where its ledger allows no further release, "policy" where it does not accept the terms,
                "done" where its operator ends it; "round" where it sends none in the present round alone.
        """
        memory, pending = self.state.memory, self.state.pending
        last = memory.link.last if pending is None else pending.link.last
        return WITHDRAWAL.seal(
            Withdrawal(
                pipeline=memory.pipeline,
                run=memory.seed.number,
                run_id=memory.genesis.run_id,
                client=memory.client,
                round=first_unsent_round(memory.shared.version, last),
                reason=WITHDRAWAL_REASONS.index(reason),
            )
        )

    def restart(self) -> None:
        """Continue from the saved state, as a new process does."""
        if self._folder is not None:
            self._saved = self._load(self._folder)
        self.state, _ = transition(self._channel, self._saved, Restarted())

    def _unaccepted_with(self, pending: Pending | None) -> Mapping[int, bytes]:
        """Return the digests of the releases that the server has not accepted, and of a pending one, by their round."""
        if pending is None or self._channel.server_sees_clean:
            return self._unaccepted
        assert pending.link.last is not None
        return {**self._unaccepted, pending.link.last.round: pending.link.digest}

    def _save(self, state: ClientState, unaccepted: Mapping[int, bytes]) -> None:
        if self._folder is not None:
            beside = ledger_arrays(self.ledger)
            if unaccepted:
                beside["unaccepted round"] = np.array(list(unaccepted), dtype=np.int64)
                beside["unaccepted digest"] = np.frombuffer(b"".join(unaccepted.values()), dtype=np.uint8)
            if state.question is not None:
                beside["question"] = np.frombuffer(state.question.hello, dtype=np.uint8)
                beside["question version"] = np.array([state.question.version], dtype=np.int64)
            checkpoint.save(self._folder, Checkpoint(state.memory, state.model, state.pending, beside))
        self._saved = state

    def _load(self, folder: Path) -> ClientState:
        try:
            memory, model, pending, beside = checkpoint.load(folder, self._channel)
        except FileNotFoundError:
            return self._saved  # nothing was saved before the process ended
        if not isinstance(memory, ClientMemory) or model is None:
            raise DpcompError(f"{folder} holds no checkpoint of a client: give another folder")
        mine = self._saved.memory
        if (memory.client, memory.seed, memory.pipeline) != (mine.client, mine.seed, mine.pipeline):
            raise DpcompError(
                f"{folder} is of client {memory.client}, run {memory.seed} and layout {memory.layout}; this is client "
                f"{mine.client}, run {mine.seed} and layout {mine.layout}: give another folder"
            )
        refuse_other_genesis(folder, memory, self._genesis)
        # No checkpoint holds the key, nor one of an earlier dpcomp the rounds of the terms.
        memory = replace(memory, dither_key=mine.dither_key, rounds=memory.rounds or mine.rounds)
        state = ClientState(memory=memory, model=model, pending=pending)
        if "unaccepted round" in beside:
            digests = beside["unaccepted digest"].reshape(-1, len(NO_DIGEST))
            rounds: list[int] = beside["unaccepted round"].tolist()
            self._unaccepted = {number: each.tobytes() for number, each in zip(rounds, digests, strict=True)}
        if "question" in beside:
            question = Question(beside["question"].tobytes(), int(beside["question version"][0]))
            state = replace(state, phase=Phase.RESYNCING, question=question)
        self._refuse_older_ledger(state, f"{folder} holds a release")
        refuse_older_ledger(self.ledger, beside)
        return state

    def _counts(self, address: Address, memory: ClientMemory) -> bool:
        """Return whether this client's ledger counts an update, where it has to.

        A trusted server charges a ledger of its own. The client's knows of the federation by the charge for all rounds
        of its terms; without terms nobody knows how many there will be, and the server's ledger is all there is.

        The charge has to be that of the terms: their author, who knows the run id, can make it the public seed of
        another federation, whose first round is charged at the same address.
        """
        if not self._channel.server_sees_clean:
            return self.ledger.charged(address)
        if memory.rounds is None:
            return True
        charge = self.ledger.charge_at(address_of_all_rounds(memory.genesis.run_id, memory.client))
        if charge is None or self._all_rounds is not None:
            return charge == self._all_rounds
        return charge[0].trust_model.server_sees_clean and charge[1] >= memory.rounds  # of terms that are not at hand

    def _refuse_uncharged(self, address: Address) -> None:
        """Refuse an update that this client's ledger was not charged for."""
        if not self._counts(address, self.state.memory):
            raise DpcompError(
                f"an update was released at {address}, which {self.ledger} never charged: it would report too small an "
                "ε. Charge the ledger that this Participant was given, before the release"
                + (
                    ": policy.charge_all_rounds(terms, ledger, client). A charge of another cost there does not count"
                    if self._channel.server_sees_clean
                    else ""
                )
            )

    def _refuse_uncounted(self, link: Link, unaccepted: Mapping[int, bytes]) -> None:
        """Refuse to go on, and mark the ledger, where the server has accepted releases that it was not charged for.

        A payload of an address is made once and saved before it is sent, so two of them have two processes, which were
        given copies of one folder: each has drawn noise, and each ledger was charged for its own alone. The server may
        accept one long after it has refused the other, so the digests of those that it refused are kept.

        Args:
            link: The server's link, which this client did not expect.
            unaccepted: The digests of this client's releases that the server has not accepted, by their round.
        """
        last = link.last
        if last is None or self._channel.server_sees_clean:
            return
        charged = self.ledger.charged_rounds(last.run, last.client)
        if last.round not in charged:
            self._refuse_uncharged_release(last, "the server has accepted a release")
        why = ""
        if unaccepted.get(last.round, link.digest) != link.digest:
            why = f"another process released at {last}, where this ledger's own release was refused"
        elif link.count > len(charged):
            why = (
                f"the server has accepted {link.count:,} releases of client {last.client} up to {last}, and this "
                f"ledger was charged for {len(charged):,}"
            )
        if why:
            self.ledger.mark_incomplete(why)
            raise DpcompError(
                f"{why}: two processes take part as client {last.client}, from copies of one folder. {self.ledger} is "
                "marked as incomplete and guarantees nothing any more: stop both, and count the charges of both "
                "ledgers together"
            )

    def _refuse_older_ledger(self, state: ClientState, evidence: str) -> None:
        """Refuse a state that holds a release which was never charged to the ledger."""
        last = state.memory.link.last if state.pending is None else state.pending.link.last
        if last is not None and not self._counts(last, state.memory):
            self._refuse_uncharged_release(last, evidence)

    def _refuse_uncharged_release(self, last: Address, evidence: str) -> NoReturn:
        """Refuse a release that was never charged to the ledger, and mark the ledger if it is of the same data."""
        # A ledger of these data lacks the release; one without any charge of this client may be a wrong one.
        if self.ledger.charged_rounds(last.run, last.client):
            self.ledger.mark_incomplete(f"{evidence} at {last}, which it was not charged for")
        raise DpcompError(
            f"{evidence} at {last}, which {self.ledger} never charged: it is older than that, or another client's. "
            "Restore the newest ledger; what is spent cannot be taken back"
        )

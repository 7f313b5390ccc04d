"""The state machine of a client: a pure function from a state and an event to the next state and the actions."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float32

from dpcomp.core.errors import VersionMismatch
from dpcomp.federated.absence import AbsencePolicy, Keep
from dpcomp.federated.messages import (
    FOREIGN,
    HELLO,
    LONGEST_REASON,
    REFUSALS,
    REPLY,
    UNREAD,
    Hello,
    Reply,
    is_receipt,
    name_of,
    read_broadcasts,
    read_link,
    read_snapshot,
    receipt_of,
    recipient_of,
    seal_receipt,
)
from dpcomp.federated.phases import (
    RESYNCING,
    STALE,
    SYNCED,
    TRANSITIONS,
    WAITING,
    Action,
    BroadcastReceived,
    Event,
    Phase,
    ReplyReceived,
    Restarted,
    Save,
    Send,
    TimedOut,
    Trained,
    new_session,
)
from dpcomp.wire import exchange
from dpcomp.wire.channel import Channel
from dpcomp.wire.feedback import Kept
from dpcomp.wire.frame import PAYLOAD, Frame
from dpcomp.wire.headers import tag_of
from dpcomp.wire.links import Link
from dpcomp.wire.memory import NO_DIGEST, ClientMemory, Pending
from dpcomp.wire.update import Update


class LinkSetBack(VersionMismatch):
    """The server and the client know other payloads of the client than each other, and the client cannot go on.

    Attributes:
        link: The server's link.
    """

    def __init__(self, message: str, link: Link):
        super().__init__(message, reason="link")
        self.link = link


@dataclass(frozen=True)
class Question:
    """A question that has no reply yet.

    Args:
        hello: The message; a resend sends the same bytes.
        version: The client's version when it asked.
    """

    hello: bytes
    version: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ClientState:
    """The state of a client. Memory, model, pending payload and question must survive the process; the rest need not.

    At version 0 the model is the first one, and its digest stands in the memory's genesis.

    Attributes:
        memory: What the client remembers between messages.
        model: The parameters as a (d,) vector.
        pending: The payload that has no reply yet; None if there is none.
        phase: Whether the client is at the server's version, and what it waits for.
        session: A number that no earlier process of this client used in its questions.
        asked: The number of questions in this session.
        question: The question that has no reply yet; None if there is none.

    Raises:
        ValueError: The memory was made for another first model.
    """

    memory: ClientMemory
    model: Float32[np.ndarray, "d"]
    pending: Pending | None = None
    phase: Phase = Phase.NEW
    session: int = field(default_factory=new_session)
    asked: int = 0
    question: Question | None = None

    def __post_init__(self):
        if not self.memory.shared.version and self.memory.genesis.first_model == NO_DIGEST:
            object.__setattr__(self, "memory", self.memory.with_first_model(self.model))

    def with_question(self) -> "ClientState":
        """Return the state with a new question, which states this state; no earlier reply answers it."""
        memory, pending = self.memory, self.pending
        frame = None if pending is None else _frame(pending)
        hello = Hello(
            pipeline=memory.pipeline,
            run=memory.seed.number,
            first_model=memory.genesis.first_model,
            run_id=memory.genesis.run_id,
            client=memory.client,
            nonce=(self.session + self.asked) % 2**64,
            version=memory.shared.version,
            shared=memory.shared.digest,
            link_count=memory.link.count,
            link=memory.link.digest,
            pending=NO_DIGEST if pending is None else pending.link.digest,
            pending_version=0 if frame is None else frame.version,
            pending_shared=NO_DIGEST if frame is None else frame.shared,
        )
        question = Question(HELLO.seal(hello), memory.shared.version)
        return replace(self, phase=RESYNCING, asked=self.asked + 1, question=question)


Outcome = tuple[ClientState, tuple[Action, ...]]
Position = tuple[ClientMemory, Float32[np.ndarray, "d"]]  # a client's memory and its model
Follow = Callable[[Channel, bytes, Position], Position]


def follow_broadcast(channel: Channel, broadcast: bytes, position: Position) -> Position:
    """Move the memory and the model of a client to the next version.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        broadcast: The server's message.
        position: The client's memory, and its model as a (d,) vector.

    Returns:
        The memory and the model after the broadcast.

    Raises:
        CorruptPayload: The bytes are damaged.
        VersionMismatch: The broadcast does not lead on from this version.
    """
    memory, model = position
    after = exchange.follow(channel, broadcast, memory)
    assert after.step is not None
    return after, model + after.step.dense()


def transition(
    channel: Channel,
    state: ClientState,
    event: Event,
    absence_policy: AbsencePolicy = Keep(),
    follow: Follow = follow_broadcast,
) -> Outcome:
    """Compute the state after an event, and the actions that follow.

    After an error the client keeps the state before the event.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        state: The state before the event.
        event: `Trained`, `BroadcastReceived`, `ReplyReceived`, `TimedOut` or `Restarted`.
        absence_policy: What the client keeps of its residual after missed rounds.
        follow: `follow_broadcast`, or what gives the same values in another way, as a simulation of many clients does.

    Returns:
        The state after the event; and the actions, in the order in which to do them.

    Raises:
        CorruptPayload: The message is damaged.
        VersionMismatch: The message is of another federation, or for another client; or it is the server's reply that
            this client is of another federation than the server.
        NotPrivate: The server is not trusted, and the update was not released by this pipeline.
        ValueError: The client trained although it is not synced, or trained a second time at an address.
    """
    if type(event) not in TRANSITIONS[state.phase]:
        raise ValueError(
            f"a client that is {state.phase.value} does not train, since its model may be old: train once its phase is "
            "synced"
        )
    match event:
        case Trained():
            after, actions = _after_training(channel, state, event.update)
        case BroadcastReceived():
            after, actions = _after_broadcast(channel, state, event.broadcast, follow)
        case ReplyReceived():
            after, actions = _after_reply(channel, state, event.reply, absence_policy, follow)
        case TimedOut():
            after, actions = _after_timeout(state)
        case Restarted():
            # A question that has no reply yet stays open, so that a later process understands the reply.
            phase = STALE if state.question is None else RESYNCING
            after, actions = replace(state, phase=phase, session=event.session, asked=0), ()
    assert after.phase in TRANSITIONS[state.phase][type(event)], f"{state.phase}, {event}: {after.phase}"
    return after, actions


def _after_training(channel: Channel, state: ClientState, update: Update) -> Outcome:
    if update.address == state.memory.link.last:
        raise ValueError(f"an update of {update.address} was accepted before: a client sends one update a round")
    payload, after = exchange.send(channel, update, state.memory)
    pending = Pending.of(payload.in_full(), update, after)
    # A resend has a full header: with that, the server says what differs if it cannot read the short one.
    return replace(state, pending=pending, phase=WAITING), (Save(), Send(payload.message))


def _after_broadcast(channel: Channel, state: ClientState, broadcast: bytes, follow: Follow) -> Outcome:
    try:
        after = _after_following(channel, state, broadcast, follow)
    except VersionMismatch as error:
        if error.reason != "version":
            raise
        # The broadcast may be early or late, or the server was restored: only the server's reply can tell.
        return (state, ()) if state.phase is RESYNCING else _ask(state)
    # A broadcast does not state the link, so a client that was away still has to ask for it.
    return (after, (Save(),)) if after.phase in (SYNCED, WAITING, RESYNCING) else _ask(after)


def _after_timeout(state: ClientState) -> Outcome:
    if state.question is not None:
        return state, (Send(state.question.hello),)
    if state.phase is WAITING and state.pending is not None:
        frame, shared = _frame(state.pending), state.memory.shared
        if (frame.version, frame.shared) == (shared.version, shared.digest):
            return state, (Send(state.pending.payload),)
    return _ask(state)


def _after_reply(
    channel: Channel, state: ClientState, message: bytes, absence_policy: AbsencePolicy, follow: Follow
) -> Outcome:
    if is_receipt(message):
        _refuse_other_recipient(state, recipient_of(message))
        if state.pending is None or message != seal_receipt(receipt := _expected_receipt(state, state.pending)):
            return state, ()  # it answers an earlier message, and is out of date
        return _after_receipt(channel, state, state.pending, receipt)
    reply, body = REPLY.unseal(message)
    _refuse_other_recipient(state, reply.client)
    if state.question is not None and reply.answers == name_of(state.question.hello):
        _refuse_foreign_server(state, reply, body)
        return _after_resync(channel, state, state.question, reply, body, absence_policy, follow)
    if state.pending is not None and reply.answers == name_of(state.pending.payload):
        _refuse_foreign_server(state, reply, body)
        return _after_receipt(channel, state, state.pending, reply)
    return state, ()  # it answers an earlier message, and is out of date


def _refuse_other_recipient(state: ClientState, client: int) -> None:
    if client != state.memory.client:
        raise VersionMismatch(
            f"the reply is for client {client}; this is client {state.memory.client}: deliver it to that client",
            reason="direction",
        )


def _expected_receipt(state: ClientState, pending: Pending) -> Reply:
    """Return the receipt of a server that accepts the pending payload."""
    return receipt_of(_frame(pending), tag_of(pending.payload), state.memory.genesis.run_id)


def _refuse_foreign_server(state: ClientState, reply: Reply, body: bytes) -> None:
    """Refuse the reply of a server of another federation, in the server's words where it has noticed."""
    for reason in FOREIGN:
        if reply.refusal == REFUSALS.index(reason):
            words = body[:LONGEST_REASON].decode(errors="replace")
            raise VersionMismatch(f"the server refuses this client: {words}", reason=reason)
    known = state.memory.genesis.run_id
    if known not in (NO_DIGEST, reply.run_id):
        raise VersionMismatch(
            f"the reply is of run id {reply.run_id.hex()}; this client takes part in {known.hex()}: it is another "
            "federation of the same seed. Ask the server that this client began with, or begin anew in an empty folder",
            reason="run",
        )


def _after_resync(
    channel: Channel,
    state: ClientState,
    question: Question,
    reply: Reply,
    body: bytes,
    absence_policy: AbsencePolicy,
    follow: Follow,
) -> Outcome:
    """Apply the reply to a question: settle the pending payload, and move the client to the server's version."""
    if state.memory.genesis.run_id == NO_DIGEST:
        genesis = replace(state.memory.genesis, run_id=reply.run_id)
        state = replace(state, memory=state.memory.with_genesis(genesis))
    server_link = read_link(body[: reply.link_bytes], state.memory.layout)
    settled = _settle_pending(channel, state, reply, server_link)
    after = _catch_up(channel, settled, question, reply, body[reply.link_bytes :], follow)
    missed = abs(after.memory.shared.version - state.memory.shared.version)
    if missed:
        after = _age_kept(after, missed, absence_policy)
    after = replace(after, question=None)
    if after.pending is None:
        return replace(after, phase=SYNCED), (Save(),)
    return replace(after, phase=WAITING), (Save(), Send(after.pending.payload))


def _after_receipt(channel: Channel, state: ClientState, pending: Pending, reply: Reply) -> Outcome:
    """Apply the reply to the pending payload."""
    stated, frame = (reply.link_count, reply.link), _frame(pending)
    accepted, refused = stated == _identity(pending.link), stated == _identity(state.memory.link)
    server_restored = (reply.version, reply.shared) != (frame.version, frame.shared) and reply.version <= frame.version
    if not accepted and (not refused or server_restored or reply.refusal == UNREAD):
        return _ask(state)
    after, shared = _settle_pending(channel, state, reply, state.memory.link), state.memory.shared
    outdated = reply.version > shared.version or (reply.version == shared.version and reply.shared != shared.digest)
    if outdated or state.phase is not WAITING:
        return _ask(after)
    return replace(after, phase=SYNCED), (Save(),)


def _ask(state: ClientState) -> Outcome:
    after = state.with_question()
    assert after.question is not None
    return after, (Save(), Send(after.question.hello))


def _after_following(channel: Channel, state: ClientState, broadcast: bytes, follow: Follow) -> ClientState:
    """Move memory and model to the next version; a pending payload stays pending."""
    (memory, model), pending = follow(channel, broadcast, (state.memory, state.model)), state.pending
    if pending is not None and pending.tracked is not None:
        assert memory.step is not None
        pending = replace(pending, tracked=pending.tracked.after_broadcast(memory.step.dense(), memory.layout))
    return replace(state, memory=memory, model=model, pending=pending)


def _settle_pending(channel: Channel, state: ClientState, reply: Reply, server_link: Link) -> ClientState:
    """Commit an accepted payload, give a refused one back to the feedback, or keep one that is still undecided.

    Raises:
        VersionMismatch: As `_kept_beside` does; or the reply contradicts itself.
    """
    memory, pending, stated = state.memory, state.pending, (reply.link_count, reply.link)
    if pending is not None and stated == _identity(pending.link):
        memory = replace(memory, link=pending.link, kept=pending.kept, tracked=pending.tracked)
        return replace(state, memory=memory, pending=None)
    if stated != _identity(memory.link):
        if stated != _identity(server_link):
            raise VersionMismatch(
                f"the reply states the link {stated}, but holds {_identity(server_link)}: ask the server again",
                reason="link",
            )
        memory = replace(memory, link=server_link, kept=_kept_beside(server_link, memory))
    elif reply.usable:
        return state
    feedback = channel.sender_feedback
    if pending is not None and feedback is not None:
        memory = replace(memory, kept=feedback.after_refusal(memory.kept, pending.update, pending.learning_rate))
    return replace(state, memory=memory, pending=None)


def _kept_beside(link: Link, memory: ClientMemory) -> Kept:
    """Return what a client keeps where the server knows other payloads of it than itself: one end was set back.

    Raises:
        LinkSetBack: The client keeps what the server has of it, and neither end can tell that any more.
    """
    kept = memory.kept
    if kept.sent is None:
        return kept
    if link.count:
        raise LinkSetBack(
            f"the server has accepted {link.count} payloads of client {memory.client} ({link.digest.hex()}), this "
            f"client knows of {memory.link.count} ({memory.link.digest.hex()}): one of the two was set back. The "
            "client sends differences from what the server has of it, which is not known any more, so that its part of "
            "the server's estimate would stay wrong for good. Restore the newest state of both, or begin anew",
            link,
        )
    return replace(kept, sent=np.zeros_like(kept.sent))


def _catch_up(
    channel: Channel, state: ClientState, question: Question, reply: Reply, rest: bytes, follow: Follow
) -> ClientState:
    """Move to the server's version, by broadcasts or a snapshot; a client that is beyond it already stays."""
    version = state.memory.shared.version
    if reply.snapshot:
        if question.version < version and reply.version <= version:
            return state
        shared, model = read_snapshot(rest, state.memory.layout)
        state = replace(state, memory=replace(state.memory, shared=shared, step=None), model=model)
    else:
        for number, broadcast in enumerate(read_broadcasts(rest), start=question.version):
            if number >= version:
                state = _after_following(channel, state, broadcast, follow)
    shared = state.memory.shared
    if reply.version > shared.version or (reply.version == shared.version and reply.shared != shared.digest):
        raise VersionMismatch(
            f"the reply is of version {reply.version} ({reply.shared.hex()}), but brings this client to version "
            f"{shared.version} ({shared.digest.hex()}): ask the server again",
            reason="version",
        )
    return state


def _age_kept(state: ClientState, missed: int, absence_policy: AbsencePolicy) -> ClientState:
    """Apply the absence policy to what the client keeps, and to what it keeps after a pending payload."""
    memory, pending = state.memory, state.pending
    if pending is not None:
        pending = replace(pending, kept=_aged(pending.kept, missed, absence_policy))
    memory = replace(memory, kept=_aged(memory.kept, missed, absence_policy))
    return replace(state, memory=memory, pending=pending)


def _aged(kept: Kept, missed: int, absence_policy: AbsencePolicy) -> Kept:
    """Apply the absence policy to residual and momentum; what was sent stays what the server has."""
    aged = {name: absence_policy.residual(vector, missed) for name, vector in kept.vectors.items() if name != "sent"}
    return replace(kept, **aged)


def _frame(pending: Pending) -> Frame:
    return PAYLOAD.record_of(pending.payload)


def _identity(link: Link) -> tuple[int, bytes]:
    return link.count, link.digest

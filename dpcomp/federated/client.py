"""A client as a state machine: one pure function says what every event does to it, and what it does then."""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float32

from dpcomp.core.errors import VersionMismatch
from dpcomp.federated.absence import AfterAbsence, Keep
from dpcomp.federated.messages import (
    HELLO,
    NOTHING,
    WORD,
    Hello,
    Word,
    name_of,
    read_link,
    read_snapshot,
)
from dpcomp.federated.phases import (
    RESYNCING,
    STALE,
    SYNCED,
    TRANSITIONS,
    WAITING,
    Action,
    Due,
    Event,
    Heard,
    Phase,
    Restarted,
    Save,
    Send,
    Told,
    Trained,
    new_session,
)
from dpcomp.pipeline import Pipeline
from dpcomp.wire.frame import PAYLOAD, Frame
from dpcomp.wire.memory import ClientMemory, Link, Pending
from dpcomp.wire.update import Update


@dataclass(frozen=True)
class Question:
    """What the client has asked last, and from which version; it is sent again as it is."""

    hello: bytes
    version: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ClientState:
    """Memory, model and pending payload must not be forgotten; the rest a client finds out again."""

    memory: ClientMemory
    model: Float32[np.ndarray, "d"]
    pending: Pending | None = None
    phase: Phase = Phase.NEW
    session: int = field(default_factory=new_session)
    asked: int = 0  # in this session
    question: Question | None = None  # without an answer yet

    def asking(self) -> "ClientState":
        """With a new question, which says where it stands: no earlier answer answers it."""
        memory, pending = self.memory, self.pending
        frame = None if pending is None else _frame(pending)
        hello = Hello(
            pipeline=memory.pipeline,
            run=memory.seed.number,
            client=memory.client,
            nonce=(self.session + self.asked) % 2**64,
            version=memory.shared.version,
            shared=memory.shared.digest,
            link_count=memory.link.count,
            link=memory.link.digest,
            pending=NOTHING if pending is None else pending.link.digest,
            pending_version=0 if frame is None else frame.version,
            pending_shared=NOTHING if frame is None else frame.shared,
        )
        question = Question(HELLO.seal(hello), memory.shared.version)
        return replace(self, phase=RESYNCING, asked=self.asked + 1, question=question)


def transition(
    pipeline: Pipeline, state: ClientState, event: Event, after_absence: AfterAbsence = Keep()
) -> tuple[ClientState, tuple[Action, ...]]:
    """The state after an event, and what to do then, in order.

    Raises:
        CorruptPayload: the message is damaged; VersionMismatch: it is of another pipeline, or for another client.
            The state is as it was.
        ValueError: an update of a client that is not synced, or a second one at an address.
    """
    if type(event) not in TRANSITIONS[state.phase]:
        raise ValueError(f"a client that is {state.phase.value} does not train: it may stand on an old model")
    match event:
        case Trained():
            after, actions = _trained(pipeline, state, event.update)
        case Heard():
            after, actions = _heard(pipeline, state, event.broadcast)
        case Told():
            after, actions = _told(pipeline, state, event.word, after_absence)
        case Due():
            after, actions = _due(state)
        case Restarted():
            after = replace(state, phase=STALE, session=event.session, asked=0, question=None)
            actions = ()
    assert after.phase in TRANSITIONS[state.phase][type(event)], f"{state.phase}, {event}: {after.phase}"
    return after, actions


Outcome = tuple[ClientState, tuple[Action, ...]]


def _trained(pipeline: Pipeline, state: ClientState, update: Update) -> Outcome:
    if update.address == state.memory.link.last:
        raise ValueError(f"an update of {update.address} was accepted before: a client sends one a round")
    payload, after = pipeline.send(update, state.memory)
    pending = Pending.of(payload, update, after)
    return replace(state, pending=pending, phase=WAITING), (Save(), Send(payload))


def _heard(pipeline: Pipeline, state: ClientState, broadcast: bytes) -> Outcome:
    try:
        after = _followed(pipeline, state, broadcast)
    except VersionMismatch as error:
        if error.reason != "version":
            raise
        # An early one, a late one, or a server that was set back: its word alone can tell.
        return (state, ()) if state.phase is RESYNCING else _ask(state)
    # What a broadcast cannot tell is the link: who has not asked for that since it was away asks.
    return (after, (Save(),)) if after.phase in (SYNCED, WAITING, RESYNCING) else _ask(after, Save())


def _due(state: ClientState) -> Outcome:
    if state.question is not None:
        return state, (Send(state.question.hello),)
    if state.phase is WAITING and state.pending is not None:
        frame, shared = _frame(state.pending), state.memory.shared
        if (frame.version, frame.shared) == (shared.version, shared.digest):
            return state, (Send(state.pending.payload),)
    return _ask(state)


def _told(pipeline: Pipeline, state: ClientState, message: bytes, after_absence: AfterAbsence) -> Outcome:
    word, body = WORD.unseal(message)
    if word.client != state.memory.client:
        raise VersionMismatch(
            f"the word is for client {word.client}; this is client {state.memory.client}: deliver it there",
            reason="direction",
        )
    if state.question is not None and word.answers == name_of(state.question.hello):
        return _answered(pipeline, state, state.question, word, body, after_absence)
    if state.pending is not None and word.answers == name_of(state.pending.payload):
        return _judged(state, state.pending, word)
    return state, ()  # it answers what was said before: much may have happened since


def _answered(
    pipeline: Pipeline, state: ClientState, question: Question, word: Word, body: bytes, after_absence: AfterAbsence
) -> Outcome:
    """The server's word on where this client stood when it asked."""
    link_there = read_link(body[: word.link_bytes], state.memory.layout)
    after = _caught_up(pipeline, _settled(state, word, link_there), question, word, body[word.link_bytes :])
    missed = abs(after.memory.shared.version - state.memory.shared.version)
    if missed:
        after = _aged(after, missed, after_absence)
    after = replace(after, question=None)
    if after.pending is None:
        return replace(after, phase=SYNCED), (Save(),)
    return replace(after, phase=WAITING), (Save(), Send(after.pending.payload))


def _judged(state: ClientState, pending: Pending, word: Word) -> Outcome:
    """The server's word on the very payload that is pending."""
    there, frame = (word.link_count, word.link), _frame(pending)
    accepted, refused = there == _name(pending.link), there == _name(state.memory.link)
    set_back = (word.version, word.shared) != (frame.version, frame.shared) and word.version <= frame.version
    if not accepted and (not refused or set_back):
        return _ask(state)
    after, shared = _settled(state, word, state.memory.link), state.memory.shared
    behind = word.version > shared.version or (word.version == shared.version and word.shared != shared.digest)
    if behind or state.phase is not WAITING:
        return _ask(after, Save())
    return replace(after, phase=SYNCED), (Save(),)


def _ask(state: ClientState, *before: Action) -> Outcome:
    after = state.asking()
    assert after.question is not None
    return after, (*before, Send(after.question.hello))


def _followed(pipeline: Pipeline, state: ClientState, broadcast: bytes) -> ClientState:
    """One version on; a payload without an answer stays what it is."""
    memory, pending = pipeline.follow(broadcast, state.memory), state.pending
    assert memory.step is not None
    step = memory.step.dense()
    if pending is not None and pending.tracked is not None:
        pending = replace(pending, tracked=pending.tracked.followed(step, memory.layout))
    return replace(state, memory=memory, model=state.model + step, pending=pending)


def _settled(state: ClientState, word: Word, link_there: Link) -> ClientState:
    """After the server's word on the payload without an answer: committed, still open, or of no use any more."""
    memory, pending, there = state.memory, state.pending, (word.link_count, word.link)
    if pending is not None and there == _name(pending.link):
        memory = replace(memory, link=pending.link, residual=pending.residual, tracked=pending.tracked)
        return replace(state, memory=memory, pending=None)
    if there != _name(memory.link):
        if there != _name(link_there):
            raise VersionMismatch(f"the word names link {there}, and tells {_name(link_there)}", reason="link")
        memory = replace(memory, link=link_there)
    elif word.usable:
        return state
    if pending is not None and memory.residual is not None:
        memory = replace(memory, residual=memory.residual + pending.update)
    return replace(state, memory=memory, pending=None)


def _caught_up(pipeline: Pipeline, state: ClientState, question: Question, word: Word, rest: bytes) -> ClientState:
    """At the server's version, by the broadcasts since the question or a snapshot, unless it has moved on already."""
    version = state.memory.shared.version
    if word.snapshot:
        if question.version < version and word.version <= version:
            return state
        shared, model = read_snapshot(rest, state.memory.layout)
        state = replace(state, memory=replace(state.memory, shared=shared, step=None), model=model)
    else:
        for broadcast in PAYLOAD.split(rest):
            if PAYLOAD.unseal(broadcast)[0].version >= version:
                state = _followed(pipeline, state, broadcast)
    shared = state.memory.shared
    if word.version > shared.version or (word.version == shared.version and word.shared != shared.digest):
        raise VersionMismatch(
            f"the word is of version {word.version} ({word.shared.hex()}), and brings this client to version "
            f"{shared.version} ({shared.digest.hex()})",
            reason="version",
        )
    return state


def _aged(state: ClientState, missed: int, after_absence: AfterAbsence) -> ClientState:
    """With what is left of the residual, the one that a pending payload would leave too."""
    memory, pending = state.memory, state.pending
    if memory.residual is None:
        return state
    if pending is not None and pending.residual is not None:
        pending = replace(pending, residual=after_absence.residual(pending.residual, missed))
    memory = replace(memory, residual=after_absence.residual(memory.residual, missed))
    return replace(state, memory=memory, pending=pending)


def _frame(pending: Pending) -> Frame:
    return PAYLOAD.unseal(pending.payload)[0]


def _name(link: Link) -> tuple[int, bytes]:
    return link.count, link.digest

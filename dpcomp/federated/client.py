"""A client as a state machine: one pure function says what every event does to it, and what it does then."""

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from jaxtyping import Float32

from dpcomp.codec.frame import PAYLOAD
from dpcomp.errors import VersionMismatch
from dpcomp.federated.absence import AfterAbsence, Keep
from dpcomp.federated.messages import HELLO, NOTHING, WORD, Hello, Word, name_of, read_link, read_snapshot
from dpcomp.memory import ClientMemory, Link, Pending
from dpcomp.pipeline import Pipeline
from dpcomp.update import Update


class Phase(Enum):
    """What a client knows of the server."""

    NEW = "new"  # it has never heard of it
    SYNCED = "synced"  # it stood where the server did when it last heard of it, and nothing is open
    WAITING = "waiting"  # it has sent an update, and does not know what became of it
    STALE = "stale"  # it was away: where the server stands now it does not know
    RESYNCING = "resyncing"  # it has asked


@dataclass(frozen=True, kw_only=True, eq=False)
class ClientState:
    """Everything that a client must not forget, but for its ledger; the phase it finds out again."""

    memory: ClientMemory
    model: Float32[np.ndarray, "d"]
    pending: Pending | None = None
    phase: Phase = Phase.NEW

    @property
    def hello(self) -> bytes:
        """The question of a client that stands here."""
        memory, pending = self.memory, self.pending
        frame = None if pending is None else PAYLOAD.unseal(pending.payload)[0]
        return HELLO.seal(
            Hello(
                pipeline=memory.pipeline,
                run=memory.seed.number,
                client=memory.client,
                version=memory.shared.version,
                shared=memory.shared.digest,
                link_count=memory.link.count,
                link=memory.link.digest,
                pending=NOTHING if pending is None else pending.link.digest,
                pending_version=0 if frame is None else frame.version,
                pending_shared=NOTHING if frame is None else frame.shared,
            )
        )


# What may happen to a client.


@dataclass(frozen=True, eq=False)
class Trained:
    """An update was released at the memory's address; only a synced client trains."""

    update: Update


@dataclass(frozen=True)
class Heard:
    """A broadcast arrived."""

    broadcast: bytes


@dataclass(frozen=True)
class Told:
    """A word of the server arrived."""

    word: bytes


@dataclass(frozen=True)
class Due:
    """An answer takes long. This decides nothing: the client asks, or sends the same bytes, again."""


@dataclass(frozen=True)
class Restarted:
    """It was away, or has crashed, and goes on from what it had saved."""


Event = Trained | Heard | Told | Due | Restarted


# What a client does then, in this order.


@dataclass(frozen=True)
class Save:
    """Keep the new state, durably."""


@dataclass(frozen=True)
class Send:
    """Send a message to the server: a payload, or a question."""

    message: bytes


Action = Save | Send

# Where each event may lead from each phase: what the documentation draws, and what every transition is held to.
NEW, SYNCED, WAITING, STALE, RESYNCING = Phase
TRANSITIONS: dict[Phase, dict[type[Event], tuple[Phase, ...]]] = {
    NEW: {
        Heard: (SYNCED, RESYNCING),
        Told: (NEW, SYNCED),
        Due: (RESYNCING,),
        Restarted: (STALE,),
    },
    SYNCED: {
        Trained: (WAITING,),
        Heard: (SYNCED, RESYNCING),
        Told: (SYNCED,),
        Due: (SYNCED,),
        Restarted: (STALE,),
    },
    WAITING: {
        Heard: (WAITING, RESYNCING),
        Told: (WAITING, SYNCED, RESYNCING),
        Due: (WAITING, RESYNCING),
        Restarted: (STALE,),
    },
    STALE: {
        Heard: (SYNCED, RESYNCING),
        Told: (STALE, SYNCED, WAITING, RESYNCING),
        Due: (RESYNCING,),
        Restarted: (STALE,),
    },
    RESYNCING: {
        Heard: (SYNCED, RESYNCING),
        Told: (RESYNCING, SYNCED, WAITING),
        Due: (RESYNCING,),
        Restarted: (STALE,),
    },
}


def diagram() -> str:
    """The transitions as a Mermaid state diagram: an arrow a pair of phases, with the events that may lead along it."""
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for before, events in TRANSITIONS.items():
        for event, phases in events.items():
            for after in phases:
                arrows.setdefault((before, after), []).append(event.__name__)
    lines = [f"    {before.value} --> {after.value}: {', '.join(names)}" for (before, after), names in arrows.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {NEW.value}", *lines])


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
            after, actions = replace(state, phase=STALE), ()
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
    if after.pending is None:
        return replace(after, phase=SYNCED), (Save(),)
    return (after, (Save(),)) if after.phase is WAITING else _ask(after, Save())


def _due(state: ClientState) -> Outcome:
    if state.phase is SYNCED:
        return state, ()
    if state.phase is WAITING and state.pending is not None:
        frame, shared = PAYLOAD.unseal(state.pending.payload)[0], state.memory.shared
        if (frame.version, frame.shared) == (shared.version, shared.digest):
            return state, (Send(state.pending.payload),)
    return _ask(state)


def _told(pipeline: Pipeline, state: ClientState, message: bytes, after_absence: AfterAbsence) -> Outcome:
    word, body = WORD.unseal(message)
    memory, pending = state.memory, state.pending
    if word.client != memory.client:
        raise VersionMismatch(
            f"the word is for client {word.client}; this is client {memory.client}: deliver it there",
            reason="direction",
        )
    if word.answers == name_of(state.hello):
        link_there = read_link(body[: word.link_bytes], memory.layout)
        after = _caught_up(pipeline, _settled(state, word, link_there), word, body)
        missed = abs(word.version - memory.shared.version)
        if missed and after.memory.residual is not None:
            residual = after_absence.residual(after.memory.residual, missed)
            after = replace(after, memory=replace(after.memory, residual=residual))
        if after.pending is None:
            return replace(after, phase=SYNCED), (Save(),)
        return replace(after, phase=WAITING), (Save(), Send(after.pending.payload))
    if pending is None or word.answers != name_of(pending.payload):
        return state, ()  # it answers what was said before: much may have happened since
    if (word.link_count, word.link) not in (_name(memory.link), _name(pending.link)):
        return _ask(state)
    after = _settled(state, word, memory.link)
    shared = after.memory.shared
    behind = word.version > shared.version or (word.version == shared.version and word.shared != shared.digest)
    return _ask(after, Save()) if behind or state.phase is not WAITING else (replace(after, phase=SYNCED), (Save(),))


def _ask(state: ClientState, *before: Action) -> Outcome:
    return replace(state, phase=RESYNCING), (*before, Send(state.hello))


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


def _caught_up(pipeline: Pipeline, state: ClientState, word: Word, body: bytes) -> ClientState:
    """At the server's version, by the broadcasts since or by a snapshot."""
    rest = body[word.link_bytes :]
    if word.snapshot:
        shared, model = read_snapshot(rest, state.memory.layout)
        state = replace(state, memory=replace(state.memory, shared=shared, step=None), model=model)
    else:
        for broadcast in PAYLOAD.split(rest):
            state = _followed(pipeline, state, broadcast)
    shared = state.memory.shared
    if (shared.version, shared.digest) != (word.version, word.shared):
        raise VersionMismatch(
            f"the word is of version {word.version} ({word.shared.hex()}), and brings this client to version "
            f"{shared.version} ({shared.digest.hex()})",
            reason="version",
        )
    return state


def _name(link: Link) -> tuple[int, bytes]:
    return link.count, link.digest

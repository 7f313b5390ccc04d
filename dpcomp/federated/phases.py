"""The phases of a client, the events that may befall it, and where each may lead."""

import secrets
from dataclasses import dataclass, field
from enum import Enum

from dpcomp.wire.update import Update


def new_session() -> int:
    """A number that no question was asked under."""
    return secrets.randbits(64)


class Phase(Enum):
    """What a client knows of the server."""

    NEW = "new"  # it has never heard of it
    SYNCED = "synced"  # it stood where the server did when it was last told, and nothing is open
    WAITING = "waiting"  # it has sent an update, and does not know what became of it
    STALE = "stale"  # it was away: where the server stands now it does not know
    RESYNCING = "resyncing"  # it has asked


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
    """Nothing was heard for long. This decides nothing: the client asks, or sends the same bytes again."""


@dataclass(frozen=True)
class Restarted:
    """It was away, or has crashed, and goes on from what it had saved; `session` is a number it never had before."""

    session: int = field(default_factory=new_session)


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
    NEW: {Heard: (RESYNCING,), Told: (NEW,), Due: (RESYNCING,), Restarted: (STALE,)},
    SYNCED: {
        Trained: (WAITING,),
        Heard: (SYNCED, RESYNCING),
        Told: (SYNCED,),
        Due: (RESYNCING,),
        Restarted: (STALE,),
    },
    WAITING: {
        Heard: (WAITING, RESYNCING),
        Told: (WAITING, SYNCED, RESYNCING),
        Due: (WAITING, RESYNCING),
        Restarted: (STALE,),
    },
    STALE: {Heard: (RESYNCING,), Told: (STALE, RESYNCING), Due: (RESYNCING,), Restarted: (STALE,)},
    RESYNCING: {
        Heard: (RESYNCING,),
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

"""The phases of a client, the events that may befall it, and where each may lead."""

import secrets
from dataclasses import dataclass, field
from enum import Enum

from dpcomp.wire.update import Update


def new_session() -> int:
    """Draw a number that no question was asked under."""
    return secrets.randbits(64)


class Phase(Enum):
    """What a client knows of the server."""

    NEW = "new"  # it has had no message of the server yet
    SYNCED = "synced"  # it stood at the server's version at the last reply, and nothing is pending
    WAITING = "waiting"  # it has sent an update, and has no reply
    STALE = "stale"  # it was away, and does not know the server's version
    RESYNCING = "resyncing"  # it has asked for the server's version


# What may happen to a client.


@dataclass(frozen=True, eq=False)
class Trained:
    """An update was released at the memory's address; only a synced client may train."""

    update: Update


@dataclass(frozen=True)
class BroadcastReceived:
    """A broadcast arrived."""

    broadcast: bytes


@dataclass(frozen=True)
class ReplyReceived:
    """The server's reply to a payload or a question arrived."""

    reply: bytes


@dataclass(frozen=True)
class TimedOut:
    """No message came for some time: the client asks, or sends the same bytes again. What was sent stays pending."""


@dataclass(frozen=True)
class Restarted:
    """The client was away or has crashed, and goes on from what it had saved.

    `session` is a number that it never had before.
    """

    session: int = field(default_factory=new_session)


Event = Trained | BroadcastReceived | ReplyReceived | TimedOut | Restarted


# What a client does then, in this order.


@dataclass(frozen=True)
class Save:
    """Save the new state durably."""


@dataclass(frozen=True)
class Send:
    """Send a message to the server: a payload, or a question."""

    message: bytes


Action = Save | Send

# Where each event may lead from each phase: what the documentation draws, and what every transition is held to.
NEW, SYNCED, WAITING, STALE, RESYNCING = Phase
TRANSITIONS: dict[Phase, dict[type[Event], tuple[Phase, ...]]] = {
    NEW: {BroadcastReceived: (RESYNCING,), ReplyReceived: (NEW,), TimedOut: (RESYNCING,), Restarted: (STALE,)},
    SYNCED: {
        Trained: (WAITING,),
        BroadcastReceived: (SYNCED, RESYNCING),
        ReplyReceived: (SYNCED,),
        TimedOut: (RESYNCING,),
        Restarted: (STALE,),
    },
    WAITING: {
        BroadcastReceived: (WAITING, RESYNCING),
        ReplyReceived: (WAITING, SYNCED, RESYNCING),
        TimedOut: (WAITING, RESYNCING),
        Restarted: (STALE,),
    },
    STALE: {
        BroadcastReceived: (RESYNCING,),
        ReplyReceived: (STALE, RESYNCING),
        TimedOut: (RESYNCING,),
        Restarted: (STALE,),
    },
    RESYNCING: {
        BroadcastReceived: (RESYNCING,),
        ReplyReceived: (RESYNCING, SYNCED, WAITING),
        TimedOut: (RESYNCING,),
        Restarted: (STALE,),
    },
}

"""Phases: the states of a client, its events and actions, and the table of its transitions."""

import secrets
from dataclasses import dataclass, field
from enum import Enum

from dpcomp.wire.update import Update


def new_session() -> int:
    """Draw the random 64-bit number that distinguishes the questions of this process from those of earlier ones."""
    return secrets.randbits(64)


class Phase(Enum):
    """The phase of a client: whether it is at the server's version, and what it waits for.

    Attributes:
        NEW: It has received no message of the server yet.
        SYNCED: It was at the server's version at the last reply, and no payload is pending. It may train.
        WAITING: It has sent an update, and waits for the reply.
        STALE: It was away, and does not know the server's version.
        RESYNCING: It has asked for the server's version, and waits for the reply.
    """

    NEW = "new"
    SYNCED = "synced"
    WAITING = "waiting"
    STALE = "stale"
    RESYNCING = "resyncing"


# Events.


@dataclass(frozen=True, eq=False)
class Trained:
    """The event that an update was released at the memory's address; only a synced client may train.

    Args:
        update: The release, or a value derived from it; the clean update, if the server is trusted.
    """

    update: Update


@dataclass(frozen=True)
class BroadcastReceived:
    """The event that a broadcast arrived.

    Args:
        broadcast: The payload, which `Server.close_round` returned.
    """

    broadcast: bytes


@dataclass(frozen=True)
class ReplyReceived:
    """The event that the server's reply to a payload or a question arrived.

    Args:
        reply: The message, which `Server.handle` returned.
    """

    reply: bytes


@dataclass(frozen=True)
class TimedOut:
    """The event that no message came for some time: the client asks the server, or sends the same update again."""


@dataclass(frozen=True)
class Restarted:
    """The event that the client was away or has crashed, and continues from its saved state; a question stays open.

    Args:
        session: A number that this client never used before.
    """

    session: int = field(default_factory=new_session)


Event = Trained | BroadcastReceived | ReplyReceived | TimedOut | Restarted


# Actions.


@dataclass(frozen=True)
class Save:
    """The action to save the new state durably, before the actions after it."""


@dataclass(frozen=True)
class Send:
    """The action to send a message to the server.

    Args:
        message: A payload or a question (a hello).
    """

    message: bytes


Action = Save | Send

# The phases that each event may lead to: the documentation draws this table, and `transition` checks its result by it.
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
        Restarted: (RESYNCING,),
    },
}

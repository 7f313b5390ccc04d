"""Configuration: what must not stand together in a server, for the terms that state it and the server that has it."""

from dpcomp.core.address import SERVER
from dpcomp.core.errors import NotPrivate
from dpcomp.federated.server.late import LatePolicy
from dpcomp.federated.server.optimizers import ServerRule
from dpcomp.wire.channel import Channel

MOST_AGES = 1000  # of late updates whose weights are looked at; a weight that falls with the age is seen at the oldest


def refuse_contradictions(channel: Channel, optimizer: ServerRule, late_policy: LatePolicy, clients: int) -> None:
    """Refuse what no server can start with, whatever its folder, ledger and secrets are.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        optimizer: Computes a round's step from the mean of its updates.
        late_policy: What becomes of updates that arrive after their round.
        clients: The number of clients; `SERVER` where it is unknown.

    Raises:
        TypeError: The optimiser or the policy is a class, and no instance of it.
        NotPrivate: The server is trusted, and would accept late updates.
        ValueError: The optimiser has momentum behind feedback, and was not asked for it; or clients send differences,
            and their number is unknown, or late ones would not count in full.
    """
    for name, value in (("optimizer", optimizer), ("late_policy", late_policy)):
        if isinstance(value, type):
            call = value.__name__
            raise TypeError(f"{name}={call} is a class: give an instance of it, such as {call}(...)")
    if channel.server_sees_clean and late_policy.max_age:
        raise NotPrivate(
            f"late_policy={late_policy} under a trusted server: a late update beside a fresh one has twice the "
            "sensitivity. Use Reject()"
        )
    optimizer.refuse_feedback(channel)
    if not channel.sends_differences:
        return
    if clients == SERVER:
        raise ValueError(
            f"feedback={channel.feedback}: the server's estimate is the mean over all clients, of whom only some send "
            "in a round, so their number is needed: give Server(clients=...)"
        )
    oldest = late_policy.max_age  # which terms of another end may say, so not each age up to it is looked at
    if oldest and any(late_policy.weight(age) != 1 for age in (*range(1, min(oldest, MOST_AGES)), oldest)):
        raise ValueError(
            f"late_policy={late_policy} beside feedback={channel.feedback}: a difference that counts less leaves the "
            "server's estimate apart from the client's for good. Use Reject(), or Weigh(exponent=0.0, max_age=...)"
        )


def refuse_observable_rounds(
    channel: Channel, *, seconds: float | None, least_updates: int, updates: int | None = None
) -> None:
    """Refuse rounds of a trusted server that are closed by what has come.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        seconds: How long a round stays open; None for ever.
        least_updates: The fewest updates of a round that is closed for its age.
        updates: The number of updates that closes a round; None if none does.

    Raises:
        NotPrivate: The server is trusted, and when a round is closed would show something of clean messages.
    """
    if channel.server_sees_clean and (updates is not None or least_updates or seconds is None):
        counted = "" if updates is None else f"updates={updates}, "
        raise NotPrivate(
            f"a trusted server whose rounds are closed with {counted}least_updates={least_updates} after "
            f"seconds={seconds}: when a round is closed would show how many clients have sent, for which nothing is "
            "charged. Close rounds by time alone: RoundPolicy(seconds=60.0, least_updates=0), and in the terms of a "
            "federation round_seconds=60.0, least_updates=0"
        )

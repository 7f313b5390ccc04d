"""Rounds: when a server closes a round, and the task that closes it."""

import logging
import math
import time
from dataclasses import dataclass

import anyio
import anyio.to_thread

from dpcomp.core.checks import real_number, whole_number
from dpcomp.core.errors import BudgetExhausted
from dpcomp.federated.server import Server
from dpcomp.federated.server.configuration import refuse_observable_rounds
from dpcomp.terms import FederationTerms

LOG = logging.getLogger("dpcomp.http")
RETRY_SECONDS = 10.0  # after a round could not be saved


@dataclass(frozen=True, kw_only=True)
class RoundPolicy:
    """Says when a round is closed: after enough updates, after some time, or after whichever comes first.

    **Privacy:** everybody sees when a round is closed. Under a trusted server the number of updates depends on who was
    drawn and on clean messages, so there time alone may close a round, and does so if nobody has sent.

    Args:
        updates: Close a round as soon as so many updates were accepted, or as no further client is awaited, where those
            that withdrew are not; None never closes one for its number.
        seconds: Close a round after so long, if at least `least_updates` were accepted by then, else as soon as they
            are; None never closes one for its age.
        least_updates: The fewest updates of a round that is closed for its age, or because clients withdrew. Clients
            that have given the round up, since they were charged for it before, count as if they had sent; and for its
            age a round is closed with fewer too where its cohort, without those that withdrew, is no larger than this,
            and others may be drawn later, who would else wait for a client that is away. Where so many cannot come, all
            that can, while other clients may send in a later round.
        rounds: The number of rounds of the federation; the last model is served after them. None for no end.

    Raises:
        TypeError: A value is no number.
        ValueError: A number is out of range, or neither `updates` nor `seconds` is given.

    Examples:
        >>> from dpcomp.adapters.http import RoundPolicy
        >>> RoundPolicy(updates=3, seconds=30.0, least_updates=2, rounds=20)
        RoundPolicy(updates=3, seconds=30.0, least_updates=2, rounds=20)
    """

    updates: int | None = None
    seconds: float | None = None
    least_updates: int = 1
    rounds: int | None = None

    def __post_init__(self):
        if self.updates is None and self.seconds is None:
            raise ValueError("RoundPolicy() closes no round: give updates=, seconds=, or both")
        for name, least in (("updates", 1), ("least_updates", 0), ("rounds", 1)):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(value, f"RoundPolicy({name})", least=least))
        if self.seconds is not None:
            seconds = real_number(self.seconds, "RoundPolicy(seconds)", "a number of seconds above 0")
            if not 0 < seconds < math.inf:
                raise ValueError(f"RoundPolicy(seconds) is {seconds}: give a number of seconds above 0")
            object.__setattr__(self, "seconds", seconds)

    @classmethod
    def of(cls, terms: FederationTerms) -> "RoundPolicy":
        """Return the policy that the terms of a federation say: all enrolled clients, or the time and enough of them.

        Where the server is trusted, the time alone, which its terms have.
        """
        return cls(
            updates=None if terms.pipeline.trust_model.server_sees_clean else terms.clients,
            seconds=terms.round_seconds,
            least_updates=terms.least_updates,
            rounds=terms.rounds,
        )

    def refuse_observable(self, server: Server) -> None:
        """Refuse a policy that would show something of clean messages by the time at which a round is closed.

        Raises:
            NotPrivate: As `refuse_observable_rounds` does.
        """
        refuse_observable_rounds(
            server.channel, seconds=self.seconds, least_updates=self.least_updates, updates=self.updates
        )

    def seconds_left(self, updates: int, awaits: bool, enough: bool, age: float) -> float:
        """Return in how many seconds a round is to be closed, if no further update comes.

        Args:
            updates: The number of updates that were accepted in it.
            awaits: Whether a further one may come in this round, or has to.
            enough: Whether it may be closed for its age alone.
            age: How long ago it began, in seconds.

        Returns:
            The seconds; 0 for now, infinity for never.
        """
        if self.updates is not None and (updates >= self.updates or not awaits):
            return 0.0
        if self.seconds is not None and (enough or not awaits):
            return max(self.seconds - age, 0.0)
        return math.inf


class Rounds:
    """Closes the rounds of a server, as a policy says.

    Args:
        server: The server.
        policy: When a round is closed.

    Attributes:
        ended: Why no further round is closed; empty as long as rounds are.

    Raises:
        ValueError: The server's rounds were ended before, and the policy has more; or it asks for more updates than the
            server has clients.
    """

    def __init__(self, server: Server, policy: RoundPolicy):
        self._server, self._policy = server, policy
        self._arrived = anyio.Event()
        self.ended = ""
        if policy.least_updates > server.clients:
            raise ValueError(
                f"{policy} with {server.clients} clients: no round would have so many updates. Give a least_updates of "
                f"{server.clients} or less"
            )
        if server.rounds_ended and not self._finished():
            raise ValueError(
                f"the rounds of this server were ended at version {server.memory.shared.version}, so it takes no "
                f"update for {policy}: open the server anew"
            )

    def arrived(self) -> None:
        """Look anew whether the round is to be closed; called after each message."""
        self._arrived.set()

    async def run(self) -> None:
        """Close rounds until there are enough, or until the budget of a trusted server ends them."""
        began = time.monotonic()
        while not self._finished():
            version = self._server.memory.shared.version
            try:
                await self._wait(began)
                age, updates = time.monotonic() - began, len(self._server.accepted)
                await anyio.to_thread.run_sync(self._server.close_round)
            except BudgetExhausted as refusal:
                self.ended = str(refusal)
            except Exception:  # such as a full disk: the round goes on, and nothing that was accepted is lost
                LOG.exception("round_not_closed version=%d retry_seconds=%g", version, RETRY_SECONDS)
                await anyio.sleep(RETRY_SECONDS)
            else:
                counted = "" if self._server.sees_clean else f" updates={updates}"
                LOG.info("round_closed version=%d seconds=%.1f%s", version, age, counted)
                began = time.monotonic()
        await anyio.to_thread.run_sync(self._server.end_rounds)
        LOG.info("rounds_ended version=%d why=%r", self._server.memory.shared.version, self.ended)

    async def _wait(self, began: float) -> None:
        """Wait until the present round, which began at a time of the monotonic clock, is to be closed."""
        asked, due = await anyio.to_thread.run_sync(self._asked), self._policy.seconds
        version, least = self._server.memory.shared.version, self._policy.least_updates
        while True:
            self._arrived = anyio.Event()
            awaits, enough = await self._awaits(asked), await self._enough(asked)
            updates, age = len(self._server.accepted), time.monotonic() - began
            seconds = self._policy.seconds_left(updates, awaits, enough, age)
            if not seconds:
                return
            if due is not None and math.isinf(seconds):
                seconds = due - age
                if seconds <= 0:
                    LOG.warning("round_held version=%d updates=%d least_updates=%d", version, updates, least)
                    due = None  # it is said once
                    continue
            with anyio.move_on_after(seconds):
                await self._arrived.wait()

    def _finished(self) -> bool:
        most = [rounds for rounds in (self._policy.rounds, self._server.rounds) if rounds is not None]
        if not self.ended and most and self._server.memory.shared.version >= min(most):
            self.ended = "all rounds are closed"
        return bool(self.ended)

    def _asked(self) -> int | None:
        """Return how many clients may send in the present round; None if nobody knows."""
        server, least = self._server, self._policy.least_updates
        try:
            asked = len(server.cohort())
        except ValueError:  # it takes all clients, and does not know their number
            return None
        if asked < least and server.unasked:
            LOG.warning("cohort_small version=%d asked=%d least_updates=%d", server.memory.shared.version, asked, least)
        return asked

    async def _awaits(self, asked: int | None) -> bool:
        """Return whether the round waits for a further update, whatever its age."""
        updates, enough = len(self._server.accepted), max(self._policy.least_updates, 1)
        if asked is None or (self._policy.updates is None and updates >= self._policy.least_updates):
            return True  # then only updates, or only the time, close it
        if updates + len(self._server.withdrawn) + len(self._server.given_up) < asked:
            return True  # the exact number takes the server's lock, and a time that grows with the clients
        return await anyio.to_thread.run_sync(self._awaits_exactly, asked, updates >= enough)

    async def _enough(self, asked: int | None) -> bool:
        """Return whether the round may be closed for its age alone."""
        least = self._policy.least_updates
        if len(self._server.accepted) >= least:
            return True
        # Of a small cohort each client would be needed, and one that is away would hold up all who may be drawn later.
        may_be_small = asked is not None and asked - len(self._server.withdrawn) <= least
        if not may_be_small and not self._server.given_up:
            return False
        return await anyio.to_thread.run_sync(self._enough_exactly, least)

    def _enough_exactly(self, least: int) -> bool:
        """Return whether enough clients have shown that they take part, or a small cohort is not all there is."""
        server = self._server
        return server.present >= least or (server.unasked > 0 and server.expected <= least)

    def _awaits_exactly(self, asked: int, enough: bool) -> bool:
        """Return whether a client that was asked may still send, or one that withdrew is needed."""
        if self._server.awaited > 0:
            return True
        # Where those who may send are too few, nobody else is waited for, unless no later round could have more.
        return asked > 0 and not enough and not self._server.next_round_only

"""Learning rates that change from round to round, by a public schedule that is fixed before the first round."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dpcomp.core.checks import whole_number


@runtime_checkable
class Schedule(Protocol):
    """A learning rate for each round."""

    def rate(self, round_number: int) -> float:
        """Return the learning rate of all local steps of a round, counted from 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """A linear warm-up followed by half a period of a cosine, down to zero.

    Source: Loshchilov & Hutter 2017, arXiv 1608.03983, section 3, without restarts; the warm-up is that of Goyal et al.
    2017, arXiv 1706.02677, section 2.2.

    Args:
        peak: The largest learning rate, reached right after the warm-up.
        rounds: The number of rounds. The rate would be 0 in the round after the last one.
        warm_up: The number of rounds over which the rate rises to `peak`.

    Raises:
        TypeError, ValueError: The peak is not finite and above 0, or the warm-up is not shorter than the rounds.

    Examples:
        >>> [round(Cosine(peak=1.0, rounds=4).rate(number), 2) for number in range(4)]
        [1.0, 0.85, 0.5, 0.15]
    """

    peak: float
    rounds: int
    warm_up: int = 0

    def __post_init__(self):
        if not (self.peak > 0 and math.isfinite(self.peak)):
            raise ValueError(f"Cosine(peak) is {self.peak}: give a finite learning rate above 0")
        rounds = whole_number(self.rounds, "Cosine(rounds)", least=1)
        warm_up = whole_number(self.warm_up, "Cosine(warm_up)", least=0, most=rounds - 1)
        object.__setattr__(self, "rounds", rounds)
        object.__setattr__(self, "warm_up", warm_up)

    def rate(self, round_number: int) -> float:
        """Return the learning rate of a round, counted from 0; rounds after the last have the last one's."""
        if round_number < self.warm_up:
            return self.peak * (round_number + 1) / (self.warm_up + 1)
        passed = (min(round_number, self.rounds - 1) - self.warm_up) / (self.rounds - self.warm_up)
        return self.peak * (1 + math.cos(math.pi * passed)) / 2


def public_rate(learning_rate: float | Schedule, round_number: int) -> float:
    """Return the rate of a round that a sender's momentum is told: that of a schedule; 1 for a plain number.

    A schedule is a function of the round that was fixed before the first one, so its rates are public. Only a rate that
    changes has to be told.
    """
    return learning_rate.rate(round_number) if isinstance(learning_rate, Schedule) else 1.0


def rate_of(learning_rate: float | Schedule, round_number: int) -> float:
    """Return the learning rate of a round, counted from 0; a plain number holds for every round."""
    return learning_rate.rate(round_number) if isinstance(learning_rate, Schedule) else learning_rate

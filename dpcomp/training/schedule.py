"""Learning rates that follow a schedule, which is public and fixed before the first round."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """Says the learning rate of each round."""

    def rate(self, round_number: int) -> float:
        """The learning rate of all local steps of a round, counted from 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """A line up to `peak` over the first `warm_up` rounds, then half a cosine, to nothing behind the last of `rounds`.

    Source: Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts; Goyal et al. 2017, arXiv 1706.02677, the line.
    """

    peak: float
    rounds: int
    warm_up: int = 0

    def __post_init__(self):
        if not (self.peak > 0 and math.isfinite(self.peak)):
            raise ValueError(f"{self}: the peak is a finite learning rate above 0")
        if not 0 <= self.warm_up < self.rounds:
            raise ValueError(f"{self}: the warm-up is shorter than all rounds")

    def rate(self, round_number: int) -> float:
        """The learning rate of a round, counted from 0; those behind the last have the last one's."""
        if round_number < self.warm_up:
            return self.peak * (round_number + 1) / (self.warm_up + 1)
        passed = (min(round_number, self.rounds - 1) - self.warm_up) / (self.rounds - self.warm_up)
        return self.peak * (1 + math.cos(math.pi * passed)) / 2


def rate_of(learning_rate: float | Schedule, round_number: int) -> float:
    """The rate of a round; a number is that of all rounds."""
    return learning_rate.rate(round_number) if isinstance(learning_rate, Schedule) else learning_rate

"""The rounds after which the server's model is evaluated, and those whose models are averaged."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from dpcomp.training.trainer import CountsExamples, Trainer

SHARE = 0.05  # of all passes through the model that evaluation takes, where nobody says how often
BACKWARD = 2.0  # passes forward that a pass backward costs


def rounds_between(trainer: Trainer, clients: float) -> int:
    """Return the number of rounds between evaluations, such that these take about 5 % of a run.

    It follows from public numbers of examples, never from a clock, so a seeded run is evaluated in the same rounds on
    every machine.

    Args:
        trainer: Says how many examples it trains on and tests; one that does not is evaluated after every round.
        clients: The expected number of clients that train in a round.
    """
    if not isinstance(trainer, CountsExamples):
        return 1
    trained = (1 + BACKWARD) * clients * trainer.trained_examples
    if not trained > 0:
        return 1
    return max(1, math.ceil(trainer.tested_examples * (1 - SHARE) / (SHARE * trained)))


def evaluated(number: int, rounds: int, evaluate_every: int | None, between: int) -> bool:
    """Return whether the model is evaluated after a round.

    Args:
        number: The round, from 1.
        rounds: The number of rounds.
        evaluate_every: The rounds between evaluations as they were asked for; None for `between`, and after the first.
        between: What `rounds_between` returned.
    """
    every = between if evaluate_every is None else evaluate_every
    return number == rounds or number % every == 0 or (evaluate_every is None and number == 1)


@dataclass(kw_only=True, eq=False)
class TailAverage:
    """The mean of the models of the last rounds, in float64.

    **Privacy:** each of these models is a function of the broadcasts, which are released, so their mean costs nothing.

    Args:
        tail: The share of the rounds, in [0, 1]; 0 for none, and anything above for one round at least.
        rounds: The number of rounds of the run.
        sum: The sum of the models so far, as a (d,) vector; None for none.
    """

    tail: float
    rounds: int
    sum: Float64[np.ndarray, "d"] | None = None

    def __post_init__(self):
        if not 0 <= self.tail <= 1:
            raise ValueError(
                f"simulate(tail) is {self.tail}: give the share of the last rounds whose models are averaged, in "
                "[0, 1]; 0 averages none"
            )

    @property
    def averaged(self) -> int:
        """The number of last rounds whose models are averaged: tail × rounds, rounded."""
        return max(1, round(self.tail * self.rounds)) if self.tail else 0

    def take(self, number: int, model: Float32[np.ndarray, "d"]) -> None:
        """Take the model after a round, from 1; models of rounds before the tail are left out."""
        if number > self.rounds - self.averaged:
            with np.errstate(invalid="ignore"):  # of a training that diverged
                self.sum = model.astype(np.float64) if self.sum is None else self.sum + model

    def model(self, played: int) -> Float32[np.ndarray, "d"] | None:
        """Return the mean of the models that were taken; None where there is none.

        Args:
            played: The number of rounds that were played: all, or fewer where the run was stopped.
        """
        taken = played - (self.rounds - self.averaged)
        return None if self.sum is None else (self.sum / taken).astype(np.float32)

"""The rounds after which the server's model is evaluated."""

import math

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

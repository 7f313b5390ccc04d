"""Turns: kinds of work are measured one after the other, again and again, so that a busy machine slows all of them."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

LEAST_TURNS = 5

Size = TypeVar("Size")


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

    Args:
        turns: How often each kind of work is measured, at least 5.
        least_seconds: Of a measurement; work that is shorter is called several times.
        full_size: Whether sizes are those of the goals; small ones show that a benchmark runs, and nothing else.

    Raises:
        ValueError: There are fewer than 5 turns.
    """

    turns: int = 7
    least_seconds: float = 0.2
    full_size: bool = True

    def __post_init__(self):
        if self.turns < LEAST_TURNS:
            raise ValueError(f"Effort(turns={self.turns}): a median with its spread needs {LEAST_TURNS} turns or more")

    def size(self, full: Size, small: Size) -> Size:
        """Return the size that is measured: the full one, or a small one to see that the benchmark runs."""
        return full if self.full_size else small


QUICK = Effort(turns=LEAST_TURNS, least_seconds=0.01, full_size=False)


def take_turns(works: Mapping[str, Callable[[], object]], effort: Effort) -> dict[str, list[float]]:
    """Measure the seconds of a call of each kind of work.

    Each is called twice before, so that what it makes once is made, and then as often in a measurement as
    `least_seconds` asks for.

    Args:
        works: The kinds of work by name.
        effort: The number of turns, and how long a measurement takes.

    Returns:
        Of each kind, seconds a call in each turn.
    """
    measures = {}
    for name, work in works.items():
        work()
        calls = max(1, math.ceil(effort.least_seconds / max(seconds(work), 1e-9)))
        measures[name] = lambda work=work, calls=calls: seconds(work, calls)
    return measure_in_turns(measures, effort.turns)


def measure_in_turns(measures: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Take measurements in turns: A B C, A B C, …

    Args:
        measures: Functions that measure once, by name.
        turns: How often each of them is called.

    Returns:
        Of each, what it returned in each turn.
    """
    figures: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(turns):
        for name, measure in measures.items():
            figures[name].append(measure())
    return figures


def seconds(work: Callable[[], object], calls: int = 1) -> float:
    """Measure the seconds of the wall clock that a call takes, over several calls."""
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls

"""What work takes: CPU seconds, also in copies of a vector, and the most memory at once."""

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
from jaxtyping import Float32

import dpcomp as dp

COPIES = 5  # of the vector, before and after each repeat
REMEMBERED = 64  # more supports than the library keeps


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians over the repeats. `copies` are the work's CPU seconds ÷ those of a copy; `copy_seconds`, of a copy."""

    seconds: float
    copies: float
    copy_seconds: float


def timed(work: Callable[[], object], vector: Float32[np.ndarray, "d"], repeats: int) -> Timing:
    """Measure the CPU time of the work, in turns with copies of the vector into a warm buffer.

    Both are CPU time of this process, which others that are busy on the machine slow down but do not add to; they slow
    the neighbouring copies as well, so that the median of the ratios says more than that of the seconds.
    The first call, which finds the memory cold, is not for this.
    """
    buffer, spent, copies, ratios = vector.copy(), [], [], []
    for _ in range(repeats):
        _forget_supports()
        around = [cpu_seconds(lambda: np.copyto(buffer, vector)) for _ in range(COPIES)]
        spent.append(cpu_seconds(work))
        around += [cpu_seconds(lambda: np.copyto(buffer, vector)) for _ in range(COPIES)]
        ratios.append(spent[-1] / median(around))
        copies += around
    return Timing(seconds=median(spent), copies=median(ratios), copy_seconds=median(copies))


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of all threads of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def peak_bytes(work: Callable[[], object]) -> int:
    """Measure the largest memory, in bytes, that the work allocates and holds at once, results included.

    As tracemalloc knows it: Python's and NumPy's. What compiled libraries allocate on their own is not seen; of the
    range coder that is the coded stream and the tables of frequencies.
    """
    _forget_supports()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _forget_supports() -> None:
    """Empty the library's cache of random supports, so that each measurement draws its own."""
    for number in range(REMEMBERED):
        dp.Seeded(number, 1).indices(2)

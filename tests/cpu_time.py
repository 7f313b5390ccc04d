"""CPU time in units of a fixed piece of work in the same process, so that a machine's speed decides no verdict."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


def _loop() -> float:
    """The CPU seconds of a million steps of a Python loop."""
    began = time.process_time()
    for _ in range(10**6):
        pass
    return time.process_time() - began


LOOP_SECONDS = min(_loop() for _ in range(5))


class Loops:
    """How many such loops a block took the CPU time of, once it has ended."""

    count: float = float("nan")


@contextmanager
def cpu_loops() -> Iterator[Loops]:
    """Measure a block, also one that raises: `with cpu_loops() as loops: ...`, then look at `loops.count`."""
    loops, began = Loops(), time.process_time()
    try:
        yield loops
    finally:
        loops.count = (time.process_time() - began) / LOOP_SECONDS

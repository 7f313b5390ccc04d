"""Processes: each benchmark runs in a new one, on one thread and one core, with a limit of time and memory."""

import contextlib
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
}


class Failed(Exception):
    """A process ended without a result; the text says why, in a line."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a function returned in a process of its own, and the most memory that the process had at once."""

    value: Any
    peak_bytes: int | None


def run_alone(
    function: Callable[..., Any], *arguments: Any, most_seconds: float = 3600.0, most_bytes: int | None = None
) -> Outcome:
    """Call a function in a new process that has one thread and one core.

    Args:
        function: At the top level of a module; that module sees one thread when it is imported.
        arguments: What it is called with.
        most_seconds: After which the process is ended.
        most_bytes: Of data in memory, above which the process fails; None for no limit.

    Returns:
        What the function returned, and the peak of the process's memory.

    Raises:
        Failed: It raised an error, or did not end within the limits.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads and memory
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_called, args=(theirs, most_bytes, function, arguments))
    with _environment(ONE_THREAD):
        process.start()
    theirs.close()
    try:
        if not ours.poll(most_seconds):
            raise Failed(f"not within {most_seconds:g} s")
        told: str | Outcome = ours.recv()
    except EOFError:
        process.join()
        raise Failed(f"the process ended with exit code {process.exitcode}, as where memory runs out") from None
    finally:
        process.kill()
        process.join()
    if isinstance(told, str):
        raise Failed(told)
    return told


def peak_bytes() -> int | None:
    """Return the most memory that this process had at once, in bytes; None where the system does not say.

    Linux alone says it of the process itself: `getrusage` also counts what the process was forked from.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return 1024 * int(lines["VmHWM"].split()[0])


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _called(connection: Connection, most_bytes: int | None, function: Callable[..., Any], arguments: Any) -> None:
    """Run in the new process: keep to the limits, call, and send back the result or the error."""
    warnings.simplefilter("ignore")  # of peers, such as Opacus' at each of its hooks
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if (torch := sys.modules.get("torch")) is not None:  # the function's module has imported it
        torch.set_num_threads(1)
    if most_bytes is not None:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    try:
        result = function(*arguments)
    except MemoryError:
        connection.send(f"more than {(most_bytes or 0) / 1e9:.3g} GB of memory")
    except Exception as error:
        traceback.print_exc()
        connection.send(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
    else:
        connection.send(Outcome(value=result, peak_bytes=peak_bytes()))

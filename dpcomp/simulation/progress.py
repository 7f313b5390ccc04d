"""What a simulation shows of its rounds: a bar on a terminal, one line elsewhere, nothing in a notebook."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Protocol


class ShownRounds(Protocol):
    """What follows the rounds."""

    def advance(self, row: Mapping[str, float]) -> None:
        """Show that a round has ended.

        Args:
            row: Its row.
        """
        ...


class _Line:
    """Writes one line once the rounds have ended, or nothing."""

    def __init__(self, label: str, done: int):
        self._label, self._done = label, done
        self._began, self._row = time.perf_counter(), dict[str, float]()

    def advance(self, row: Mapping[str, float]) -> None:
        self._row = dict(row)

    def write(self) -> None:
        """Write the line to stderr, where a round was played."""
        if not self._row:
            return
        seconds = time.perf_counter() - self._began
        said = [f"{name} {self._row[name]:.4g}" for name in self._row if name.startswith(("test_", "validation_"))]
        whence = f", those from round {self._done + 1} on" if self._done else ""
        said = [f"{self._row['round']:g} rounds{whence} in {seconds:.1f} s", *said]
        print(f"{self._label}: {', '.join(said)}", file=sys.stderr)


class _Nothing:
    """Shows nothing."""

    def advance(self, row: Mapping[str, float]) -> None:
        pass


@contextmanager
def shown_rounds(rounds: int, label: str, *, done: int, shown: bool) -> Iterator[ShownRounds]:
    """Show how many rounds have ended, on stderr.

    On a terminal it is a bar, where rich is installed (it comes with `dpcomp[lab]`); elsewhere, as in a log file, one
    line at the end; in a notebook, whose output a bar would fill, nothing.

    Args:
        rounds: The number of rounds.
        label: The name of the task.
        done: The number of rounds that had ended before.
        shown: Whether anything is shown.
    """
    if not shown or "ipykernel" in sys.modules:
        yield _Nothing()
        return
    if not sys.stderr.isatty() or find_spec("rich") is None:
        line = _Line(label, done)
        yield line
        line.write()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=rounds, completed=done)

        class _Bar:
            def advance(self, row: Mapping[str, float]) -> None:
                bar.advance(task)

        yield _Bar()

"""A progress bar over trials, with the time that is left."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text


class TimeLeft(ProgressColumn):
    """A column with the time left at the mean pace so far.

    Rich's own column uses the pace of the last half minute, and a trial takes longer than that.
    """

    def render(self, task: Task) -> Text:
        """Return a text such as `0:12:30 left`, once a trial has ended."""
        if not task.completed or not task.total or task.elapsed is None:
            return Text("time left: after the first")
        seconds = task.elapsed * (task.total - task.completed) / task.completed
        return Text(f"{timedelta(seconds=round(seconds))} left")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A progress bar that counts the trials that have ended; `bar` shows it."""

    progress: Progress
    task: TaskID

    def advance(self, count: int) -> None:
        """Add to the number of trials that have ended."""
        self.progress.advance(self.task, count)

    def expect(self, total: int) -> None:
        """Set the number of all trials."""
        self.progress.update(self.task, total=total)


@contextmanager
def bar(total: int, *, shown: bool) -> Iterator[Bar]:
    """Show a progress bar on standard error for as long as the block lasts.

    Args:
        total: The number of all trials.
        shown: Whether the bar is shown.
    """
    columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TimeLeft())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        yield Bar(progress=progress, task=progress.add_task("trials", total=total))

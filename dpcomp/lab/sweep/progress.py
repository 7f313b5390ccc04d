"""A bar over trials, with the time that is left."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text


class TimeLeft(ProgressColumn):
    """Time left at the mean pace so far; rich's own looks back half a minute, and a trial takes longer."""

    def render(self, task: Task) -> Text:
        """`0:12:30 left`, as soon as one has ended."""
        if not task.completed or not task.total or task.elapsed is None:
            return Text("time left: after the first")
        seconds = task.elapsed * (task.total - task.completed) / task.completed
        return Text(f"{timedelta(seconds=round(seconds))} left")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """How many of the trials have ended."""

    progress: Progress
    task: TaskID

    def advance(self, count: int) -> None:
        """So many more have ended."""
        self.progress.advance(self.task, count)

    def expect(self, total: int) -> None:
        """So many there are in all."""
        self.progress.update(self.task, total=total)


@contextmanager
def bar(total: int, *, shown: bool) -> Iterator[Bar]:
    """A bar on standard error for as long as the block lasts."""
    columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TimeLeft())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        yield Bar(progress=progress, task=progress.add_task("trials", total=total))

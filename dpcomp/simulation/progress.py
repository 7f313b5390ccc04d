"""A progress bar over the rounds of a simulation."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def numbered_rounds(rounds: int, label: str, *, shown: bool) -> Iterator[Iterable[int]]:
    """Give the numbers of the rounds, from 1, to loop over.

    A progress bar on stderr follows the loop if `shown`, where rich is installed (it comes with `dpcomp[lab]`).
    """
    numbers = range(1, rounds + 1)
    if not shown or find_spec("rich") is None:
        yield numbers
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield bar.track(numbers, description=label)

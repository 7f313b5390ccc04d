"""StopEarly: ends a run whose results have stopped to improve."""

import math
from dataclasses import dataclass
from typing import Literal

from dpcomp.core.checks import check_type, whole_number
from dpcomp.simulation.callbacks.callback import Callback, RunInProgress


@dataclass(frozen=True, kw_only=True)
class StopEarly(Callback):
    """End a run once so many evaluations in a row have not improved on the best one before them.

    **Privacy:** the column must be one of public examples, such as `validation_loss`. The run keeps the ε of all rounds
    that were asked for (`RunInProgress.stop`).

    Args:
        column: The column of the rows that is watched; rounds without it count for nothing.
        patience: The number of evaluations without improvement that end the run.
        best: Whether the "lowest" or the "highest" value is the best.

    Raises:
        TypeError, ValueError: An argument is outside its range.

    Examples:
        >>> from dpcomp.simulation import StopEarly
        >>> StopEarly(column="validation_loss", patience=3).best
        'lowest'
    """

    column: str
    patience: int = 5
    best: Literal["lowest", "highest"] = "lowest"

    def __post_init__(self):
        check_type(self.column, str, f"StopEarly(column={self.column!r}): give the name of a column")
        whole_number(self.patience, "StopEarly(patience)", least=1)
        if self.best not in ("lowest", "highest"):
            raise ValueError(f'StopEarly(best={self.best!r}): give "lowest" or "highest"')

    def start(self, run: RunInProgress) -> None:
        """Refuse a loss or metric that the run does not measure.

        Raises:
            ValueError: The column is that of a test or validation set, and not among those of this run.
        """
        if self.column.startswith(("test_", "validation_")) and self.column not in run.evaluated:
            known = ", ".join(run.evaluated) or "nothing"
            raise ValueError(
                f"StopEarly(column={self.column!r}) would never stop the run, which measures {known}: give one of these"
            )

    def round(self, run: RunInProgress) -> None:
        """Stop the run if the last `patience` evaluations are no better than the best one before them."""
        if self.column not in run.rows[-1]:
            return
        sign = 1 if self.best == "lowest" else -1
        measured = [sign * row[self.column] for row in run.rows if self.column in row]
        measured = [math.inf if math.isnan(value) else value for value in measured]
        before, last = measured[: -self.patience], measured[-self.patience :]
        if before and min(last) >= min(before):
            run.stop(f"{self.column} has not improved in {self.patience} evaluations")

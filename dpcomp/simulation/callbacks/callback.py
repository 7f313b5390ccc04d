"""Callback: what a simulation calls as it starts, after each round, and as it ends."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from jaxtyping import Float32

from dpcomp.core.layout import Layout
from dpcomp.simulation.run import Run


@dataclass(kw_only=True, eq=False)
class RunInProgress:
    """A run between two rounds, as callbacks see it.

    Args:
        task: The name of the task.
        rounds: The number of rounds that were asked for.
        rows: A row for each round so far, as `Run.rows`; of a run that goes on from a folder, all of them.
        probed: The columns that depend on data which was never released, as `Run.probed`.
        layout: The layers of the model.
        model: The model after the last round, as a read-only (d,) vector.
        evaluated: The columns of the rounds that are evaluated: losses and metrics.

    Attributes:
        stopped: Why a callback stopped the run; empty while none did.
    """

    task: str
    rounds: int
    rows: tuple[Mapping[str, float], ...]
    probed: tuple[str, ...]
    layout: Layout
    model: Float32[np.ndarray, "d"]
    evaluated: tuple[str, ...] = ()
    stopped: str = field(default="", init=False)

    def stop(self, why: str) -> None:
        """End the run after this round.

        **Privacy:** a run that ends by its results has the ε of all rounds that were asked for: how many came is one of
        the results (PRIVACY_RULES 23). So nothing is gained in ε, only time.

        Args:
            why: The reason, as a clause: `Run.stopped`.

        Raises:
            ValueError: The reason is empty.
        """
        if not why:
            raise ValueError('stop("") gives no reason: say one, such as stop("the loss is not finite")')
        self.stopped = self.stopped or why

    @property
    def released(self) -> dict[str, float]:
        """The last row without the columns that depend on clean data; empty before the first round."""
        row = self.rows[-1] if self.rows else {}
        return {name: value for name, value in row.items() if name not in self.probed}


class Callback:
    """What a simulation calls: as it starts, after each round, and as it ends; each of the three does nothing here.

    A subclass overrides what it needs. A run that goes on from its folder starts its callbacks anew, with the rows so
    far; so what a callback decides should follow from `run.rows`, and not from what it has counted itself.

    Examples:
        Print the loss after each round, and stop at a loss of 0.5:

        >>> from dpcomp.simulation import Callback
        >>> class Watch(Callback):
        ...     def round(self, run):
        ...         loss = run.rows[-1].get("test_loss", 1.0)
        ...         if loss < 0.5:
        ...             run.stop("the loss is low enough")
    """

    def start(self, run: RunInProgress) -> None:
        """Act before the first round that this call plays. An exception ends the call before anything is spent.

        Args:
            run: The run so far; `run.stop` is refused here.
        """

    def round(self, run: RunInProgress) -> None:
        """Act after a round; `run.stop(why)` makes it the last one.

        Args:
            run: The run so far, the round included.
        """

    def end(self, run: Run) -> None:
        """Act on the result.

        Args:
            run: What `simulate` is about to return.
        """


def check_callbacks(callbacks: object) -> tuple[Callback, ...]:
    """Return callbacks as a tuple.

    Args:
        callbacks: What `simulate(callbacks=...)` was given.

    Raises:
        TypeError: It is not an iterable of callbacks.
    """
    several = isinstance(callbacks, Iterable) and not isinstance(callbacks, type)
    given: list[Callback] = []
    for each in cast("Iterable[object]", callbacks) if several else (callbacks,):
        if not isinstance(each, Callback):
            what = f"{each!r}, a class: give an instance, {each.__name__}(…)" if isinstance(each, type) else repr(each)
            raise TypeError(
                f"simulate(callbacks=...) holds {what}: give a tuple of instances of subclasses of "
                "dpcomp.simulation.Callback"
            )
        given.append(each)
    return tuple(given)

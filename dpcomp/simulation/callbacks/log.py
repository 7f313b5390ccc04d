"""What the callbacks that log to other programs have in common."""

from importlib import import_module
from typing import Any

from dpcomp.core.errors import MissingExtra
from dpcomp.simulation.callbacks.callback import RunInProgress


def imported(module: str, *, package: str, for_whom: str) -> Any:
    """Import a module that dpcomp does not depend on.

    Args:
        module: Its name.
        package: What `pip install` calls it.
        for_whom: Who needs it.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(f"{for_whom} needs {package} ({error}): pip install {package}") from error


def logged(run: RunInProgress, columns: tuple[str, ...] | None) -> dict[str, float]:
    """Return what is logged of the last round.

    Args:
        run: The run so far.
        columns: The columns; None for all that do not depend on clean data, but for the round itself.
    """
    row = run.released if columns is None else run.rows[-1]
    chosen = row.keys() - {"round"} if columns is None else columns
    return {name: float(row[name]) for name in row if name in chosen}

"""Figures of the paper: a module each, which says in FIGURE where its results lie, how they are read, and drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class ResultsFigure:
    """A figure that is drawn from results alone. It is named as its module is.

    Attributes:
        source: A config, a folder of configs, or a study, as a path below the configs.
        read: Makes a table of the results, or a mapping of tables, from the whole path of the source.
        draw: Draws what `read` returns.
    """

    source: str
    read: Callable[[Path], Any]
    draw: Callable[[Any], Figure]

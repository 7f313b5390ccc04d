"""Draws the paper's figures: every module of `analysis.figures`, from results, and nothing is trained."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from matplotlib import pyplot as plt

import analysis.figures
from analysis.figures import ResultsFigure
from dpcomp.core.storage import make_folder


def figures_in(package: ModuleType = analysis.figures) -> Mapping[str, ResultsFigure]:
    """Return the figures of a package by name: FIGURE of each of its modules."""
    names = sorted(module.name for module in iter_modules(package.__path__))
    return {name: import_module(f"{package.__name__}.{name}").FIGURE for name in names}


def draw_all(configs: Path, folder: Path, figures: Mapping[str, ResultsFigure] | None = None) -> list[Path]:
    """Draw figures as PNG and PDF.

    Args:
        configs: The folder of the configs, which the sources lie below.
        folder: Where the figures go.
        figures: By name; None for all of `analysis.figures`.

    Returns:
        The paths of what was written.

    Raises:
        ConfigError: A figure's config or study has no finished trial.
    """
    make_folder(folder)
    written = []
    for name, figure in (figures_in() if figures is None else figures).items():
        drawn = figure.draw(figure.read(configs / figure.source))
        for suffix in (".png", ".pdf"):
            written.append(folder / f"{name}{suffix}")
            # No dates: the same reports give the same files.
            drawn.savefig(written[-1], metadata={"CreationDate": None} if suffix == ".pdf" else {})
        plt.close(drawn)
    return written

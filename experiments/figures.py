"""Figures from finished trials: each is drawn from one config's reports, and nothing is trained."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import faults, residuals
from analysis.results import curves
from experiments import report
from experiments.calls import ConfigError
from experiments.grid import points

FIGURES: dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]] = {
    "faults": ("faults/versions.toml", faults.draw),
    "residuals": ("faults/residuals.toml", residuals.draw),
}


def draw_all(configs: Path, folder: Path) -> list[Path]:
    """Every figure as PNG and PDF, from the reports below a folder of configs; the paths of what was written.

    Raises:
        ConfigError: a figure's config has no finished trial.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (config, draw) in FIGURES.items():
        figure = draw(rounds_of(configs / config))
        for suffix in (".png", ".pdf"):
            written.append(folder / f"{name}{suffix}")
            # No dates: the same reports give the same files.
            figure.savefig(written[-1], metadata={"CreationDate": None} if suffix == ".pdf" else {})
    return written


def rounds_of(config: Path) -> pd.DataFrame:
    """A row a round of every finished trial of a config's grid; a column an axis, with the point's label.

    Raises:
        ConfigError: there is none.
    """
    frames = []
    for point in points(config):
        reports = [report.read(mark.parent) for mark in sorted(point.home.rglob("DONE"))]
        if reports:
            frames.append(curves({point.title: reports}).assign(**point.labels))
    if not frames:
        raise ConfigError(f"{config} has no finished trial: run dpcomp sweep {config} first")
    return pd.concat(frames, ignore_index=True)

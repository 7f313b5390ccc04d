"""Figures from finished trials: each is drawn from one config's or study's reports, and nothing is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.deliveries import on_devices
from analysis.deliveries import table_of as costs_table
from analysis.figures import cost, efficiency, energy, faults, overlap, residuals
from analysis.losses import at_equal_density, at_equal_energy, table_of
from analysis.results import curves
from experiments import report
from experiments.calls import ConfigError
from experiments.grid import points
from experiments.studies import reports_of


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure: where its reports lie below the configs, how they become a frame, and how that is drawn."""

    source: str
    read: Callable[[Path], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]


def draw_all(configs: Path, folder: Path) -> list[Path]:
    """Every figure as PNG and PDF, from the reports below a folder of configs; the paths of what was written.

    Raises:
        ConfigError: a figure's config or study has no finished trial.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, drawn in FIGURES.items():
        figure = drawn.draw(drawn.read(configs / drawn.source))
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


def losses_of(folder: Path) -> pd.DataFrame:
    """A row a setting of the scrambling study: its loss, measured and foretold.

    Raises:
        ConfigError: there is no report.
    """
    reports = reports_of(folder, "scrambling")
    return at_equal_density(table_of(reports, "payloads"), table_of(reports, "supports"))


def energies_of(folder: Path) -> pd.DataFrame:
    """A row an order, noise and share of energy of the scrambling study: the bytes that it takes.

    Raises:
        ConfigError: there is no report.
    """
    return at_equal_energy(table_of(reports_of(folder, "scrambling"), "energies"))


def costs_of(folder: Path) -> pd.DataFrame:
    """A row an update, codec and device: where the codec pays.

    Raises:
        ConfigError: there is no report.
    """
    return on_devices(costs_table(reports_of(folder, "cost")))


FIGURES = {
    "faults": Drawn(source="faults/versions.toml", read=rounds_of, draw=faults.draw),
    "residuals": Drawn(source="faults/residuals.toml", read=rounds_of, draw=residuals.draw),
    "efficiency": Drawn(source="scrambling", read=losses_of, draw=efficiency.draw),
    "energy": Drawn(source="scrambling", read=energies_of, draw=energy.draw),
    "cost": Drawn(source="cost", read=costs_of, draw=cost.draw),
    "overlap": Drawn(source="scrambling", read=losses_of, draw=overlap.draw),
}

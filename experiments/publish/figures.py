"""Figures from finished trials: each is drawn from one config's or study's reports, and nothing is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.cost.break_even import costs_by_device, measured_costs
from analysis.figures import (
    allocation,
    cost,
    delta_coding,
    efficiency,
    energy,
    faults,
    local_steps,
    orders,
    overlap,
    residuals,
    top_k,
)
from analysis.tables.noise_losses import at_equal_density, at_equal_energy, table_of
from dpcomp.lab.results import report
from dpcomp.lab.results.frames import curves, summary
from dpcomp.lab.sweep.sweep import outcomes
from experiments.studies.reports_of_study import reports_of


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure: where its reports lie below the configs, how they become frames, and how those are drawn."""

    source: str
    read: Callable[[Path], Any]
    draw: Callable[[Any], Figure]


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
    """A row a round of every trial that counts in a config's grid; a column an axis,
    with the point's label, or `grid.<axis>` where that name is taken.

    Raises:
        ConfigError: there is none.
    """
    return _of_points(config, curves)


def trials_of(config: Path) -> pd.DataFrame:
    """A row a trial that counts in a config's grid, at its point's best tuning; a column an axis.

    Raises:
        ConfigError: there is none.
    """
    return _of_points(config, summary)


def trials_below(folder: Path) -> pd.DataFrame:
    """A row a trial that counts of all configs below a folder; `config` is its path below it, without ending.

    Raises:
        ConfigError: there is none.
    """
    configs = sorted(folder.rglob("*.toml"))
    return pd.concat(
        [trials_of(config).assign(config=config.relative_to(folder).with_suffix("").as_posix()) for config in configs],
        ignore_index=True,
    )


def top_k_panels(folder: Path) -> dict[str, pd.DataFrame]:
    """The trials of claim 1 by network and noise; `label` tells the method.

    Raises:
        ConfigError: there is none.
    """
    panels = {}
    for name, title in (("fashion_mnist", "Fashion-MNIST"), ("cifar10", "CIFAR-10")):
        trials = trials_of(folder / f"{name}.toml")
        trials = trials.assign(label=trials["grid.method"], noise=trials.get("noise", "no noise"))
        for noise, part in trials.groupby("noise", sort=False):
            panels[f"{title}, {noise}"] = part
    return panels


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
    return costs_by_device(measured_costs(reports_of(folder, "cost")))


def _of_points(config: Path, table: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    frames = []
    for outcome in outcomes(config):
        if reports := [report.read(folder) for folder in outcome.folders]:
            rows = table({outcome.point.title: reports})
            labels = {f"grid.{name}" if name in rows else name: text for name, text in outcome.point.labels.items()}
            frames.append(rows.assign(**labels, tuning=outcome.tuning, tried=outcome.tried))
    return pd.concat(frames, ignore_index=True)


FIGURES = {
    "top_k": Drawn(source="top_k", read=top_k_panels, draw=top_k.draw),
    "allocation": Drawn(source="allocation/digits.toml", read=trials_of, draw=allocation.draw),
    "orders": Drawn(source="compression", read=trials_below, draw=orders.draw),
    "local_steps": Drawn(source="local_steps", read=trials_below, draw=local_steps.draw),
    "delta_coding": Drawn(source="delta_coding/fashion_mnist.toml", read=rounds_of, draw=delta_coding.draw),
    "faults": Drawn(source="faults/versions.toml", read=rounds_of, draw=faults.draw),
    "residuals": Drawn(source="faults/residuals.toml", read=rounds_of, draw=residuals.draw),
    "efficiency": Drawn(source="scrambling", read=losses_of, draw=efficiency.draw),
    "energy": Drawn(source="scrambling", read=energies_of, draw=energy.draw),
    "cost": Drawn(source="cost", read=costs_of, draw=cost.draw),
    "overlap": Drawn(source="scrambling", read=losses_of, draw=overlap.draw),
}

"""Plots of results: each takes a table of rounds, as `dpcomp.lab.results.read` returns it, and gives the axes.

A line or a point is a value of the column `by`: the mean over its trials, with the range of its seeds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from dpcomp.core.calls import check_keys
from dpcomp.core.errors import ConfigError
from dpcomp.display.text import shortened
from dpcomp.lab.figures.style import COLUMN_INCHES, DASHES, MARKERS, color_of, looks_of

LONGEST = 60  # letters of a name
MOST_NAMES = 10  # as many colours as the palette has that everyone can tell apart
BYTES = ("uplink_total", "downlink_total", "total_bytes", "uplink_bytes", "downlink_bytes", "payload_bytes")
TITLES = {
    "round": "round",
    "epsilon": "ε so far",
    "test_accuracy": "test accuracy (%)",
    "validation_accuracy": "validation accuracy (%)",
    "uplink_total": "uplink, all clients (KiB)",
    "downlink_total": "downlink, all clients (KiB)",
    "total_bytes": "uplink and downlink, all clients (KiB)",
    "payload_bytes": "payload (KiB)",
}
SIZE = (1.6 * COLUMN_INCHES, COLUMN_INCHES)


def plot_curves(
    frame: pd.DataFrame, *, x: str = "round", y: str = "test_accuracy", by: str = "method", axes: Axes | None = None
) -> Axes:
    """Draw a line for each method, the mean of its trials round by round; bands reach from the lowest to the highest.

    Args:
        frame: A row for each round of each trial, with the columns x, y, by, `round` and `seed`.
        x: The column of the horizontal axis. Bytes have a logarithmic one.
        y: The column of the vertical axis; rounds without a value are left out.
        by: The column whose values are the lines.
        axes: Where to draw; None for a new figure.

    Returns:
        The axes.

    Raises:
        ConfigError: The table lacks a column, a column holds no number, or there are more than 10 lines.

    Examples:
        >>> import pandas as pd
        >>> from dpcomp.lab.figures.plots import plot_curves
        >>> frame = pd.DataFrame({"method": "mine", "round": [1, 2], "uplink_total": [9, 18], "test_loss": [0.7, 0.5]})
        >>> axes = plot_curves(frame, x="uplink_total", y="test_loss")
        >>> len(axes.get_lines()), axes.get_xscale()
        (1, 'log')
    """
    kept, names = _checked(frame, (x, y), by)
    axes = _axes(axes)
    for name, look in looks_of(names).items():
        rounds: Any = kept[kept[by] == name].groupby("round")
        across, up = rounds[x].mean().to_numpy(), rounds[y].mean().to_numpy()
        order = np.argsort(across, kind="stable")
        line = {"color": color_of(look), "label": _shown(name)} | _dashed(look)
        axes.plot(across[order], up[order], **line)
        low, high = rounds[y].min().to_numpy()[order], rounds[y].max().to_numpy()[order]
        axes.fill_between(across[order], low, high, color=color_of(look), alpha=0.2, linewidth=0)
    return _labelled(axes, x, y)


def plot_pareto(
    frame: pd.DataFrame,
    *,
    x: str = "total_bytes",
    y: str = "test_accuracy",
    by: str = "method",
    axes: Axes | None = None,
) -> Axes:
    """Draw a point for each method, at the end of its trials, and the front: those that no other one beats.

    Less is better on the horizontal axis, and more on the vertical one; of a column that ends with `_loss`, less is.

    Args:
        frame: As for `plot_curves`.
        x: The column of the horizontal axis: what a trial costs.
        y: The column of the vertical axis: the last value of each trial counts.
        by: The column whose values are the points.
        axes: Where to draw; None for a new figure.

    Returns:
        The axes; bars reach from the lowest trial to the highest.

    Raises:
        ConfigError: As `plot_curves` does.
    """
    kept, names = _checked(frame, (x, y), by)
    axes = _axes(axes)
    _refuse_unknown(frame, ("results", "trial"))
    last: Any = (
        kept.sort_values("round").groupby(list(dict.fromkeys([by, "results", "trial"])), sort=False)[[x, y]].last()
    )
    points: list[tuple[float, float]] = []
    for name, look in looks_of(names).items():
        ends = last.loc[[name]]
        middle = float(ends[x].mean()), float(ends[y].mean())
        reach = [[middle[1] - ends[y].min()], [ends[y].max() - middle[1]]]
        axes.errorbar(
            *([value] for value in middle),
            yerr=reach,
            fmt=MARKERS[look],
            color=color_of(look),
            markersize=6,
            capsize=2,
            linestyle="none",
            label=_shown(name),
            zorder=3,
        )
        points.append(middle)
    front = front_of(points, less_is_better=y.endswith("_loss"))
    axes.step(
        [each for each, _ in front], [each for _, each in front], where="post", color="0.5", linewidth=1, zorder=2
    )
    return _labelled(axes, x, y)


def front_of(points: Sequence[tuple[float, float]], *, less_is_better: bool = False) -> list[tuple[float, float]]:
    """Return the points that no other one beats: none costs as little or less, and is better.

    Args:
        points: (cost, worth) pairs.
        less_is_better: Whether less worth is better.

    Returns:
        The front, from the cheapest.
    """
    sign = -1 if less_is_better else 1
    front: list[tuple[float, float]] = []
    for cost, worth in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * worth > sign * front[-1][1]:
            front.append((cost, worth))
    return front


def plot_overlap(frame: pd.DataFrame, fraction: float, *, by: str = "method", axes: Axes | None = None) -> Axes:
    """Draw what share of an update's k largest values are still among the k largest after the noise, round by round.

    Args:
        frame: As for `plot_curves`, with the column `top_k_overlap` (a share) of the probe `TopKOverlap`.
        fraction: k/d of the probe; the horizontal line is this share, which chance alone would give.
        by: The column whose values are the lines.
        axes: Where to draw; None for a new figure.

    Returns:
        The axes; bands reach from the lowest trial to the highest.

    Raises:
        ConfigError: As `plot_curves` does.
    """
    percent = frame.assign(top_k_overlap=100 * frame["top_k_overlap"]) if "top_k_overlap" in frame else frame
    axes = plot_curves(percent, y="top_k_overlap", by=by, axes=axes)
    axes.axhline(100 * fraction, color="0.5", linewidth=1.5, label=f"chance ({100 * fraction:g} %)", zorder=1.5)
    axes.set(yscale="log", ylabel=f"clean top {100 * fraction:g} %\nfound in the release (%)")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    return axes


def _checked(frame: pd.DataFrame, numbers: Sequence[str], by: str) -> tuple[Any, list[Any]]:
    """Return the rows that have all numbers, scaled as TITLES says, and the names of the groups in their order."""
    _refuse_unknown(frame, (*numbers, by, "round"))
    for name in numbers:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise ConfigError(
                f"the column {name} of the results holds no numbers: give it to --by, or choose another one"
            )
    kept: Any = frame.dropna(subset=[*numbers, by])
    kept = kept[np.isfinite(kept[list(numbers)]).all(axis=1)]
    if kept.empty:
        raise ConfigError(f"no round has a value of {' and '.join(numbers)}: choose other columns")
    names = list(dict.fromkeys(kept[by]))
    if pd.api.types.is_numeric_dtype(kept[by]):
        names = sorted(names)
    if len(names) > MOST_NAMES:
        raise ConfigError(
            f"{by} has {len(names)} values, and nobody tells more than {MOST_NAMES} lines apart: draw fewer results, "
            f"or give --by a column with fewer values{_fewer(kept)}"
        )
    scale = {name: 100.0 for name in numbers if TITLES.get(name, "").endswith("(%)")} | {
        n: 1 / 1024 for n in numbers if n in BYTES
    }
    return kept.assign(**{name: factor * kept[name] for name, factor in scale.items()}), names


def _shown(name: Any) -> str:
    """Return a name as a legend shows it: matplotlib hides what begins with an underscore."""
    return shortened(str(name).lstrip("_"), LONGEST) or "(none)"


def _fewer(frame: Any) -> str:
    """Name the columns that tell trials apart and have few values."""
    columns = [name for name in frame if name in ("results", "task", "seed") or "." in str(name)]
    few = [str(name) for name in columns if 1 < len(frame[name].unique()) <= MOST_NAMES]
    return f", such as {', '.join(few)}" if few else ""


def _refuse_unknown(frame: pd.DataFrame, names: Sequence[str]) -> None:
    check_keys(names, list(map(str, frame.columns)), "the table of results")


def _axes(axes: Axes | None) -> Axes:
    return plt.subplots(figsize=SIZE)[1] if axes is None else axes


def _labelled(axes: Axes, x: str, y: str) -> Axes:
    titles = {name: TITLES.get(name, name.replace("_", " ")) for name in (x, y)}
    axes.set(xlabel=titles[x] + (", log scale" if x in BYTES else ""), ylabel=titles[y])
    if x in BYTES:
        axes.set_xscale("log")
    return axes


def _dashed(look: int) -> dict[str, Any]:
    return {"linestyle": (0, DASHES[look])} if DASHES[look] else {}

"""The figures that any results have: curves, accuracy against bytes, the Pareto front, overlap."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from dpcomp.core.errors import ConfigError
from dpcomp.core.storage import make_folder, write_whole
from dpcomp.lab.figures.plots import SIZE, plot_curves, plot_overlap, plot_pareto
from dpcomp.lab.figures.style import Style, place_legend, use_style

Form = Literal["png", "pdf", "svg"]
FORMS: tuple[Form, ...] = get_args(Form)
PAPER_LETTERS = 9.6  # the size of letters for which SIZE is made
FRACTION = "federation.probes.TopKOverlap.fraction"
UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}  # the same results give the same files

Plot = Callable[[Axes], Axes]


def draw_gallery(
    frame: pd.DataFrame,
    folder: Path,
    *,
    x: str | None = None,
    y: str = "test_accuracy",
    by: str = "method",
    style: Style = "paper",
    forms: Sequence[Form] = FORMS,
) -> list[Path]:
    """Draw all figures that some results have, and write them.

    These are `curves` (y against x, round by round), `bytes` (y against the uplink, unless x is given), `pareto` (the
    last y of each trial against the bytes of both directions, or against x) and, of results with the probe
    `TopKOverlap` at one fraction, `overlap`.

    Args:
        frame: A row for each round of each trial, as `dpcomp.lab.results.read` returns it.
        folder: Where the files go; those of the same names are replaced.
        x: The column of the horizontal axis; None for rounds, and bytes.
        y: The column of the vertical axis.
        by: The column whose values are lines and points.
        style: How the figures look.
        forms: The kinds of files.

    Returns:
        The paths of the files.

    Raises:
        ConfigError: The table lacks a column, a column holds no number, there are too many lines, or the folder cannot
            be written.
    """
    plots: dict[str, Plot] = {"curves": lambda axes: plot_curves(frame, x=x or "round", y=y, by=by, axes=axes)}
    if x is None:
        plots["bytes"] = lambda axes: plot_curves(frame, x="uplink_total", y=y, by=by, axes=axes)
    plots["pareto"] = lambda axes: plot_pareto(frame, x=x or "total_bytes", y=y, by=by, axes=axes)
    fractions = frame[FRACTION].dropna().unique() if FRACTION in frame else []
    if len(fractions) == 1 and "top_k_overlap" in frame:
        plots["overlap"] = lambda axes: plot_overlap(frame, float(fractions[0]), by=by, axes=axes)
    use_style(style)
    drawn = {  # before anything is written
        folder / f"{name}.{form}": _drawn(plot, form) for name, plot in plots.items() for form in forms
    }
    try:
        make_folder(folder)
        for path, content in drawn.items():
            write_whole(path, content)
    except OSError as error:
        raise ConfigError(f"--folder {folder} cannot be written ({error}): give another folder") from error
    return list(drawn)


def _drawn(plot: Plot, form: Form) -> bytes:
    # A figure for each form: its layout would depend on the form in which it was drawn before.
    larger = plt.rcParams["font.size"] / PAPER_LETTERS
    figure, axes = plt.subplots(figsize=(larger * SIZE[0], larger * SIZE[1]))
    try:
        plot(axes)
        place_legend(figure, axes)
        content: Any = BytesIO()
        figure.savefig(content, format=form, metadata=UNDATED.get(form, {}))
        return content.getvalue()
    finally:
        plt.close(figure)

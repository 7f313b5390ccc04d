"""What a private update costs in accuracy by its compression ratio at one ε, with supports drawn before the noise."""

import math
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.figures import ResultsFigure
from analysis.tables.trials import trials_below
from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, MARKERS, use_style
from dpcomp.lab.sweep.paired import paired_difference

PANELS = {
    "fashion_mnist": "Fashion-MNIST\nε ≤ 4",
    "fashion_mnist_epsilon_8": "Fashion-MNIST\nε ≤ 8",
    "fashion_mnist_dirichlet": "Fashion-MNIST, skewed\nε ≤ 4",
    "cifar10": "CIFAR-10\nε ≤ 8, momentum",
    "cifar10_dirichlet": "CIFAR-10, skewed\nε ≤ 8, momentum",
}
MOMENTUM = ", momentum"  # how the names of methods end that are drawn where the title says so
KINDS = {  # methods by what their names begin and end with: the name of the kind, and its look
    ("own", "2 bits"): ("own support, then noise; 2 bits", 2),
    ("own", "%"): ("own support, then noise; 1 bit", 0),
    ("shared", "2 bits"): ("common support, then noise; 2 bits", 3),
    ("shared", "%"): ("common support, then noise; 1 bit", 4),
    ("common", "2 bits"): ("common support, then noise; 2 bits", 3),
}

LEFT_OUT = (("dense", ""), ("own", "float32"))  # of what could be drawn, by the same

APART = {0: 0.96, 2: 1.04, 3: 1.0, 4: 0.88}  # so that methods of one size do not hide each other, by look


def draw(trials: pd.DataFrame) -> Figure:
    """Draw the difference in test accuracy to dense updates as float32 against the compression ratio.

    Args:
        trials: One row for each trial, with the columns `config` (a key of PANELS is drawn), `grid.method` or `method`,
            `seed`, `test_accuracy` (a share) and `compression_ratio`.

    Returns:
        The figure, a panel a config. Points are mean differences that are paired by seed, bars their 95 % intervals.

    Raises:
        ValueError: A method is neither of KINDS nor of LEFT_OUT.
    """
    use_style()
    drawn: Any = trials
    shown = [config for config in PANELS if (drawn["config"] == config).any()]
    figure, axes = plt.subplots(
        1, len(shown), figsize=(2.1 * COLUMN_INCHES, 0.85 * COLUMN_INCHES), sharey=True, squeeze=False
    )
    for panel, config in zip(axes[0], shown, strict=True):
        frame = drawn[drawn["config"] == config]
        by_method = frame.groupby(frame["grid.method"] if "grid.method" in frame else frame["method"])
        accuracy = {name: dict(zip(rows["seed"], rows["test_accuracy"], strict=True)) for name, rows in by_method}
        ending = MOMENTUM if PANELS[config].endswith(MOMENTUM) else ""
        for name, rows in by_method:
            of_panel = str(name).endswith(MOMENTUM) == bool(ending)
            sent = str(name).removesuffix(ending) if of_panel else ""
            kind = next((look for (first, last), look in KINDS.items() if _is(sent, first, last)), None)
            if kind is None:
                if sent and not any(_is(sent, first, last) for first, last in LEFT_OUT):
                    raise ValueError(
                        f"{config}: no look for the method {name!r}: give it one in KINDS, or leave it out"
                    )
                continue
            mean, half = paired_difference(accuracy[name], accuracy["dense" + ending])
            panel.errorbar(
                APART[kind[1]] * rows["compression_ratio"].mean(),
                100 * mean,
                yerr=0 if math.isnan(half) else 100 * half,
                color=COLORS[kind[1]],
                marker=MARKERS[kind[1]],
                capsize=2,
                label=kind[0],
                linestyle="none",
            )
        panel.axhline(0, color="0.3", linewidth=0.8)
        panel.axhline(-1, color="0.3", linewidth=0.8, linestyle=(0, (2, 2)))
        panel.set(xscale="log", xlim=(180, 3200), xlabel="times smaller")
        panel.set_title(PANELS[config], fontsize="small")
        panel.xaxis.set_major_locator(FixedLocator([250, 2000]))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_locator(NullLocator())
    axes[0, 0].set_ylabel("points beside dense float32")
    named = [pair for panel in axes[0] for pair in zip(*panel.get_legend_handles_labels(), strict=True)]
    found = {label: handle for handle, label in named}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=2, fontsize="small")
    return figure


def _is(name: str, first: str, last: str) -> bool:
    return name.startswith(first) and name.endswith(last)


FIGURE = ResultsFigure(source="erased", read=trials_below, draw=draw)

"""How every figure looks: one colour, marker and dash a method, readable in grey and without red and green."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

matplotlib.use("Agg")

Style = Literal["paper", "slides", "dark"]
STYLES: tuple[Style, ...] = get_args(Style)
COLUMN_INCHES = 3.4  # a paper's column
MOST_INSIDE, LONGEST_INSIDE = 5, 32  # names, and letters of a name, that leave room for the curves
COLORS = sns.color_palette("colorblind", 10)
COLORS[8] = (0.15, 0.15, 0.15)  # for its yellow, which paper hardly shows
MARKERS = ("o", "X", "s", "P", "D", "v", "^", "p", "<", ">")
DASHES = ("", (4, 1.5), (1, 1), (3, 1.25, 1.5, 1.25), (5, 1, 1, 1), (2, 2), (6, 2), (3, 1), (1, 2), (4, 1, 2, 1))
LOOKS = {  # the methods of the paper, and the look that each has in all of its figures
    "noise, then top-k": 0,
    "top-k, no feedback": 0,
    "top 1 %, 4 bits": 0,
    "the noisy update's top-k": 0,
    "noise, then top-k, feedback": 1,
    "top-k, feedback": 1,
    "what is sent with feedback": 1,
    "random support, then noise": 2,
    "top-k, momentum correction": 2,
    "top-k of the clean update, noise at the server": 3,
    "the clean update's top-k": 3,
    "dense, float32": 7,
    "float32": 7,
    "dense, 4 bits": 4,
    "4 bits": 4,
}

OTHERS = (9, 5, 6, 8)  # the looks of what is no method of the paper, the strongest first


def use_style(style: Style = "paper") -> None:
    """Set seaborn's theme.

    Args:
        style: "paper" for a column of a paper, "slides" for large text, "dark" for light text on black.
    """
    rc = {
        "figure.constrained_layout.use": True,
        "savefig.dpi": 200,
        "axes.titlesize": "medium",
        "legend.frameon": False,
    }
    rc["svg.hashsalt"] = "dpcomp"  # else each file of the same figure has other names inside
    if style == "dark":
        ground, text, lines = "#111111", "#eeeeee", "#444444"
        rc |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), ground)
        rc |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), text)
        rc |= {"axes.edgecolor": lines, "grid.color": lines}
    sns.set_theme(context="talk" if style == "slides" else "paper", style="whitegrid", palette="colorblind", rc=rc)


def by_method(methods: Sequence[str]) -> dict[str, Any]:
    """Return seaborn's arguments that give each method its own colour and marker.

    Methods of LOOKS have the same look in every figure; each other method gets a look that no known method has.
    """
    names = list(methods)
    looks = looks_of(names)
    return {
        "hue": "method",
        "style": "method",
        "hue_order": names,
        "style_order": names,
        "palette": {name: COLORS[look] for name, look in looks.items()},
        "markers": {name: MARKERS[look] for name, look in looks.items()},
    }


def lines_by_method(methods: Sequence[str], *, marked: bool = True) -> dict[str, Any]:
    """Return the arguments of `by_method` for `seaborn.lineplot`, with a dash pattern for each method.

    Args:
        methods: The methods, in the order of the legend.
        marked: Whether points have markers; False where there are too many points.
    """
    dashes = {name: DASHES[look] for name, look in looks_of(list(methods)).items()}
    return by_method(methods) | {"dashes": dashes} | ({} if marked else {"markers": False})


def plot_means(
    axes: Axes, frame: Any, x: str, y: str, methods: Sequence[str], *, bars: bool = False, **more: Any
) -> None:
    """Draw a line for each method through the means of the rows with the same x.

    Args:
        axes: Where to draw.
        frame: A table with the columns `method`, `x` and `y`.
        x: The column of the horizontal axis.
        y: The column of the vertical axis.
        methods: The methods, in the order of the legend.
        bars: Whether bars, and not a band, span the rows of one x.
        **more: Further arguments of `seaborn.lineplot`.
    """
    style = "bars" if bars else "band"
    looks = lines_by_method(methods)
    sns.lineplot(frame, x=x, y=y, errorbar=("pi", 100), err_style=style, ax=axes, **looks, **more)


def place_legend(figure: Figure, axes: Axes, **inside: Any) -> None:
    """Draw the legend inside the axes, at matplotlib's `inside`; with many names, below the figure, which grows."""
    _, names = axes.get_legend_handles_labels()
    if len(names) <= MOST_INSIDE and max(map(len, names), default=0) <= LONGEST_INSIDE:
        axes.legend(title=None, **inside)
        return
    columns = 2 if figure.get_figwidth() > 2 * COLUMN_INCHES else 1
    legend_below(figure, axes, columns=columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-len(names) // columns))


def legend_below(figure: Figure, axes: Axes, *, columns: int) -> None:
    """Place one legend for all panels, that of the given axes, below them."""
    handles, names = axes.get_legend_handles_labels()
    for each in figure.axes:
        if (drawn := each.get_legend()) is not None:
            drawn.remove()
    figure.legend(handles, names, loc="outside lower center", ncols=columns)


def looks_of(names: Sequence[Any]) -> dict[Any, int]:
    """Return the place of each name in COLORS, MARKERS and DASHES.

    Known methods look as everywhere; others, in their order, get looks that no known one has, while there are such.
    """
    taken = [LOOKS[name] for name in names if name in LOOKS]
    free = [*OTHERS, *(look for look in range(len(COLORS)) if look not in OTHERS and look not in taken)]
    others = (look for _ in range(len(names)) for look in free)  # again, where they outnumber the colours
    return {name: LOOKS[name] if name in LOOKS else next(others) for name in names}


def color_of(look: int) -> Any:
    """Return the colour of a look, light where the ground is dark."""
    dark = sum(to_rgb(matplotlib.rcParams["axes.facecolor"])) < 1.5
    return (0.85, 0.85, 0.85) if dark and max(COLORS[look]) < 0.3 else COLORS[look]

"""Draws rate against distortion: what `python -m benchmarks.codec` measured on the gradient, and two limits.

Both limits treat the values of each layer as independent draws from one distribution, as a codec that knows only the
layers must. They are rate-distortion functions of independent Gaussian layers of power Pᵢ, by reverse water-filling
(`analysis.theory.remote_rate`, without noise):

- Pᵢ = σᵢ², the measured mean squares: an upper bound of the rate-distortion function of any distributions with these
  mean squares (Cover & Thomas 2006, problem 10.8). The best codec lies below.
- Pᵢ = 2^{2hᵢ}/2πe, the entropy powers, with hᵢ the measured differential entropy (SciPy's estimate: Vasicek 1976 for
  layers of more than 1,000 values): the Shannon lower bound (ibid.). Nothing lies below it. It is tight where the water
  level is low; below a bit it is loose, for it ends at the entropy powers, not at the variances.

A uniform quantiser with an ideal entropy coder takes ½ log₂(2πe/12) = 0.2546 bits more than the second, or has
1.53 dB more error, where steps are fine (Gish & Pierce 1968).
"""

from itertools import pairwise
from typing import Any

import numpy as np
import seaborn as sns
from jaxtyping import Float32, Float64
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.stats import differential_entropy

from analysis.theory.remote_rate import RemoteSource
from dpcomp.core.layout import Layout
from dpcomp.lab.figures.style import COLUMN_INCHES, use_style

GISH_PIERCE_BITS = 0.5 * np.log2(2 * np.pi * np.e / 12)
FINE_RATE = 1.5  # bits a coordinate, from which on steps are fine enough for it
RATES, DISTORTIONS = (0.05, 45.0), (3e-5, 6.0)  # of the axes
LEAST_ERROR = 5.5e-5  # smaller ones are drawn here, at the lower edge
ORIGINS = {  # marker, its area, colour, label
    "ours": ("o", 16, 0, "dpcomp: payload, header included"),
    "peer": ("s", 24, 1, "peers: bytes without a header"),
    "formula": ("D", 16, 2, "FLSim: a formula, no bytes"),
}
SLANTED = 38  # degrees
DEFAULT_OFFSET = (5, 0, 0)
LABEL_OFFSETS = {  # points to the right of the marker, points above it, and degrees
    **dict.fromkeys(
        ("random 1 %, Uniform(8)", "top 1 %, Uniform(4)", "top 1 %, Waterfill(4)", "top 1 %, Uniform(8)"),
        (3, 3, SLANTED),
    ),
    **dict.fromkeys(
        ("top 1 %: float32, zeros kept, zstd", "top 1 %: int32 + float32, zstd", "top 1 %: int32 + float32"),
        (3, 3, SLANTED),
    ),
    **dict.fromkeys(("FLSim, top 1 %: bitmask", "Equal(2), packed"), (3, 3, SLANTED)),
    "Waterfill(2)": (2, 11, 0),
    "Waterfill(3)": (6, -6, 0),
    "Sign": (-5, 2, 0),
    "top 10 %, Uniform(4)": (-14, -28, 0),
    "top 10 %, Uniform(8)": (5, -2, 0),
    "Ternary": (-5, -3, 0),
    "FLSim, top 10 %: coo": (0, 8, 0),
    "top 10 %: int32 + float32, zstd": (16, -11, 0),
    "top 10 %: bitmap + float32": (27, -21, 0),
    "top 10 %: float32, zeros kept, zstd": (30, -31, 0),
    "Uniform(4)": (12, -20, 0),
    "Uniform(4), dithered": (14, 11, 0),
    "FLSim, 4 bits": (5, -2, 0),
    "Uniform(8)": (25, 42, 0),
    "int8 a layer, zstd": (24, 31, 0),
    "INT8, packed": (10, 20, 0),
    "int8 a layer": (10, 9, 0),
    "FLSim, 8 bits": (5, -4, 0),
    "float16": (0, 9, 0),
    "float32": (0, 9, 0),
    "float32, zstd": (-1, -9, 0),
}


def draw(points: list[dict[str, Any]], values: Float32[np.ndarray, "d"], layout: Layout) -> Figure:
    """Draw one panel of points and limits.

    Args:
        points: A row a codec, with `name`, `family`, `origin`, `bits_a_coordinate` and `relative_squared_error`.
        values: The vector that was encoded (d,).
        layout: Its layers.
    """
    use_style()
    figure, axes = plt.subplots(figsize=(2.2 * COLUMN_INCHES, 1.65 * COLUMN_INCHES))
    axes.set(xscale="log", yscale="log", xlim=RATES, ylim=DISTORTIONS)
    _draw_limits(axes, values, layout)
    colours = sns.color_palette("colorblind")
    for layer, (origin, (marker, area, colour, label)) in enumerate(ORIGINS.items()):
        here = [point for point in points if point["origin"] == origin and point["family"] != "second round"]
        rates = [point["bits_a_coordinate"] for point in here]
        errors = [max(point["relative_squared_error"], LEAST_ERROR) for point in here]
        style: dict[str, Any] = {"color": colours[colour], "edgecolor": "white", "linewidth": 0.4, "zorder": 5 - layer}
        axes.scatter(rates, errors, area, marker=marker, label=label, **style)
        for point, rate, error in zip(here, rates, errors, strict=True):
            _label(axes, point, rate, error, colours[colour])
    axes.set(xlabel="rate (bits a coordinate of the whole vector)", ylabel="distortion (relative squared error)")
    axes.tick_params(labelsize="small")
    axes.xaxis.set_major_locator(LogLocator(2))
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}" if rate >= 1 else f"1/{1 / rate:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower left", fontsize="small")
    return figure


def rate_distortion_limit(
    powers: Float64[np.ndarray, "layers"], layout: Layout, energy: float
) -> tuple[Float64[np.ndarray, "rates"], Float64[np.ndarray, "rates"]]:
    """Compute the rate-distortion function of Gaussian layers.

    Args:
        powers: Of each layer, at least 0.
        layout: The layers.
        energy: Squared norm of the vector, which distortions are relative to.

    Returns:
        Bits a coordinate, ascending, and the relative squared error at each.
    """
    sizes, positive = np.array(layout.sizes), powers > 0  # a layer without power takes no bits and has no error
    source = RemoteSource(
        variances=tuple(powers[positive]), noise_variances=(0.0,) * int(positive.sum()), sizes=tuple(sizes[positive])
    )
    coordinates = sizes[positive].sum()
    rates = np.geomspace(0.1 * RATES[0], RATES[1], 500) * layout.size / coordinates
    distortions = np.array([source.distortion(float(rate)) for rate in rates])
    return rates * coordinates / layout.size, distortions * coordinates / energy


def _draw_limits(axes: Axes, values: Float32[np.ndarray, "d"], layout: Layout) -> None:
    layers = [values[start:stop].astype(np.float64) for start, stop in pairwise(layout.edges)]
    energy = float(np.sum(values**2.0))
    squares = np.array([np.mean(layer**2) for layer in layers])
    entropies = np.array([float(differential_entropy(layer, base=2)) for layer in layers])
    rates, distortions = rate_distortion_limit(squares, layout, energy)
    axes.plot(rates, distortions, "--", color="0.45", linewidth=1, label="Gaussian layers of these variances: R(D)")
    rates, distortions = rate_distortion_limit(np.exp2(2 * entropies) / (2 * np.pi * np.e), layout, energy)
    axes.plot(rates, distortions, color="0.2", linewidth=1.2, label="Shannon lower bound, measured entropies")
    fine = rates > FINE_RATE
    label = "… and ¼ bit: uniform steps, ideal entropy coder"
    axes.plot(rates[fine] + GISH_PIERCE_BITS, distortions[fine], ":", color="0.2", linewidth=1, label=label)


def _label(axes: Axes, point: dict[str, Any], rate: float, error: float, colour: Any) -> None:
    name, exact = point["name"], point["relative_squared_error"]
    if exact < LEAST_ERROR:
        name += " ↓ " + (f"{exact:.0e}" if exact else "0")
    right, up, degrees = LABEL_OFFSETS.get(point["name"], DEFAULT_OFFSET)
    across = "left" if right > 0 else "right" if right < 0 else "center"
    dark = [0.7 * part for part in colour]
    leader: dict[str, Any] = {"arrowstyle": "-", "color": dark, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}
    leader["relpos"] = (float(right < 0), 0.5)
    axes.annotate(
        name,
        (rate, error),
        (right, up),
        textcoords="offset points",
        horizontalalignment=across,
        verticalalignment="baseline" if degrees else "center",
        rotation=degrees,
        rotation_mode="anchor",
        fontsize=5.5,
        color=dark,
        arrowprops=leader if abs(up) > 9 else None,
    )

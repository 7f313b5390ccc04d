"""The magnitudes of layers, in the order that sums over ranges of them need."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

LONG = 2**17  # values of a layer above which magnitudes are counted by fractions of the largest, not sorted
FRACTIONS = 2**16  # of the largest magnitude, by which they are counted
UNITS = 2**30  # that the largest magnitude has, and the finest step has 2^14 of them
COUNTED_AT_ONCE = 2**15  # values, so that temporary arrays stay in a core's own cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Magnitudes:
    """Hold the magnitudes of layers, layer after layer, ascending in each, in units of the layer.

    Whole numbers add up without rounding, and in a quarter of the time.

    Attributes:
        layers: The values of each layer.
        largest: (layers,) the largest magnitudes; 0 of a layer without values.
        squares: (layers,) the sums of (magnitude ÷ the largest)².
        numbers: The (m,) magnitudes in units, of which the largest of each layer has UNITS.
        edges: (layers + 1,) where those of each layer begin, and where the last ones end.
        sums: The (m + 1,) sums of the first magnitudes, each as often as it occurs.
        counts: The (m + 1,) sums of how often the first magnitudes occur; None, where each stands for itself.
        counted: Whether magnitudes of a layer are rounded to FRACTIONS of the largest, so that few differ.
    """

    layers: Sequence[Float32[np.ndarray, "_"]]
    largest: Float64[np.ndarray, "layers"]
    squares: Float64[np.ndarray, "layers"]
    numbers: Int32[np.ndarray, "m"]
    edges: Int64[np.ndarray, "layers_plus_one"]
    sums: Int64[np.ndarray, "m_plus_one"]
    counts: Int64[np.ndarray, "m_plus_one"] | None
    counted: Bool[np.ndarray, "layers"]

    def of(self, layer: int) -> Int32[np.ndarray, "_"]:
        """Return the magnitudes of a layer in units, ascending."""
        return self.numbers[self.edges[layer] : self.edges[layer + 1]]

    def sizes(self, layers: Int64[np.ndarray, "some"]) -> Int64[np.ndarray, "some"]:
        """Return how many values these layers have."""
        return np.array([len(self.layers[layer]) for layer in layers.tolist()])


def magnitudes_of(layers: Sequence[Float32[np.ndarray, "_"]]) -> Magnitudes:
    """Sort the magnitudes of each layer; of a long one, count them by fractions of the largest.

    Rounding n magnitudes to fractions δ changes the square root of any squared error by δ·√n/2 or less (triangle
    inequality): at a step of 128 fractions, the root of n·step²/12 by 1.4 %.
    """
    counted = np.array([len(layer) > LONG for layer in layers], dtype=bool)
    if not counted.any():
        return sorted_magnitudes(layers)
    parts = [_counted_magnitudes(layer) if len(layer) > LONG else sorted_magnitudes([layer]) for layer in layers]
    counts = [np.ones(len(part.numbers), np.int64) if part.counts is None else np.diff(part.counts) for part in parts]
    return Magnitudes(
        layers=layers,
        largest=np.concatenate([part.largest for part in parts]),
        squares=np.concatenate([part.squares for part in parts]),
        numbers=np.concatenate([part.numbers for part in parts]),
        edges=_running_sums(np.array([len(part.numbers) for part in parts])),
        sums=_running_sums(np.concatenate([np.diff(part.sums) for part in parts])),
        counts=_running_sums(np.concatenate(counts)),
        counted=counted,
    )


def sorted_magnitudes(layers: Sequence[Float32[np.ndarray, "_"]]) -> Magnitudes:
    """Sort the magnitudes of each layer."""
    edges = _running_sums(np.array([len(layer) for layer in layers], dtype=np.int64))
    numbers = np.empty(int(edges[-1]), dtype=np.int32)
    largest, squares = np.zeros(len(layers)), np.zeros(len(layers))
    bounds = edges.tolist()
    for number, layer in enumerate(layers):
        magnitudes = np.abs(layer)
        magnitudes.sort()
        scaled = magnitudes.astype(np.float64)
        if len(scaled) and scaled[-1]:
            largest[number] = scaled[-1]
            scaled *= UNITS / scaled[-1]
            np.rint(scaled, out=scaled)
            squares[number] = float(scaled @ scaled) / UNITS**2
        numbers[bounds[number] : bounds[number + 1]] = scaled
    return Magnitudes(
        layers=layers,
        largest=largest,
        squares=squares,
        numbers=numbers,
        edges=edges,
        sums=_running_sums(numbers),
        counts=None,
        counted=np.zeros(len(layers), dtype=bool),
    )


def _counted_magnitudes(layer: Float32[np.ndarray, "n"]) -> Magnitudes:
    """Count the magnitudes of a layer by fractions of the largest."""
    largest = max(float(layer.max()), -float(layer.min()))
    counts = np.zeros(FRACTIONS + 1, dtype=np.int64)
    for start in range(0, len(layer), COUNTED_AT_ONCE):
        fractions = layer[start : start + COUNTED_AT_ONCE].astype(np.float64)
        fractions /= largest or 1.0
        fractions *= FRACTIONS
        np.abs(np.rint(fractions, out=fractions), out=fractions)
        counts += np.bincount(fractions.astype(np.int64), minlength=len(counts))
    numbers = np.arange(FRACTIONS + 1, dtype=np.int32) * (UNITS // FRACTIONS)
    return Magnitudes(
        layers=[layer],
        largest=np.array([largest]),
        squares=np.array([counts @ (numbers / UNITS) ** 2]),
        numbers=numbers,
        edges=np.array([0, len(numbers)]),
        sums=_running_sums(counts * numbers),
        counts=_running_sums(counts),
        counted=np.array([True]),
    )


def _running_sums(numbers: Int32[np.ndarray, "m"] | Int64[np.ndarray, "m"]) -> Int64[np.ndarray, "m_plus_one"]:
    """Return the sums of the first numbers, from none of them to all."""
    sums = np.empty(len(numbers) + 1, dtype=np.int64)
    sums[0] = 0
    np.cumsum(numbers, out=sums[1:])
    return sums

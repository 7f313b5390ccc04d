"""What a step costs: the entropy of the levels that it makes, and the step that has a wanted entropy."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64
from scipy.special import xlogy

LARGEST_LEVEL = 2**15 - 1
SAMPLE = 2**16  # values of a layer that are looked at while the step is searched
HALVINGS = 24  # of the interval of log₂ step: 2^5 octaves down to a relative 10^-6


def step_for_rate(layers: Sequence[Float32[np.ndarray, "_"]], bits: float) -> float:
    """The step with which the layers' levels, each layer under its own frequencies, take `bits` a value.

    Searched on samples of the layers, then corrected once on all values by the slope that holds for fine steps:
    half a step, one bit more (Gish & Pierce 1968). Values that are too few or too alike to take so many
    bits get the finest step there is. Of zeros alone, 0.
    """
    layers = [layer for layer in layers if len(layer)]
    largest = max((max(float(layer.max()), -float(layer.min())) for layer in layers), default=0.0)
    if largest == 0.0:
        return 0.0
    finest = np.log2(largest) - np.log2(LARGEST_LEVEL)
    weights = np.array([len(layer) for layer in layers]) / sum(map(len, layers))
    samples = [layer[:: 1 + (len(layer) - 1) // SAMPLE] for layer in layers]

    def rate(parts: Sequence[Float32[np.ndarray, "_"]], log_step: float) -> float:
        return float(weights @ [entropy(part, 2.0**log_step) for part in parts])

    low, high = finest, np.log2(largest) + 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rate(samples, middle) > bits else (low, middle)
    found = high
    if any(len(sample) < len(layer) for sample, layer in zip(samples, layers, strict=True)):
        found += rate(layers, found) - bits
    return float(min(2.0 ** max(found, finest), np.finfo(np.float32).max))


def entropy(values: Float32[np.ndarray, "n"], step: float) -> float:
    """Bits a value of round(value ÷ step), under the law that they are drawn from.

    The entropy of the n frequencies themselves falls short of it by (levels − 1)/2n nats (Miller 1955): a table that
    fits few values well has cost as much as it saves.
    """
    levels = np.rint(values / np.float64(step)).astype(np.int32)  # a step may be below float32's range
    occurrences = np.bincount(levels - levels.min())
    return entropy_bits(occurrences) + (np.count_nonzero(occurrences) - 1) / (2 * len(values) * np.log(2))


def entropy_bits(occurrences: Int64[np.ndarray, "levels"]) -> float:
    """The entropy of frequencies, in bits a symbol."""
    n, counts = float(occurrences.sum()), occurrences.astype(np.float64)
    return float((xlogy(n, n) - xlogy(counts, counts).sum()) / n / np.log(2))

"""The rate of a quantisation step: the entropy of its levels, and the step that has a given entropy."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64
from scipy.special import xlogy

MAX_LEVEL_BITS = 16  # of a quantised level on the wire
LARGEST_LEVEL = 2 ** (MAX_LEVEL_BITS - 1) - 1
SEARCH_SAMPLE = 2**16  # values of a layer on which the step is searched
HALVINGS = 24  # of the interval of log₂ step: 2^5 octaves down to a relative 10^-6


def step_for_rate(layers: Sequence[Float32[np.ndarray, "_"]], bits: float) -> float:
    """Return the common step with which the layers' levels take `bits` a value, each layer under its own frequencies.

    It is searched on samples of the layers, then corrected once on all values by the slope that holds for fine steps:
    half the step costs one bit more (Gish & Pierce 1968). Values that are too few, or too often equal, to take so many
    bits get the finest step, whose largest level is 2¹⁵ − 1. For zeros alone the step is 0.
    """
    layers = [layer for layer in layers if len(layer)]
    largest = max((max(float(layer.max()), -float(layer.min())) for layer in layers), default=0.0)
    if largest == 0.0:
        return 0.0
    finest = np.log2(largest) - np.log2(LARGEST_LEVEL)
    weights = np.array([len(layer) for layer in layers]) / sum(map(len, layers))
    samples = [layer[:: 1 + (len(layer) - 1) // SEARCH_SAMPLE] for layer in layers]

    def mean_rate(parts: Sequence[Float32[np.ndarray, "_"]], log_step: float) -> float:
        return float(weights @ [rate_at_step(part, 2.0**log_step) for part in parts])

    low, high = finest, np.log2(largest) + 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_rate(samples, middle) > bits else (low, middle)
    log_step = high
    if any(len(sample) < len(layer) for sample, layer in zip(samples, layers, strict=True)):
        log_step += mean_rate(layers, log_step) - bits
    return float(min(2.0 ** max(log_step, finest), np.finfo(np.float32).max))


def rate_at_step(values: Float32[np.ndarray, "n"], step: float) -> float:
    """Estimate the entropy of round(value ÷ step), in bits a value, under the law that the n values are drawn from.

    The entropy of the measured frequencies is too small by about (levels − 1)/2n nats (Miller 1955), which is added: a
    frequency table that fits few values well costs as much as it saves.
    """
    levels = np.rint(values / np.float64(step)).astype(np.int32)  # a step may be below float32's range
    occurrences = np.bincount(levels - levels.min())
    return entropy_bits(occurrences) + (np.count_nonzero(occurrences) - 1) / (2 * len(values) * np.log(2))


def entropy_bits(occurrences: Int64[np.ndarray, "levels"]) -> float:
    """Return the entropy of the distribution with these frequencies, in bits a symbol."""
    n, counts = float(occurrences.sum()), occurrences.astype(np.float64)
    return float((xlogy(n, n) - xlogy(counts, counts).sum()) / n / np.log(2))

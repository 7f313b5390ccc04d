"""Rules for the bits of layers that are compared with `dp.Waterfill`, for bit packing."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from dpcomp.codec.error_curves import WIDTHS, error_curves
from dpcomp.codec.magnitudes import magnitudes_of
from dpcomp.codec.widths import best_columns
from dpcomp.core.layout import split_by_counts

WIDEST = 8  # bits that a layer may have


@dataclass(frozen=True)
class LeastErrorSteps:
    """Allocate the same width to every layer, each at the step with the least squared error.

    It differs from `dp.Equal` by the steps alone, and from `dp.Waterfill` by the widths alone.

    Attributes:
        bits: Bits a value, from 2.
    """

    bits: int

    def widths_and_steps(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return the width for all layers, and each layer's best step."""
        layers = split_by_counts(values, counts)
        _, steps = error_curves(magnitudes_of(layers), np.full(len(layers), self.bits))
        return (self.bits,) * len(layers), tuple(steps[:, WIDTHS.tolist().index(self.bits)].tolist())

    def steps(self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]) -> tuple[float, ...]:
        """Raise ValueError: the rule is for bit packing."""
        raise ValueError(f"{self} gives no rates: use dp.FixedWidth()")


@dataclass(frozen=True)
class LGreCo:
    """Allocate the fewest bits whose squared error is no more than that of equal widths (Markov et al. 2024, L-GreCo).

    Steps span each layer's largest value, as those of `dp.Equal` do. The rule is applied to each message, where the
    paper applies it to gradients that are summed over some steps, from time to time.

    Attributes:
        bits: The width, from 2, of the equal shares that set the error.
    """

    bits: int

    def widths_and_steps(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return the cheapest widths with that error, and steps that span the layers."""
        layers = split_by_counts(values, counts)
        errors, steps = _spanning(layers)
        sizes = np.array([len(layer) for layer in layers])
        costs, rows = sizes[:, None] * WIDTHS[WIDTHS <= WIDEST], np.arange(len(layers))
        allowed = float(errors[:, WIDTHS.tolist().index(self.bits)].sum())
        low, high = 0, int(self.bits * sizes.sum())  # budgets: one too small, and one that suffices
        chosen = best_columns(errors, costs, high)
        while high - low > 1:
            middle = (low + high) // 2
            tried = best_columns(errors, costs, middle)
            if float(errors[rows, tried].sum()) <= allowed:
                high, chosen = middle, tried
            else:
                low = middle
        return tuple(WIDTHS[chosen].tolist()), tuple(steps[rows, chosen].tolist())

    def steps(self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]) -> tuple[float, ...]:
        """Raise ValueError: the rule is for bit packing."""
        raise ValueError(f"{self} gives no rates: use dp.FixedWidth()")


def _spanning(
    layers: list[Float32[np.ndarray, "_"]],
) -> tuple[Float64[np.ndarray, "layers widths"], Float64[np.ndarray, "layers widths"]]:
    """Return the squared error of each layer at each width up to WIDEST, with steps that span it; and the steps."""
    widths = WIDTHS[WIDTHS <= WIDEST].tolist()
    errors, steps = np.zeros((len(layers), len(widths))), np.zeros((len(layers), len(widths)))
    for row, layer in enumerate(layers):
        exact = layer.astype(np.float64)
        largest = float(np.abs(exact).max(initial=0.0))
        for column, width in enumerate(widths):
            step = largest / (2 ** (width - 1) - 1) if width else 0.0
            rounded = np.rint(exact / step) * step if step else np.zeros_like(exact)
            errors[row, column], steps[row, column] = float(((exact - rounded) ** 2).sum()), step
    return errors, steps

"""How many bits each layer gets: the sender decides on what it sends, and the wire says what was decided.

An allocator speaks for both kinds of entropy slot: `packed` for plain bit packing, where a layer has a whole
number of bits, and `coded` for an entropy coder, where the step of the quantiser sets the rate.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from dpcomp.codec.rate import step_for_rate
from dpcomp.codec.widths import cheapest_widths
from dpcomp.core.checks import whole_number
from dpcomp.core.layout import split_by_counts

WIDEST = 16  # bits of a level


@runtime_checkable
class Allocator(Protocol):
    """Bits a layer; `counts` says how many of the values each layer holds."""

    def packed(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Each layer's bits a value, 0 (nothing is sent, and zeros are decoded) or 2 to 16; and its step."""
        ...

    def coded(self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]) -> tuple[float, ...]:
        """Each layer's step, before it is rounded to the two bytes of the wire."""
        ...


@dataclass(frozen=True)
class Equal:
    """The same rate in every layer: `bits` a value, as a width or as what the entropy coder makes of it."""

    bits: int

    def __post_init__(self):
        object.__setattr__(self, "bits", whole_number(self.bits, f"{self}: the bits of a level", least=2, most=WIDEST))

    def packed(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The same width everywhere, with levels that span each layer."""
        layers = split_by_counts(values, counts)
        top = 2 ** (self.bits - 1) - 1
        return (self.bits,) * len(counts), tuple(float(np.abs(layer).max(initial=0)) / top for layer in layers)

    def coded(self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]) -> tuple[float, ...]:
        """In each layer, the step whose levels have an entropy of `bits`."""
        layers = split_by_counts(values, counts)
        return tuple(step_for_rate([layer], self.bits) for layer in layers)


@dataclass(frozen=True)
class Waterfill:
    """The rates that make the squared error smallest at `bits` a value on average (Cover & Thomas 2006, §10.3.3).

    With an entropy coder reverse water-filling is one step for all layers: where the variance is high, that
    takes more bits. With bit packing it is whole bits a layer, the best that the layers' measured error curves
    allow (as in L-GreCo, 2210.17357), each at the step with the least error, which may clip a heavy tail.

    With `clients`, the number of updates that the server averages, the fill sees the privacy noise: what is
    coded is the Wiener estimate s²/(s² + σ²)·value of the signal, and the water rises over its variance
    s⁴/(s² + σ²), not over that of signal and noise (indirect rate-distortion: Dobrushin & Tsybakov 1962). s² is
    tracked from the broadcasts, σ² is the update's own. That wants feedback=False and no choice by magnitude. It makes
    the error of one update smallest, and no more: an estimate is shorter than what it estimates, by layers, and a
    model that is trained on estimates learns worse (`docs/figures/allocation.png`).

    **Privacy:** bits, steps and estimates are computed from released values (PRIVACY_RULES 12).
    """

    bits: float
    clients: int | None = None

    def __post_init__(self):
        if isinstance(self.bits, bool) or not 0 < self.bits <= WIDEST:
            raise ValueError(f"{self}: the mean rate lies above 0, up to {WIDEST} bits a value")
        if self.clients is not None:
            whole_number(self.clients, f"{self}: clients, how many updates the server averages,", least=1)

    @property
    def averaged_clients(self) -> int | None:
        """Of how many updates the server wants the mean, where this sees the privacy noise."""
        return self.clients

    def packed(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The best widths within the budget, and for each the step with the least error."""
        return cheapest_widths(split_by_counts(values, counts), self.bits)

    def coded(self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]) -> tuple[float, ...]:
        """One step, with which all levels together have the entropy of the budget."""
        return (step_for_rate(split_by_counts(values, counts), self.bits),) * len(counts)


@dataclass(frozen=True)
class FixedStep:
    """One step for all layers, known beforehand; the rate is what comes out."""

    size: float

    def __post_init__(self):
        if not 0 < self.size < np.inf:
            raise ValueError(f"{self}: a step is a positive number")

    def packed(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """There are no widths."""
        raise ValueError(f"{self} sets no number of bits: use dp.RangeCoder(), or a width")

    def coded(self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]) -> tuple[float, ...]:
        """The same everywhere."""
        return (float(self.size),) * len(counts)

"""Bit allocation: the width or step of each layer, chosen by the sender and sent as side information.

An allocator answers for both sorts of entropy coder: `widths_and_steps` for bit packing (`FixedWidth`), where each
layer has a whole number of bits, and `steps` for an entropy coder (`RangeCoder`), where the step sets the rate.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from dpcomp.codec.rate import MAX_LEVEL_BITS, step_for_rate
from dpcomp.codec.widths import best_widths
from dpcomp.core.checks import real_number, whole_number
from dpcomp.core.layout import split_by_counts


@runtime_checkable
class Allocator(Protocol):
    """The protocol of a bit allocation, given to a quantiser such as `Uniform(allocator)`.

    Only the sender calls it: what it decides is in the side information, so it may compute in floating point, on all
    the values. An optional attribute `averaged_clients`: the number of updates that the server averages, for an
    allocator that separates the signal from the privacy noise; the values are then Wiener estimates.

    **Privacy:** the values are released, so whatever is computed of them is free (PRIVACY_RULES 12).
    """

    def widths_and_steps(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return each layer's width in bits a value, and its quantisation step, for bit packing.

        Args:
            values: The (k,) values, layer after layer.
            counts: How many of them each layer has; they add up to k.

        Returns:
            The widths, each 0 (nothing is sent, and zeros are decoded) or 2 to 16; and the steps, from 0.
        """
        ...

    def steps(self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]) -> tuple[float, ...]:
        """Return each layer's quantisation step for an entropy coder.

        Args:
            values: The (k,) values, layer after layer.
            counts: How many of them each layer has; they add up to k.

        Returns:
            The steps, from 0; the quantiser rounds them up to the bfloat16 that is sent.
        """
        ...


@dataclass(frozen=True)
class Equal:
    """Allocate the same rate to every layer: `bits` a value.

    With `FixedWidth` every level has this width, and each layer's step spans its largest magnitude. With `RangeCoder`
    each layer's step is the one whose levels have this entropy. Use it where all layers shall have the same relative
    error; at the same bytes the squared error of the whole update is larger than with `Waterfill`, at fine steps by the
    ratio of the arithmetic to the geometric mean of the layers' variances (the coding gain).

    Attributes:
        bits: Bits a value, a whole number from 2 to 16.

    Raises:
        TypeError: `bits` is not a whole number.
        ValueError: `bits` lies outside the range.
    """

    bits: int

    def __post_init__(self):
        bits = whole_number(self.bits, f"{self}: the bits of a level", least=2, most=MAX_LEVEL_BITS)
        object.__setattr__(self, "bits", bits)

    def widths_and_steps(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return the same width for all layers, and steps with which the levels span each layer."""
        layers = split_by_counts(values, counts)
        top = 2 ** (self.bits - 1) - 1
        return (self.bits,) * len(counts), tuple(float(np.abs(layer).max(initial=0)) / top for layer in layers)

    def steps(self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]) -> tuple[float, ...]:
        """Return for each layer the step whose levels have an entropy of `bits`."""
        layers = split_by_counts(values, counts)
        return tuple(step_for_rate([layer], self.bits) for layer in layers)


@dataclass(frozen=True)
class Waterfill:
    """Allocate rates that minimise the squared error at `bits` a value on average (Cover & Thomas 2006, §10.3.3).

    With `RangeCoder`, reverse water-filling is one step for all layers: layers of high variance then take more bits by
    themselves. With `FixedWidth` it is a whole number of bits a layer, the best that the layers' measured error curves
    allow (as in L-GreCo, 2210.17357), each at the step with the least error, which may clip a heavy tail. Use it where
    the layers' magnitudes differ; a layer of small values may get no bits, and waits in the residual, if there is
    feedback.

    With `clients`, the number of updates that the server averages, the allocation separates signal from privacy noise:
    what is coded is the Wiener estimate s²/(s² + σ²)·value of the signal, and the rates follow its variance
    s⁴/(s² + σ²), not that of signal plus noise (indirect rate-distortion: Dobrushin & Tsybakov 1962). s² is
    tracked from the broadcasts, σ² is the update's own. This needs feedback=False and no choice by magnitude. It makes
    the error of one update smallest, and no more: an estimate is shorter than what it estimates, differently by layers,
    and a model that is trained on estimates learns worse (`docs/figures/allocation.png`).

    **Privacy:** bits, steps and estimates are computed from released values (PRIVACY_RULES 12).

    Attributes:
        bits: The mean rate in bits a value, above 0, up to 16; it need not be whole.
        clients: The number of updates that the server averages; None treats the values as signal.

    Raises:
        TypeError: `bits` is not a number, or `clients` not a whole number.
        ValueError: `bits` or `clients` lies outside its range.

    Examples:
        >>> import dpcomp as dp
        >>> values = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
        >>> values[:1000] *= 8  # three bits more than the second layer needs
        >>> widths, _ = dp.Waterfill(4).widths_and_steps(values, np.array([1000, 1000]))
        >>> widths
        (6, 2)
    """

    bits: float
    clients: int | None = None

    def __post_init__(self):
        mean_rate = real_number(
            self.bits, "Waterfill(bits)", f"a mean rate above 0, up to {MAX_LEVEL_BITS} bits a value"
        )
        if not 0 < mean_rate <= MAX_LEVEL_BITS:
            raise ValueError(f"{self}: the mean rate lies above 0, up to {MAX_LEVEL_BITS} bits a value")
        if self.clients is not None:
            clients = whole_number(self.clients, f"{self}: clients, how many updates the server averages,", least=1)
            object.__setattr__(self, "clients", clients)
        object.__setattr__(self, "bits", mean_rate)

    @property
    def averaged_clients(self) -> int | None:
        """The number of updates that the server averages, if the allocation separates signal from noise; else None."""
        return self.clients

    def widths_and_steps(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return the widths with the least squared error within the budget, and for each layer its best step."""
        return best_widths(split_by_counts(values, counts), self.bits)

    def steps(self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]) -> tuple[float, ...]:
        """Return one step for all layers, with which all levels together have the entropy of the budget."""
        return (step_for_rate(split_by_counts(values, counts), self.bits),) * len(counts)


@dataclass(frozen=True)
class FixedStep:
    """Use one step for all layers, given beforehand: it fixes the error, and the rate follows from the values.

    The squared error is about size²/12 a value, whatever the layer; the bytes of a message are not bounded by it. For
    `RangeCoder` only: no width holds the levels of every update.

    Attributes:
        size: The step, a finite number above 0, in the units of the update.

    Raises:
        TypeError: `size` is not a number.
        ValueError: `size` is not a finite number above 0.
    """

    size: float

    def __post_init__(self):
        size = real_number(self.size, "FixedStep(size)", "a finite number above 0")
        if not 0 < size < np.inf:
            raise ValueError(f"{self}: a step is a finite number above 0")
        object.__setattr__(self, "size", size)

    def widths_and_steps(
        self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Raise ValueError: a fixed step has no widths."""
        raise ValueError(f"{self} gives no number of bits, which FixedWidth needs: use dp.RangeCoder(), or a width")

    def steps(self, values: Float32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]) -> tuple[float, ...]:
        """Return the given step for every layer."""
        return (self.size,) * len(counts)

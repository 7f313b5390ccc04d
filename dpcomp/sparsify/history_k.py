"""HistoryK: a random support that favours coordinates which broadcasts moved much."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Float32, Int64
from randomgen import ChaCha

from dpcomp.core.checks import real_number
from dpcomp.core.layout import Layout
from dpcomp.core.public_context import PublicContext
from dpcomp.core.support import Listed, Support
from dpcomp.privacy.claim import Claim
from dpcomp.privacy.units.unit_gradients import Total, Units
from dpcomp.sparsify.fraction import Fraction

Score = Literal["layer", "row_column", "coordinate"]

DIGITS = 20  # bits of a broadcast's value that its energy is computed of; fewer where a layer has 2²³ values or more
FRACTION_BITS = 16  # of a logarithm
TABLE_BITS = 12  # of a mantissa that a logarithm is read for
MOST_HALVINGS = 40  # from the largest weight to the smallest: 23 bits of a logarithm and these fit into 63
LEAST_SHARE = 2.0**-6  # of an energy that is left when the noise is taken off


@dataclass(frozen=True)
class HistoryK(Fraction):
    """Keep round(fraction·d) coordinates, drawn with probabilities that grow with the energy of past broadcasts.

    Both ends keep the mean energy b² of what broadcasts b held, with older ones counting less, and compute the support
    from it and the round's public key, so positions cost no byte. A share of the coordinates is drawn uniformly, so
    that all are heard of. A broadcast's zeros are taken for coordinates that it did not hold.

    Where broadcasts are mostly noise, their energy says little: then it chooses no better than `RandomK`, and costs
    time. Energies of rows and columns average noise away that those of single coordinates keep (the factored second
    moments of Shazeer & Stern 2018, "Adafactor", section 3).

    Drawing without replacement with weights is a race of exponential clocks (Efraimidis & Spirakis 2006). Energies are
    sums of whole numbers, weights are powers of two, and logarithms are read from a table of whole numbers, so that
    every machine draws the same support.

    **Privacy:** the support is a function of broadcasts, which are released, and of public random numbers; a round's
    mechanism is chosen from the results of those before it at the same noise and rate, so the rounds compose as fixed
    ones do (PRIVACY_RULES 7). No residual and no clean value enters.

    Attributes:
        fraction: The density k/d, in (0, 1]; at least one coordinate is kept.
        score: Whose energies are kept: "layer" one a layer, "row_column" one for each row and each column of a layer,
            whose product over the layer's is that of a coordinate, "coordinate" one for each.
        decay: How much of the past a broadcast leaves, in [0, 1).
        power: A weight is about energy^(power/2): 0 for uniform, 2 for the energy itself.
        explore: The share of the support that is drawn uniformly, in (0, 1].
        noise_stddev: The standard deviation of the noise in a broadcast's coordinate; its square is taken off energies.

    Raises:
        TypeError: A number is none.
        ValueError: A number lies outside its range, or the score is unknown.

    Examples:
        >>> import dpcomp as dp
        >>> mechanism = (dp.HistoryK(0.01), dp.Clip(1.0), dp.Gaussian(1.0))
        >>> pipeline = dp.Pipeline(mechanism=mechanism, feedback=False)
        >>> memory = pipeline.init_client(1000, dp.PublicSeed(0), client=0)
        >>> context = pipeline.channel.context(memory)
        >>> dp.HistoryK(0.01).public_support(context).count(1000)
        10
    """

    score: Score = "row_column"
    decay: float = 0.9
    power: int = 2
    explore: float = 0.1
    noise_stddev: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.score not in get_args(Score):
            raise ValueError(f"HistoryK(score={self.score!r}): energies are kept by {', '.join(get_args(Score))}")
        decay = real_number(self.decay, "HistoryK(decay)", "a number in [0, 1)")
        explore = real_number(self.explore, "HistoryK(explore)", "a share above 0, up to 1")
        noise = real_number(self.noise_stddev, "HistoryK(noise_stddev)", "a finite number from 0 on")
        if not 0 <= decay < 1 or not 0 < explore <= 1 or not 0 <= noise < math.inf:
            raise ValueError(f"{self}: decay lies in [0, 1), explore in (0, 1], noise_stddev is finite, from 0 on")
        if self.power not in (0, 1, 2, 3, 4):
            raise ValueError(f"HistoryK(power={self.power!r}): give 0, 1, 2, 3 or 4")
        for name, value in (("decay", decay), ("explore", explore), ("noise_stddev", noise)):
            object.__setattr__(self, name, value)

    def claim(self, before: Claim, where: str) -> Claim:
        """Return the claim about the input: a support from released history keeps a bound, and makes none."""
        self.refuse_after_noise(before, where)
        return before

    def initial_history(self, layout: Layout) -> Float32[np.ndarray, "h"]:
        """Return the history before any broadcast: for each group an energy and a number of values, all 0."""
        return np.zeros(2 * self._groups(layout), dtype=np.float32)

    def update_history(
        self, history: Float32[np.ndarray, "h"], broadcast: Float32[np.ndarray, "d"], layout: Layout
    ) -> Float32[np.ndarray, "h"]:
        """Return the history after a broadcast: its energies and numbers of values, and the decayed ones.

        Args:
            history: The (h,) history before it.
            broadcast: The (d,) broadcast as every end decoded it.
            layout: The layers of the broadcast.
        """
        digits = min(DIGITS, (63 - max(layout.sizes).bit_length()) // 2)  # their squares add up below 2⁶³
        shift = digits - int(np.frexp(np.abs(broadcast).max(initial=0.0))[1])
        whole = np.rint(np.ldexp(broadcast.astype(np.float64), shift)).astype(np.int64)
        energies = np.ldexp(self._sums(whole * whole, layout).astype(np.float64), -2 * shift)
        largest = np.finfo(np.float32).max
        new = np.concatenate([np.minimum(energies, largest), self._sums((broadcast != 0).astype(np.int64), layout)])
        return np.minimum(np.float32(self.decay) * history + new.astype(np.float32), largest)

    def public_support(self, context: PublicContext) -> Listed:
        """Return the support of the round, drawn under the context's `mask_key`."""
        layout, k = context.layout, self.count(context.layout.size)
        history = self.initial_history(layout) if context.history is None else context.history
        words = np.asarray(ChaCha(key=context.mask_key, rounds=20).random_raw(2 * layout.size)).astype(np.uint64)
        clocks = _exponential(words[: layout.size]) << self._halvings(history, layout)
        uniform = min(k, max(1, round(self.explore * k)))
        chosen = _smallest(clocks, k - uniform)
        last = _exponential(words[layout.size :])
        last[chosen] = np.iinfo(np.int64).max
        return Listed(np.sort(np.concatenate([chosen, _smallest(last, uniform)])))

    def apply(self, value: Units | Total, context: PublicContext) -> Units | Total:
        """Restrict units, or their sum, to the round's support."""
        return value.restrict(self.public_support(context))

    def select(self, vector: Float[np.ndarray, "d"], candidates: Support, context: PublicContext) -> Support:
        """Return the round's support; it depends on released history and the key alone.

        Args:
            vector: The (d,) vector to be sent; not used.
            candidates: Not used.
            context: Gives the history, the mask key and the layout.
        """
        return self.public_support(context)

    def _groups(self, layout: Layout) -> int:
        if self.score == "coordinate":
            return layout.size
        return sum(1 if self.score == "layer" else 1 + rows + columns for rows, columns in _matrices(layout))

    def _sums(self, values: Int64[np.ndarray, "d"], layout: Layout) -> Int64[np.ndarray, "groups"]:
        """Return the sums of whole numbers over each group; of a layer, over all of it, its rows and its columns."""
        if self.score == "coordinate":
            return values
        sums: list[Any] = []
        for part, (rows, columns) in zip(layout.split(values), _matrices(layout), strict=True):
            matrix = part.reshape(rows, columns)
            sums.append(matrix.sum().reshape(1))
            if self.score == "row_column":
                sums += [matrix.sum(axis=1), matrix.sum(axis=0)]
        return np.concatenate(sums)

    def _halvings(self, history: Float32[np.ndarray, "h"], layout: Layout) -> Int64[np.ndarray, "d"]:
        """Return by how many halvings the weight of a coordinate is below the largest one."""
        energy, number = np.split(history.astype(np.float64), 2)
        heard = number > 0
        mean = np.divide(energy, number, out=np.zeros_like(energy), where=heard)
        mean = np.maximum(mean - self.noise_stddev**2, LEAST_SHARE * mean)
        parts: list[Any] = []
        at = 0
        for size, (rows, columns) in zip(layout.sizes, _matrices(layout), strict=True):
            if self.score == "coordinate":
                parts.append(mean[at : at + size])
                at += size
            elif self.score == "layer":
                parts.append(np.full(size, mean[at]))
                at += 1
            else:
                whole, by_row, by_column = np.split(mean[at : at + 1 + rows + columns], [1, 1 + rows])
                product = by_row[:, None] * by_column
                parts.append(np.divide(product, whole[0], out=np.zeros_like(product), where=whole[0] > 0).ravel())
                at += 1 + rows + columns
        means = np.concatenate(parts)
        exponents = np.frexp(means)[1].astype(np.int64)
        known = means > 0
        if not known.any():
            return np.zeros(layout.size, dtype=np.int64)
        exponents[~known] = np.sort(exponents[known])[known.sum() // 2]  # what was never heard of is taken for ordinary
        return np.minimum((exponents.max() - exponents) * self.power // 2, MOST_HALVINGS)


def _matrices(layout: Layout) -> Iterator[tuple[int, int]]:
    """Yield the rows and columns of each layer as a matrix: its first axis, and all others."""
    for (_, shape), size in zip(layout.shapes, layout.sizes, strict=True):
        rows = shape[0] if shape else 1
        yield rows, size // rows if rows else 0


def _logarithms() -> Int64[np.ndarray, "mantissas"]:
    """Return log₂(½ + i/2ⁿ⁺¹) for the n-bit numbers i, rounded down to whole multiples of 2⁻¹⁶, by whole numbers alone.

    Squaring a number in [1, 2) doubles its logarithm, so each squaring gives a bit.
    """
    table: list[int] = []
    for i in range(2**TABLE_BITS):
        number, bits = (2**TABLE_BITS + i) << (62 - TABLE_BITS), 0  # in units of 2⁻⁶²
        for _ in range(FRACTION_BITS):
            number = number * number >> 62
            bits = 2 * bits + (number >> 63)
            number >>= number >> 63
        table.append(bits - 2**FRACTION_BITS)
    return np.array(table, dtype=np.int64)


_LOGARITHMS = _logarithms()


def _exponential(words: np.ndarray) -> Int64[np.ndarray, "d"]:
    """Return −log₂ of uniform numbers as whole multiples of 2⁻¹⁶: times of exponential clocks, all at one rate."""
    mantissas, exponents = np.frexp(np.maximum(words, 1).astype(np.float64))
    places = ((mantissas - 0.5) * 2.0 ** (TABLE_BITS + 1)).astype(np.int64)
    return (64 - exponents.astype(np.int64) << FRACTION_BITS) - _LOGARITHMS[places]


def _smallest(numbers: Int64[np.ndarray, "d"], k: int) -> Int64[np.ndarray, "k"]:
    """Return the positions of the k smallest numbers; of equal ones the lower positions."""
    if k == 0:
        return np.empty(0, dtype=np.int64)
    largest = np.partition(numbers, k - 1)[k - 1]
    below, equal = np.flatnonzero(numbers < largest), np.flatnonzero(numbers == largest)
    return np.concatenate([below, equal[: k - len(below)]])

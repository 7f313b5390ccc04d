"""What is expected of noisy top-k supports when the clean vector moves from round to round."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.optimize import brentq
from scipy.special import entr, ndtr

from dpcomp.sparsify.top_k_indices import top_k_indices

BYTE = 8
COUNTS = (2**7, 2**14, 2**21)  # from which on a count takes another byte
BINS_A_DEVIATION = 2**8  # of the noise, for the threshold alone
MOST_BINS = 2**22  # the last one holds all that is more than 16,384 deviations large, and so kept for certain


@dataclass(frozen=True, kw_only=True, eq=False)
class Keeping:
    """How likely each coordinate of a clean vector g is in the top k of g + n, n ~ N(0, σ²) independent.

    p(g) = P(|g + n| > τ), with τ solving Σp = k, as in `noisy_top_k.vector_scrambling`, whose means these are;
    here they stay apart, so that they can be held against those of the next round. Without noise p is 0 or 1.
    """

    probabilities: Float64[np.ndarray, "d"]
    top: Bool[np.ndarray, "d"]  # the clean vector's own top k
    energies: Float64[np.ndarray, "d"]  # shares of the clean vector's squared norm
    k: int

    @classmethod
    def of(cls, clean: Float[np.ndarray, "d"], *, k: int, noise_stddev: float) -> "Keeping":
        """Of one clean vector (d,), and noise in its unit.

        τ is solved on magnitudes in bins of σ/256 (Σp moves by less than 10⁻⁶ d); p is that of the values themselves.

        Raises:
            ValueError: k is not in (0, d), the noise is negative, or the vector is all zeros.
        """
        magnitudes, top = np.abs(clean).astype(np.float64), np.zeros(len(clean), dtype=bool)
        if not 0 < k < len(clean) or not noise_stddev >= 0 or not magnitudes.any():
            raise ValueError(
                f"Keeping: k = {k} of {len(clean)} values, noise_stddev = {noise_stddev}; give 0 < k < d, noise ≥ 0 "
                "and a vector that is not all zero"
            )
        top[top_k_indices(clean, k)] = True
        energies = np.square(magnitudes / magnitudes.max())
        probabilities = top.astype(np.float64) if noise_stddev == 0 else _kept(magnitudes / noise_stddev, k)
        return cls(probabilities=probabilities, top=top, energies=energies / energies.sum(), k=k)

    @property
    def recall(self) -> float:
        """The expected share of the clean top k that is in the noisy one."""
        return float(self.probabilities[self.top].mean())

    @property
    def captured_energy(self) -> float:
        """The expected share of the clean energy on the noisy top k."""
        return float(self.energies @ self.probabilities)

    def overlap(self, other: "Keeping") -> float:
        """The expected share that two noisy supports have in common, Σ p p′/k: their noises are independent.

        Of a vector with itself, Σp²/k, it is that of a clean vector which stands still.

        Raises:
            ValueError: the supports differ in size.
        """
        if self.k != other.k:
            raise ValueError(f"Keeping.overlap: supports of {self.k} and {other.k} coordinates; give two of one size")
        return float(self.probabilities @ other.probabilities) / self.k

    def index_bits(self, later: "Keeping", edges: Int64[np.ndarray, "layers_plus_one"]) -> float:
        """What telling the later support takes of whoever knows this one, in expected bits a kept coordinate.

        k·h(r) of `index_bits.temporal_index_bits`, or what is less: each of its two parts may be told layer by
        layer, with Σp and Σpp′ of the layer for its counts, and the whole without the support before. So the codec
        chooses (`dpcomp.codec.entropy.positions`), and tells its choice and the counts, which are in the bits.
        """
        before, after, common = (
            np.diff(np.append(0.0, np.cumsum(p))[edges])
            for p in (self.probabilities, later.probabilities, self.probabilities * later.probabilities)
        )
        places = np.diff(edges).astype(np.float64)
        given_this = _told(before, common) + _told(places - before, after - common)
        return (BYTE + min(given_this, _told(places, after))) / later.k


def _told(places: Float64[np.ndarray, "m"], chosen: Float64[np.ndarray, "m"]) -> float:
    """Bits of so many chosen among so many places, with one density for all or with one a layer."""
    bits = []
    for n, k in ((places, chosen), (places.sum(keepdims=True), chosen.sum(keepdims=True))):
        share = np.clip(k, 0, n) / np.maximum(n, 1)
        count_bytes = 1 + np.searchsorted(COUNTS, k, side="right")
        bits.append(float(np.sum(n * (entr(share) + entr(1 - share)) / np.log(2) + BYTE * count_bytes)))
    return BYTE + min(bits)


def _kept(magnitudes: Float64[np.ndarray, "d"], k: int) -> Float64[np.ndarray, "d"]:
    """p of magnitudes in noise deviations."""
    bins = np.minimum(np.rint(magnitudes * BINS_A_DEVIATION), MOST_BINS).astype(np.int64)
    weights = np.bincount(bins)
    means = np.bincount(bins, weights=magnitudes)[weights > 0] / weights[weights > 0]
    weights = weights[weights > 0]

    def excess(threshold: float) -> float:
        return float(weights @ _exceeds(means, threshold)) - k

    threshold = brentq(excess, 0.0, float(magnitudes.max()) + 40, xtol=1e-10)
    return _exceeds(magnitudes, float(threshold))  # pyright: ignore[reportArgumentType]


def _exceeds(magnitudes: Float64[np.ndarray, "m"], threshold: float) -> Float64[np.ndarray, "m"]:
    """P(|m + n| > τ) in noise deviations."""
    return ndtr(magnitudes - threshold) + ndtr(-magnitudes - threshold)

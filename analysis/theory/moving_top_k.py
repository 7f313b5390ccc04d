"""What is expected of noisy top-k supports when the clean vector moves from round to round."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.optimize import brentq
from scipy.special import entr

from analysis.theory.noisy_top_k import exceedance_probability
from dpcomp.sparsify.top_k_indices import top_k_indices

BYTE_BITS = 8
COUNT_LIMITS = (2**7, 2**14, 2**21)  # the codec's variable-length counts take one more byte from each of these on
THRESHOLD_BINS_PER_DEVIATION = 2**8  # of the noise, and only to solve for the threshold
LARGEST_BIN = 2**22  # holds all magnitudes from 16,384 noise deviations on, which are kept for certain


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectionProbabilities:
    """The probability of each coordinate of a clean vector g to be in the top k of g + n, n ~ N(0, σ²) independent.

    p(g) = P(|g + n| > τ), with τ solving Σp = k. `noisy_top_k.vector_retention` gives means over these; here they stay
    apart, so that those of two rounds can be multiplied coordinate by coordinate. Without noise p is 0 or 1.

    Attributes:
        probabilities: p of each coordinate (d,).
        in_clean_top: Whether each coordinate is in the clean vector's own top k (d,).
        energy_shares: Each coordinate's share of ‖g‖² (d,).
        k: Size of the supports.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> clean = rng.standard_t(3, size=10_000)
        >>> moved = clean + rng.standard_normal(10_000)
        >>> now, later = (SelectionProbabilities.of(g, k=100, noise_stddev=1.0) for g in (clean, moved))
        >>> print(f"{now.recall:.2f} {now.overlap(now):.2f} {now.overlap(later):.2f}")
        0.84 0.77 0.71
    """

    probabilities: Float64[np.ndarray, "d"]
    in_clean_top: Bool[np.ndarray, "d"]
    energy_shares: Float64[np.ndarray, "d"]
    k: int

    @classmethod
    def of(cls, clean: Float[np.ndarray, "d"], *, k: int, noise_stddev: float) -> "SelectionProbabilities":
        """Compute the probabilities for one clean vector.

        τ is solved for on magnitudes in bins of σ/256, which moves Σp by less than 10⁻⁶ d; p is that of the values
        themselves.

        Args:
            clean: The clean vector (d,), finite and not all zero.
            k: Size of the support, 0 < k < d.
            noise_stddev: σ, in the vector's unit, at least 0.

        Raises:
            ValueError: k is not in (0, d), the noise is negative, or the vector is all zeros.
        """
        magnitudes, top = np.abs(clean).astype(np.float64), np.zeros(len(clean), dtype=bool)
        if not 0 < k < len(clean) or not noise_stddev >= 0 or not magnitudes.any():
            raise ValueError(
                f"SelectionProbabilities.of: k = {k} of {len(clean)} values, noise_stddev = {noise_stddev}; give "
                "0 < k < d, noise_stddev ≥ 0 and a vector that is not all zero"
            )
        top[top_k_indices(clean, k)] = True
        energies = np.square(magnitudes / magnitudes.max())
        probabilities = top.astype(np.float64) if noise_stddev == 0 else _probabilities(magnitudes / noise_stddev, k)
        return cls(probabilities=probabilities, in_clean_top=top, energy_shares=energies / energies.sum(), k=k)

    @property
    def recall(self) -> float:
        """The expected share of the clean top k that is in the noisy top k."""
        return float(self.probabilities[self.in_clean_top].mean())

    @property
    def captured_energy(self) -> float:
        """The expected share of ‖g‖² on the noisy top k."""
        return float(self.energy_shares @ self.probabilities)

    def overlap(self, other: "SelectionProbabilities") -> float:
        """Compute the expected overlap of two noisy supports, Σ p p′/k, their noises independent.

        Of a vector with itself, Σp²/k, it is the overlap of consecutive supports when the clean vector stands still.

        Raises:
            ValueError: The supports differ in size.
        """
        if self.k != other.k:
            raise ValueError(
                f"SelectionProbabilities.overlap: supports of {self.k} and {other.k} coordinates; give two of one size"
            )
        return float(self.probabilities @ other.probabilities) / self.k

    def index_bits(self, later: "SelectionProbabilities", edges: Int64[np.ndarray, "layers_plus_one"]) -> float:
        """Compute the expected bits a kept coordinate that the codec takes for the later support, given this one.

        They are h(r) of `index_bits.temporal_index_bits`, or less: either part (which coordinates stay, which are new)
        may be coded layer by layer, with Σpp′ and Σp of the layer for its counts, and the whole support without the
        last one. The codec takes the cheapest (`dpcomp.codec.entropy.positions`); the bits of its choice and of the
        counts are included.

        Args:
            later: The probabilities of the next round, for the same number of coordinates.
            edges: Where the layers begin, ascending from 0, and d at the end.

        Returns:
            Bits a coordinate of the later support.
        """
        before, after, common = (
            np.diff(np.append(0.0, np.cumsum(p))[edges])
            for p in (self.probabilities, later.probabilities, self.probabilities * later.probabilities)
        )
        places = np.diff(edges).astype(np.float64)
        given_this = _subset_bits(before, common) + _subset_bits(places - before, after - common)
        return (BYTE_BITS + min(given_this, _subset_bits(places, after))) / later.k


def _subset_bits(places: Float64[np.ndarray, "layers"], chosen: Float64[np.ndarray, "layers"]) -> float:
    """Compute the bits that name the chosen among the places, by one density for all or by one a layer."""
    bits = []
    for n, k in ((places, chosen), (places.sum(keepdims=True), chosen.sum(keepdims=True))):
        share = np.clip(k, 0, n) / np.maximum(n, 1)
        count_bytes = 1 + np.searchsorted(COUNT_LIMITS, k, side="right")
        bits.append(float(np.sum(n * (entr(share) + entr(1 - share)) / np.log(2) + BYTE_BITS * count_bytes)))
    return BYTE_BITS + min(bits)


def _probabilities(magnitudes: Float64[np.ndarray, "d"], k: int) -> Float64[np.ndarray, "d"]:
    """Solve for the threshold, and compute p of magnitudes in noise deviations."""
    bins = np.minimum(np.rint(magnitudes * THRESHOLD_BINS_PER_DEVIATION), LARGEST_BIN).astype(np.int64)
    weights = np.bincount(bins)
    means = np.bincount(bins, weights=magnitudes)[weights > 0] / weights[weights > 0]
    weights = weights[weights > 0]

    def excess(threshold: float) -> float:
        return float(weights @ exceedance_probability(means, threshold)) - k

    threshold = brentq(excess, 0.0, float(magnitudes.max()) + 40, xtol=1e-10)
    return exceedance_probability(magnitudes, float(threshold))  # pyright: ignore[reportArgumentType]

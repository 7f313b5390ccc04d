"""What noise leaves of a top-k by magnitude when the coordinates are Gaussian: closed forms."""

import math
from dataclasses import dataclass

from scipy.special import ndtr, ndtri, owens_t


@dataclass(frozen=True, kw_only=True)
class TopKRetention:
    """What is expected to remain of a top-k when noise is added: recall, overlap and captured energy.

    All three are shares in [0, 1]. With noise alone (SNR 0) each is the density κ = k/d. Without noise recall and
    overlap are 1, and the captured energy is that of the clean top-k.

    Attributes:
        recall: Share of the clean top-k that is in the noisy top-k (overlap@k).
        overlap: Share that two noisy top-k's of the same clean vector have in common, their noises independent: the
            overlap of consecutive supports when the clean vector stands still and only the noise is new.
        captured_energy: Share of the clean squared norm ‖g‖² that lies on the noisy top-k.
    """

    recall: float
    overlap: float
    captured_energy: float


def gaussian_retention(*, density: float, snr: float) -> TopKRetention:
    """Compute what noise leaves of the top-k of Gaussian coordinates g ~ N(0, s²), as d grows at a fixed density.

    g and g + n are bivariate normal with correlation ρ = 1/√(1 + 1/SNR), and two noisy copies with ρ²; recall and
    overlap are `gaussian_overlap` of these. The energy is exact too: E[g² | g + n = y] = s²(1 − ρ² + ρ²Y²),
    Y = y/√(s² + σ²), and E[Y²; |Y| > t] = κ + 2tφ(t) make the share κ + 2ρ²tφ(t), t = Φ⁻¹(1 − κ/2).

    Args:
        density: κ = k/d, in (0, 1).
        snr: s²/σ², the variance of a clean coordinate ÷ that of the noise; at least 0, may be infinite.

    Raises:
        ValueError: The density is not in (0, 1), or the SNR is negative.

    Examples:
        >>> remains = gaussian_retention(density=0.01, snr=1.0)
        >>> print(f"{remains.recall:.2f} {remains.overlap:.2f} {remains.captured_energy:.2f}")
        0.23 0.10 0.05
    """
    squared_correlation = _signal_share(snr)
    t = gaussian_threshold(density)
    return TopKRetention(
        recall=gaussian_overlap(density=density, correlation=math.sqrt(squared_correlation)),
        overlap=gaussian_overlap(density=density, correlation=squared_correlation),
        captured_energy=density + 2 * squared_correlation * t * _normal_density(t),
    )


def gaussian_overlap(*, density: float, correlation: float) -> float:
    """Compute P(|Y| > t given |X| > t) of standard normals X, Y with correlation ρ, and t = Φ⁻¹(1 − κ/2).

    This is the expected overlap of the top-k's of two correlated Gaussian vectors. The event has four corners of the
    plane: P(X > t, Y > t) + P(X > t, Y < −t), twice. By Owen's T each is Φ(−t) − 2T(t, a), a = √((1 − ρ)/(1 + ρ)),
    with 1/a in place of a for −ρ, so that the overlap is 4 [Φ(−t) − T(t, a) − T(t, 1/a)]/κ. Cancellation leaves an
    absolute error of about 10⁻¹⁶/κ.

    Where the clean vector moves too, with correlation c from round to round, its noisy copies have correlation ρ²c.

    Source: Owen (1956), Tables for computing bivariate normal probabilities, Ann. Math. Stat. 27.

    Args:
        density: κ = k/d, in (0, 1).
        correlation: ρ, in [−1, 1]; its sign does not matter, for magnitudes have none.

    Raises:
        ValueError: The density is not in (0, 1), or the correlation is not in [−1, 1].

    Examples:
        >>> [round(gaussian_overlap(density=0.1, correlation=c), 3) for c in (0.0, 0.5, 1.0)]
        [0.1, 0.245, 1.0]
    """
    t = gaussian_threshold(density)
    if not -1 <= correlation <= 1:
        raise ValueError(f"gaussian_overlap: correlation = {correlation}; a correlation lies in [−1, 1]")
    away, along = math.sqrt(1 - abs(correlation)), math.sqrt(1 + abs(correlation))  # |·| > t is blind to the sign
    inverse = along / away if away else math.inf
    corners = ndtr(-t) - owens_t(t, away / along) - owens_t(t, inverse)
    return min(1.0, max(0.0, float(4 * corners / density)))


def small_snr_recall(*, density: float, snr: float) -> float:
    """Approximate the recall of Gaussian coordinates to first order in ρ² = SNR/(1 + SNR): κ + 2ρ²t²φ(t)²/κ.

    By the tetrachoric series P(|X| > t, |Y| > t) = κ² + Σₘ ρ²ᵐ (2φ(t)He₂ₘ₋₁(t))²/(2m)!, m = 1, 2, …: only even
    Hermite polynomials see a magnitude, so the correlation enters by its square, and every term is positive. The
    first order is therefore a lower bound; it is too low by ρ⁴φ(t)²t²(t² − 3)²/(6κ) + O(ρ⁶).

    Source: Pearson (1900), On the correlation of characters not quantitatively measurable, Phil. Trans. R. Soc. A 195,
    for the series; Johnson & Kotz (1972), Continuous multivariate distributions, p. 118.

    Args:
        density: κ = k/d, in (0, 1).
        snr: s²/σ², at least 0.

    Raises:
        ValueError: The density is not in (0, 1), or the SNR is negative.

    Examples:
        >>> round(small_snr_recall(density=0.01, snr=0.01), 4)  # noise alone gives 0.01
        0.0127
    """
    return small_snr_recall_from_energy(
        density=density, snr=_signal_share(snr), top_energy=gaussian_top_energy(density)
    )


def small_snr_recall_from_energy(*, density: float, snr: float, top_energy: float) -> float:
    """Approximate the recall of any coordinates to first order in the SNR: κ + SNR·tφ(t)·(e/κ − 1).

    The law of the coordinates enters by one number, the share e of ‖g‖² that the clean top-k holds. For |g| ≪ σ,
    P(|g + n| > τ) = P(|n| > τ) + (g/σ)² uφ(u) + O((g/σ)⁴) with u = τ/σ: averaged over all coordinates it is κ, over
    the top-k the recall, and u → t = Φ⁻¹(1 − κ/2). Gaussian coordinates have e = κ + 2tφ(t). Valid only while the
    largest coordinates too are below the noise: one that exceeds it counts once in the recall, however large.

    Args:
        density: κ = k/d, in (0, 1).
        snr: ‖g‖²/(dσ²), at least 0.
        top_energy: e, in [κ, 1].

    Returns:
        The recall, a share. Not clipped: outside the range of validity it can exceed 1.

    Raises:
        ValueError: The density is not in (0, 1).
    """
    t = gaussian_threshold(density)
    return density + snr * t * _normal_density(t) * (top_energy / density - 1)


def gaussian_top_energy(density: float) -> float:
    """Compute the share of ‖g‖² on the clean top-k of Gaussian coordinates: E[X²; |X| > t] = κ + 2tφ(t).

    Raises:
        ValueError: The density is not in (0, 1).
    """
    t = gaussian_threshold(density)
    return density + 2 * t * _normal_density(t)


def gaussian_threshold(density: float) -> float:
    """Compute t = Φ⁻¹(1 − κ/2), the magnitude that a share κ of standard normal values exceeds.

    Raises:
        ValueError: The density is not in (0, 1).
    """
    if not 0 < density < 1:
        raise ValueError(f"density = {density}: a top-k keeps a share k/d of the coordinates in (0, 1)")
    return float(-ndtri(density / 2))


def _signal_share(snr: float) -> float:
    """Compute ρ² = SNR/(1 + SNR), the signal's share of the noisy variance, for an SNR of 0 to infinity.

    Raises:
        ValueError: The SNR is negative or NaN.
    """
    if not snr >= 0:
        raise ValueError(f"snr = {snr}: a ratio of variances, signal ÷ noise, is at least 0")
    return 1 / (1 + 1 / snr) if snr else 0.0


def _normal_density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

"""What noise leaves of a top-k by magnitude when the coordinates are Gaussian: closed forms."""

import math
from dataclasses import dataclass

from scipy.special import ndtr, ndtri, owens_t


@dataclass(frozen=True, kw_only=True)
class Scrambling:
    """What is expected of the top-k of g + n, n ~ N(0, σ²) independent, beside that of the clean g; κ = k/d.

    recall: the share of the clean top-k that is in the noisy one, overlap@k: κ by noise alone, 1 without any.
    overlap: the share that the top-k's of two copies have in common whose noises are independent: how far a
        support still resembles the last one, when the clean vector stands still and only the noise is new.
    captured_energy: the share of ‖g‖² on the noisy top-k.
    """

    recall: float
    overlap: float
    captured_energy: float


def gaussian_scrambling(*, density: float, snr: float) -> Scrambling:
    """The scrambling of coordinates g ~ N(0, s²) at SNR = s²/σ², as d grows at a fixed density κ.

    g and g + n are bivariate normal with correlation ρ = 1/√(1 + 1/SNR), and two noisy copies with ρ². The energy is
    exact too: E[g² | g + n = y] = s²(1 − ρ² + ρ²Y²), Y = y/√(s² + σ²), and E[Y²; |Y| > t] = κ + 2tφ(t) make the
    share κ + 2ρ²tφ(t), t = Φ⁻¹(1 − κ/2).

    Raises:
        ValueError: the density is not in (0, 1), or the SNR is negative.
    """
    squared_correlation = snr_share(snr)
    t = threshold(density)
    return Scrambling(
        recall=gaussian_overlap(density=density, correlation=math.sqrt(squared_correlation)),
        overlap=gaussian_overlap(density=density, correlation=squared_correlation),
        captured_energy=density + 2 * squared_correlation * t * _normal_density(t),
    )


def gaussian_overlap(*, density: float, correlation: float) -> float:
    """P(|Y| > t given |X| > t) of standard normals X, Y with correlation ρ, and t = Φ⁻¹(1 − κ/2).

    The four corners of the plane: P(X > t, Y > t) + P(X > t, Y < −t), twice. By Owen's T each is
    Φ(−t) − 2T(t, a), a = √((1 − ρ)/(1 + ρ)), with 1/a in place of a for −ρ, so that the overlap is
    4 [Φ(−t) − T(t, a) − T(t, 1/a)]/κ. What cancels leaves an absolute error of about 10⁻¹⁶/κ.

    Where a clean vector also moves, with correlation c from round to round, its noisy copies have ρ²c.

    Source: Owen (1956), Tables for computing bivariate normal probabilities, Ann. Math. Stat. 27.

    Raises:
        ValueError: the density is not in (0, 1), or the correlation is not in [−1, 1].
    """
    t = threshold(density)
    if not -1 <= correlation <= 1:
        raise ValueError(f"gaussian_overlap: correlation = {correlation}; a correlation lies in [−1, 1]")
    away, along = math.sqrt(1 - abs(correlation)), math.sqrt(1 + abs(correlation))  # |·| > t is blind to the sign
    inverse = along / away if away else math.inf
    corners = ndtr(-t) - owens_t(t, away / along) - owens_t(t, inverse)
    return min(1.0, max(0.0, float(4 * corners / density)))


def small_snr_recall(*, density: float, snr: float) -> float:
    """The recall of Gaussian coordinates to the first order in ρ² = SNR/(1 + SNR): κ + 2ρ²t²φ(t)²/κ.

    By the tetrachoric series P(|X| > t, |Y| > t) = κ² + Σₘ ρ²ᵐ (2φ(t)He₂ₘ₋₁(t))²/(2m)!, m = 1, 2, …: only even
    Hermite polynomials see a magnitude, so the correlation enters by its square, and every term adds. The
    expansion is therefore a lower bound; it falls short by ρ⁴φ(t)²t²(t² − 3)²/(6κ) + O(ρ⁶).

    Source: Pearson (1901), Phil. Trans. A 195; Johnson & Kotz (1972), Continuous multivariate distributions, p. 118.
    """
    return small_snr_recall_of(density=density, snr=snr_share(snr), top_energy=gaussian_top_energy(density))


def small_snr_recall_of(*, density: float, snr: float, top_energy: float) -> float:
    """The recall to the first order in the SNR, whatever the coordinates' law: κ + SNR·tφ(t)·(e/κ − 1).

    `top_energy` e is the share of ‖g‖² in the clean top-k, and SNR = ‖g‖²/dσ². For |g| ≪ σ,
    P(|g + n| > τ) = P(|n| > τ) + (g/σ)² uφ(u) + O((g/σ)⁴) with u = τ/σ: averaged over all coordinates it is κ, over
    the top-k the recall, and u → t = Φ⁻¹(1 − κ/2). Gaussian coordinates have e = κ + 2tφ(t). It is of use while
    the largest coordinates too are below the noise: an outlier above it counts once, not by its energy.

    Raises:
        ValueError: the density is not in (0, 1).
    """
    t = threshold(density)
    return density + snr * t * _normal_density(t) * (top_energy / density - 1)


def gaussian_top_energy(density: float) -> float:
    """The share of the energy that the top-k of Gaussian coordinates has: E[X²; |X| > t] = κ + 2tφ(t)."""
    t = threshold(density)
    return density + 2 * t * _normal_density(t)


def threshold(density: float) -> float:
    """t = Φ⁻¹(1 − κ/2): what a share κ of standard normal magnitudes exceeds."""
    if not 0 < density < 1:
        raise ValueError(f"density = {density}: a top-k keeps a share k/d of the coordinates in (0, 1)")
    return float(-ndtri(density / 2))


def snr_share(snr: float) -> float:
    """ρ² = SNR/(1 + SNR): the signal's share of the noisy variance."""
    if not snr >= 0:
        raise ValueError(f"snr = {snr}: a ratio of variances, signal ÷ noise, is at least 0")
    return 1 / (1 + 1 / snr) if snr else 0.0


def _normal_density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

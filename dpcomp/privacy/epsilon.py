"""ε of an event, by dp_accounting: the smaller of Rényi DP and a pessimistic privacy loss distribution (PLD)."""

# dp_accounting ships no types, and offers no public way to compose losses in extended precision.
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

import logging
import math
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from absl import logging as absl_logging
from dp_accounting import dp_event, gaussian_mechanism
from dp_accounting.pld import common, pld_pmf, privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant, compute_epsilon
from jaxtyping import Float64

from dpcomp.privacy.events import gaussians_in

# Below 1.02 dp_accounting's conversion is not stable; above 2,048 its binomials are not.
ORDERS = (1.02, 1.05, *np.arange(11, 30) / 10, *range(3, 33), *np.geomspace(40, 2048, 30).round())
GRID_ERROR = 1e-4  # the share of ε that the grid may add
REFINEMENTS = 3  # of the grid, each four times finer
LARGEST_GRID = 2**17  # the most points of a grid, before and after composition
BOUND_ORDERS = np.array([-20.0, -5.0, -1.0, 1.0, 5.0, 20.0])  # times the number of grid points
LARGEST_PLD_EPSILON = 10_000.0  # above it ε by RDP is the result: no grid is fine enough to improve it
SMALLEST_PLD_DELTA = 1e-12  # below it likewise


def epsilon(event: dp_event.DpEvent, delta: float, *, adaptive: bool = False) -> tuple[float, str]:
    """Compute the smallest proven ε of an event under add/remove adjacency.

    For a single event repeated on a schedule that was fixed in advance, ε is the smaller of RDP and the pessimistic
    PLD. For different events, or with `adaptive`, it is RDP alone, whose sums hold under a filter (Feldman & Zrnic
    2021, Thm 4.3). Time and memory are bounded for any input, and ε is never NaN or negative.

    Args:
        event: Gaussians, on all units or on a Poisson sample, repeated and composed; or a non-private event.
        delta: δ, in (0, 1).
        adaptive: Whether noise, rate or number of steps may have been chosen from released results.

    Returns:
        ε, and the accountant that gave it: "RDP", "PLD", or "none" where nothing or no noise is accounted.

    Raises:
        TypeError: `delta` is not a number.
        ValueError: `delta` lies outside (0, 1).
        NotPrivate: The event holds anything but Gaussians, on all units or on a Poisson sample.

    Examples:
        >>> from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
        >>> from dpcomp.privacy.epsilon import epsilon
        >>> event = SelfComposedDpEvent(PoissonSampledDpEvent(0.01, GaussianDpEvent(1.0)), 1000)
        >>> value, accountant = epsilon(event, delta=1e-5)
        >>> round(value, 2), accountant
        (1.83, 'PLD')
    """
    check_delta(delta)
    parts = gaussians_in(event)
    if not parts:
        return 0.0, "none"
    if any(noise == 0 for _, noise in parts):
        return math.inf, "none"
    by_rdp, order = _rdp(parts, delta)
    if adaptive or len(parts) > 1:
        return by_rdp, "RDP"
    ((rate, noise), count) = next(iter(parts.items()))
    by_pld = _pld_epsilon(rate, noise, count, float(delta), by_rdp, order)
    return (by_pld, "PLD") if by_pld < by_rdp else (by_rdp, "RDP")


def rdp_epsilon(event: dp_event.DpEvent, delta: float) -> float:
    """Compute ε by Rényi DP at fixed orders, which is cheap and never below `epsilon`.

    Source: Mironov, Talwar & Zhang 2019; for the conversion to ε: Canonne, Kamath & Steinke 2020.

    Raises:
        TypeError, ValueError, NotPrivate: As `epsilon` does.
    """
    check_delta(delta)
    parts = gaussians_in(event)
    if any(noise == 0 for _, noise in parts):
        return math.inf
    return _rdp(parts, delta)[0] if parts else 0.0


def check_delta(delta: object) -> None:
    """Refuse a value that is not a δ.

    Raises:
        TypeError: The value is not a number.
        ValueError: The value lies outside (0, 1).
    """
    if isinstance(delta, bool) or not isinstance(delta, (int, float, np.floating)):
        raise TypeError(f"delta={delta!r}: δ is a float in (0, 1), such as 1e-5")
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: δ lies in (0, 1), well below 1 ÷ the number of units")


def _rdp(parts: Counter[tuple[float, float]], delta: float) -> tuple[float, float]:
    """Return ε and the order that gave it."""
    curve = np.sum([count * _rdp_curve(rate, noise) for (rate, noise), count in parts.items()], axis=0)
    with _quiet():
        value, order = compute_epsilon(ORDERS, curve.tolist(), float(delta))
    return max(0.0, float(value)), float(order)


@lru_cache(maxsize=4096)
def _rdp_curve(rate: float, noise: float) -> Float64[np.ndarray, "orders"]:
    gaussian = dp_event.GaussianDpEvent(noise)
    event = gaussian if rate == 1 else dp_event.PoissonSampledDpEvent(rate, gaussian)
    with _quiet():
        curve = np.asarray(RdpAccountant(ORDERS).compose(event)._rdp)
    # dp_accounting sums exponentials with an error of up to 1e-14; where that makes a value negative, ε would be 0.
    return np.maximum(curve, 0.0) + (0.0 if rate == 1 else 1e-14)


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Silence the line that dp_accounting logs for each order that it leaves out."""
    logger = absl_logging.get_absl_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        logger.setLevel(level)


@lru_cache(maxsize=4096)
def _pld_epsilon(rate: float, noise: float, count: int, delta: float, by_rdp: float, order: float) -> float:
    """Return ε by the privacy loss distribution; infinity where it cannot be computed.

    Unsampled releases compose to a single Gaussian, whose ε is known exactly (Balle & Wang 2018, Thm 8); it is raised
    by more than the tolerance of the root search.

    Connecting the dots on a grid of step h adds about h²/12·order to ε a release (Doroshenko et al. 2022), so h
    follows from the RDP value and its order. Where RDP turns out to be far too large, h shrinks until ε stays.
    """
    if rate == 1:
        return gaussian_mechanism.get_epsilon_gaussian(noise / math.sqrt(count), delta) * (1 + 1e-7) + 1e-11
    if not 0 < by_rdp < LARGEST_PLD_EPSILON or delta < SMALLEST_PLD_DELTA:
        return math.inf
    step = math.sqrt(12 * GRID_ERROR * by_rdp / (count * order))
    value = _epsilon_on_grid(rate, noise, count, delta, step)
    for _ in range(REFINEMENTS):
        if value == 0 or value > by_rdp / 1.5:
            break
        step, before = step / 4, value
        value = min(value, _epsilon_on_grid(rate, noise, count, delta, step))
        if value > (1 - GRID_ERROR) * before:
            break
    return value


def _epsilon_on_grid(rate: float, noise: float, count: int, delta: float, step: float) -> float:
    """Return ε on a grid of this step, or of the smallest larger step whose grid fits into memory.

    dp_accounting composes by FFT in float64. Its error of about 1e-17 a release makes ε too small once δ is as small:
    2.71 where 2.75 is right at rate 1e-3, noise 1, 10⁵ releases, δ = 1e-11. Given masses in extended precision it
    computes in extended precision; the error that remains, one unit of rounding a release, is subtracted from δ.
    """
    left, tail = delta - count * float(np.finfo(np.longdouble).eps), 1e-6 * delta
    if left <= delta / 2:
        return math.inf
    reach = 0.5 / noise**2 + 9 / noise  # of one release's loss: nine deviations
    step = max(step, reach / LARGEST_GRID)
    while True:
        single = _single_release(rate, noise, step)
        bounds = [_convolution_bounds(pmf, count, tail) for pmf in single]
        points = max(high - low for low, high in bounds)
        if points <= LARGEST_GRID:
            return max(0.0, *(float(pmf.self_compose(count, tail).get_epsilon_for_delta(left)) for pmf in single))
        step *= 1.1 * points / LARGEST_GRID


def _convolution_bounds(pmf: pld_pmf.DensePLDPmf, count: int, tail: float) -> tuple[int, int]:
    """Return where the composed masses begin and end; a few orders are enough to see whether they fit."""
    orders: Any = BOUND_ORDERS / pmf.size
    masses: Any = pmf._probs
    return common.compute_self_convolve_bounds(masses, count, tail, orders)


def _single_release(rate: float, noise: float, step: float) -> list[pld_pmf.DensePLDPmf]:
    """Return the losses of a single release, for removing and for adding a unit, on a grid, in extended precision."""
    with _quiet():
        losses = privacy_loss_distribution.from_gaussian_mechanism(
            noise, value_discretization_interval=step, sampling_prob=rate, use_connect_dots=True
        )
    dense = [pmf.to_dense_pmf() for pmf in (losses._pmf_remove, losses._pmf_add)]
    return [
        pld_pmf.DensePLDPmf(step, pmf._lower_loss, pmf._probs.astype(np.longdouble), pmf._infinity_mass, True)
        for pmf in dense
    ]

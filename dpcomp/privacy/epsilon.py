"""The ε of an event, by dp_accounting: the smaller of Rényi DP and a pessimistic privacy loss distribution."""

import logging
import math
from collections import Counter
from collections.abc import Iterator
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
ROUNDING = 1e-4  # the share of ε that the grid may add
REFINEMENTS = 3  # of the grid, each four times finer
CELLS = 2**17  # the largest grid, before and after composition
BOUND_ORDERS = np.array([-20.0, -5.0, -1.0, 1.0, 5.0, 20.0])  # in units of one over the grid's length
LARGE = 10_000.0  # an RDP value above it is the answer: no grid resolves what is left
SMALLEST_DELTA = 1e-12


def epsilon(event: dp_event.DpEvent, delta: float, *, adaptive: bool = False) -> tuple[float, str]:
    """The smallest ε that is proven for the event under add/remove adjacency, and by what.

    ε = min(RDP, pessimistic PLD) for one event repeated on a schedule that was fixed in advance. Where events are
    mixed, or `adaptive` says that they were chosen from released results, RDP alone, whose sums hold under a filter
    (Feldman & Zrnic 2021, Thm 4.3). One answer in bounded time and memory for any input; never NaN or negative.

    Raises:
        TypeError, ValueError: δ is no number in (0, 1).
        NotPrivate: the event is made of anything but Gaussians, on all units or a Poisson sample.
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
    """ε by Rényi DP at fixed orders (Mironov, Talwar & Zhang 2019; conversion: Canonne, Kamath & Steinke 2020).

    Raises: as `epsilon`.
    """
    check_delta(delta)
    parts = gaussians_in(event)
    if any(noise == 0 for _, noise in parts):
        return math.inf
    return _rdp(parts, delta)[0] if parts else 0.0


def check_delta(delta: float) -> None:
    """Refuse what is no δ.

    Raises:
        TypeError, ValueError: it is no number in (0, 1).
    """
    if isinstance(delta, bool) or not isinstance(delta, (int, float, np.floating)):
        raise TypeError(f"delta={delta!r}: δ is a float in (0, 1), such as 1e-5")
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: δ lies in (0, 1), well below 1 ÷ the number of units")


def _rdp(parts: Counter[tuple[float, float]], delta: float) -> tuple[float, float]:
    """ε and the order that gave it."""
    curve = np.sum([count * _rdp_curve(rate, noise) for (rate, noise), count in parts.items()], axis=0)
    with _quiet():
        found, order = compute_epsilon(ORDERS, curve.tolist(), float(delta))
    return max(0.0, float(found)), float(order)


@lru_cache(maxsize=4096)
def _rdp_curve(rate: float, noise: float) -> Float64[np.ndarray, "orders"]:
    gaussian = dp_event.GaussianDpEvent(noise)
    event = gaussian if rate == 1 else dp_event.PoissonSampledDpEvent(rate, gaussian)
    with _quiet():
        curve = np.asarray(RdpAccountant(ORDERS).compose(event)._rdp)
    # The sum of exponentials behind it is off by up to 1e-14; where that makes it negative, ε would read 0.
    return np.maximum(curve, 0.0) + (0.0 if rate == 1 else 1e-14)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a line in the log for every order that dp_accounting leaves out."""
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
    """ε by the privacy loss distribution, infinite where it cannot be had.

    Unsampled releases compose to one Gaussian, whose ε is known exactly (Balle & Wang 2018, Thm 8); it is raised
    by more than the tolerance of the root search.

    Connecting the dots on a grid of step h adds about h²/12·order to ε a release (Doroshenko et al. 2022), so h
    follows from the RDP value and its order; where RDP proves far off, h shrinks until ε stays.
    """
    if rate == 1:
        return gaussian_mechanism.get_epsilon_gaussian(noise / math.sqrt(count), delta) * (1 + 1e-7) + 1e-11
    if not 0 < by_rdp < LARGE or delta < SMALLEST_DELTA:
        return math.inf
    step = math.sqrt(12 * ROUNDING * by_rdp / (count * order))
    found = _epsilon_on_grid(rate, noise, count, delta, step)
    for _ in range(REFINEMENTS):
        if found == 0 or found > by_rdp / 1.5:
            break
        step, before = step / 4, found
        found = min(found, _epsilon_on_grid(rate, noise, count, delta, step))
        if found > (1 - ROUNDING) * before:
            break
    return found


def _epsilon_on_grid(rate: float, noise: float, count: int, delta: float, step: float) -> float:
    """ε on a grid of this step, or of the least one that fits the memory.

    dp_accounting composes by FFT in float64, whose error of about 1e-17 a release reads low once δ is as small:
    2.71 where 2.75 is right at rate 1e-3, noise 1, 10⁵ releases, δ = 1e-11. Handed masses in extended precision
    it computes in that; what is left of the error, one unit of rounding a release, is taken off δ.
    """
    left, tail = delta - count * float(np.finfo(np.longdouble).eps), 1e-6 * delta
    if left <= delta / 2:
        return math.inf
    reach = 0.5 / noise**2 + 9 / noise  # of one release's loss: nine deviations
    step = max(step, reach / CELLS)
    while True:
        single = _single_release(rate, noise, step)
        bounds = [_convolution_bounds(pmf, count, tail) for pmf in single]
        cells = max(high - low for low, high in bounds)
        if cells <= CELLS:
            return max(0.0, *(float(pmf.self_compose(count, tail).get_epsilon_for_delta(left)) for pmf in single))
        step *= 1.1 * cells / CELLS


def _convolution_bounds(pmf: pld_pmf.DensePLDPmf, count: int, tail: float) -> tuple[int, int]:
    """Where the composed masses begin and end; a few orders are enough to see whether they fit."""
    orders: Any = BOUND_ORDERS / pmf.size
    masses: Any = pmf._probs
    return common.compute_self_convolve_bounds(masses, count, tail, orders)


def _single_release(rate: float, noise: float, step: float) -> list[pld_pmf.DensePLDPmf]:
    """The losses of one release, for removing and for adding a unit, on a grid, in extended precision."""
    with _quiet():
        losses = privacy_loss_distribution.from_gaussian_mechanism(
            noise, value_discretization_interval=step, sampling_prob=rate, use_connect_dots=True
        )
    dense = [pmf.to_dense_pmf() for pmf in (losses._pmf_remove, losses._pmf_add)]
    return [
        pld_pmf.DensePLDPmf(step, pmf._lower_loss, pmf._probs.astype(np.longdouble), pmf._infinity_mass, True)
        for pmf in dense
    ]

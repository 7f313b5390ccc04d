"""ε of an event: the smaller of Rényi DP and a pessimistic distribution of the privacy loss (PLD)."""

# dp_accounting ships no types.
# pyright: reportMissingTypeStubs=false

import math
from collections import Counter
from functools import lru_cache

import numpy as np
from dp_accounting import dp_event, gaussian_mechanism
from dp_accounting.rdp import compute_epsilon

from dpcomp.privacy.accounting.events import gaussians_in
from dpcomp.privacy.accounting.loss_grid import epsilon_on_grid
from dpcomp.privacy.accounting.renyi import ORDERS, rdp_curve

FIRST_GRID_ERROR = 2e-3  # the share of ε that the first grid may add
REFINEMENT = 4  # of the step; it makes a small error 16 times smaller, and one of a coarse grid 4 times
LEAST_GAIN = 3e-3  # the share of ε that a refinement must gain, or no other one follows
LARGEST_STEP = 0.02  # of a grid that may be the last, as a share of ε
MOST_PARTS = 128  # that are composed on grids; more are rounded to fewer
LARGEST_PLD_EPSILON = 10_000.0  # above it ε by RDP is the result: no grid is fine enough to improve it
SMALLEST_PLD_DELTA = 1e-200  # below it likewise: floats end

Parts = tuple[tuple[tuple[float, float], int], ...]  # (sampling rate, noise multiplier) and how many releases


def epsilon(event: dp_event.DpEvent, delta: float, *, adaptive: bool = False) -> tuple[float, str]:
    """Compute the smallest proven ε of an event under add/remove adjacency.

    For events that were fixed in advance, alike or not, ε is the smaller of RDP and the pessimistic PLD. With
    `adaptive` it is RDP alone, whose sums hold under a filter (Feldman & Zrnic 2021, Thm 4.3). Time and memory are
    bounded for any input, and ε is never NaN or negative.

    Args:
        event: Gaussians, on all units or on a Poisson sample, repeated and composed; or a non-private event.
        delta: δ, in (0, 1).
        adaptive: Whether noise, rate or number of steps may have been chosen from released results.

    Returns:
        ε, and the accountant that gave it: "RDP", "PLD", or "none" where nothing or no noise is accounted.

    Raises:
        TypeError: `delta`, or a number in the event, is not a number.
        ValueError: `delta` lies outside (0, 1), or a number in the event outside its range.
        NotPrivate: The event holds anything but Gaussians, on all units or on a Poisson sample.

    Examples:
        >>> from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
        >>> from dpcomp.privacy.accounting.epsilon import epsilon
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
    if adaptive:
        return _rdp(parts, delta)[0], "RDP"
    parts = _fewer(parts)
    by_rdp, order = _rdp(parts, delta)
    by_pld = _pld_epsilon(_merged(parts), float(delta), by_rdp, order)
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
    curve = np.sum([count * rdp_curve(rate, noise) for (rate, noise), count in parts.items()], axis=0)
    value, order = compute_epsilon(ORDERS, curve.tolist(), float(delta))
    return max(0.0, float(value)), float(order)


def _fewer(parts: Counter[tuple[float, float]]) -> Counter[tuple[float, float]]:
    """Return the parts, or at most `MOST_PARTS` with rates rounded up and noise rounded down, which cost more.

    A release at a lower rate is a mixture of one at the higher rate and one without the unit; a release with more noise
    is one with less noise, and noise added.
    """
    fewer, share = parts, 1e-4
    while len(fewer) > MOST_PARTS:
        share *= 2
        fewer = Counter[tuple[float, float]]()
        for (rate, noise), count in parts.items():
            up = math.exp(share * math.ceil(math.log(rate) / share))
            down = math.exp(share * math.floor(math.log(noise) / share))
            fewer[min(1.0, max(rate, up)), min(noise, down)] += count
    return fewer


def _merged(parts: Counter[tuple[float, float]]) -> Parts:
    """Return the parts in a fixed order, all unsampled ones as the single Gaussian that they compose to."""
    sampled = sorted((part, count) for part, count in parts.items() if part[0] < 1)
    precision = math.fsum(count / noise**2 for (rate, noise), count in parts.items() if rate == 1)
    return (*sampled, *([((1.0, 1 / math.sqrt(precision)), 1)] if precision else []))


@lru_cache(maxsize=4096)
def _pld_epsilon(parts: Parts, delta: float, by_rdp: float, order: float) -> float:
    """Return ε by the privacy loss distribution; infinity where it cannot be computed.

    Of unsampled releases alone, ε is known exactly (Balle & Wang 2018, Thm 8); it is raised by more than the tolerance
    of the root search.

    Connecting the dots on a grid of step h adds about h²/12·order to ε a release (Doroshenko et al. 2022) as long as h
    is below the spread of a release's loss, and less than in proportion to h above. The first h follows from the RDP
    value and its order. It shrinks until that gains next to nothing, so what is left to gain is less still; on a grid
    of few points below ε a small gain would show nothing.
    """
    ((rate, noise), _), *others = parts
    if rate == 1 and not others:
        with np.errstate(divide="ignore"):  # of a trial ε at which δ rounds to 0
            return gaussian_mechanism.get_epsilon_gaussian(noise, delta) * (1 + 1e-7) + 1e-11
    if not 0 < by_rdp < LARGEST_PLD_EPSILON or delta < SMALLEST_PLD_DELTA:
        return math.inf
    count = sum(count for _, count in parts)
    step = math.sqrt(12 * FIRST_GRID_ERROR * by_rdp / (count * order))
    value = epsilon_on_grid(dict(parts), delta, step, order - 1)
    while value is None:
        step *= 2
        value = epsilon_on_grid(dict(parts), delta, step, order - 1)
    while 0 < value < math.inf:
        step, before = step / REFINEMENT, value
        finer = epsilon_on_grid(dict(parts), delta, step, order - 1)
        value = min(value, math.inf if finer is None else finer)
        if finer is None or (before - value < LEAST_GAIN * value and step < LARGEST_STEP * value):
            break
    return value

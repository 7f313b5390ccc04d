"""Guarantee: what an event costs, as a value that names everything it depends on."""

import logging
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import Literal

import numpy as np
from absl import logging as absl_logging
from dp_accounting import dp_event, gaussian_mechanism
from dp_accounting.rdp import rdp_privacy_accountant
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import ndtr

# Below 1.02 dp_accounting's conversion is not stable; above 2,048 its binomials are not.
ORDERS = tuple(np.unique([1.02, 1.05, *np.arange(11, 30) / 10, *range(3, 33), *np.geomspace(32, 2048, 31).round()]))
CELLS = 2**19  # the largest grid: the PLD stays under 10 s and 1 GB
ROUNDING = 2e-4  # the share of ε that the grid may add
NEGLIGIBLE = 40.0  # −log of what is cut off, as a share of δ; it is charged all the same
WRAPPED = 20.0  # −log of the tilted mass that the FFT may wrap around
CUT = 1e-5  # the share of δ that may go to losses counted as infinite
LEAST_EPSILON = 1e-4  # below, ROUNDING is not chased
LEAST_PLD_DELTA = 1e-200  # beyond, the masses that matter are no normal float64

Part = tuple[float, float, int]  # sampling probability, noise multiplier, count


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """An (ε, δ) with the unit, adjacency, sampling, steps, accountant, trust and assumptions that it holds under.

    Prints as one line, ε rounded up: the printed number is never smaller than the true one.
    """

    epsilon: float
    delta: float
    unit: Literal["example", "client"]
    adjacency: str
    sampling: str
    steps: int
    accountant: str
    trust: Literal["nobody", "server"]
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.epsilon >= 0:
            raise ValueError(f"Guarantee: epsilon={self.epsilon} is not a number ≥ 0; use math.inf for no guarantee.")
        _check_delta(self.delta)
        _check_count(self.steps, "steps")
        for name, value, words in (
            ("unit", self.unit, ("example", "client")),
            ("trust", self.trust, ("nobody", "server")),
        ):
            if value not in words:
                raise ValueError(f"Guarantee: {name}={value!r} is unknown; use one of {words}.")
        if isinstance(self.assumptions, str):
            raise TypeError("Guarantee: assumptions is one string; pass a tuple of strings.")

    def __str__(self) -> str:
        bound = "ε = ∞" if math.isinf(self.epsilon) else f"ε ≤ {_rounded_up(self.epsilon)}"
        sampling = "unsampled" if self.sampling == "none" else self.sampling
        trust = {"nobody": "trusts nobody", "server": "for the released model; trusts the server and the channel"}[
            self.trust
        ]
        line = [f"{bound} at δ = {self.delta:.3g}", f"one {self.unit}, {self.adjacency}", f"{sampling} × {self.steps}"]
        line += [self.accountant, trust] + (["; ".join(self.assumptions)] if self.assumptions else [])
        return " ".join(" · ".join(line).split())


def delta_note(delta: float, population: int | None = None) -> str:
    """Says what δ is worth against the number of units N: δ ≥ 1/N allows publishing a unit as it is."""
    _check_delta(delta)
    if population is None:
        return f"δ = {delta:.3g} is meaningful for more than 1/δ = {math.ceil(1 / delta):,} units"
    _check_count(population, "population")
    if delta * population < 1:
        return f"δ = {delta:.3g} is below 1/N = 1/{population:,}"
    return (
        f"δ = {delta:.3g} is not below 1/N = 1/{population:,}: "
        "a mechanism that publishes one unit at random would pass; choose a smaller δ"
    )


def composed(event: dp_event.DpEvent, steps: int) -> dp_event.DpEvent:
    """The event repeated `steps` times; nothing at all for zero steps."""
    if not isinstance(event, dp_event.DpEvent):
        raise TypeError(f"composed: event is a {type(event).__name__}; pass a dp_accounting.DpEvent.")
    _check_count(steps, "steps")
    return dp_event.SelfComposedDpEvent(event, int(steps)) if steps else dp_event.NoOpDpEvent()


def epsilon(event: dp_event.DpEvent, delta: float, *, adaptive: bool = False) -> tuple[float, str]:
    """The smallest ε we can prove for the event under add/remove, and the accountant that proved it.

    ε = min(RDP, pessimistic PLD) for a schedule fixed in advance. `adaptive` says that noise, rate or steps were
    chosen from released results: then only an RDP filter holds (Feldman & Zrnic 2021, Thm 4.3).
    """
    _check_delta(delta)
    parts, others = _parts(event)
    if not parts and not others:
        return 0.0, "none"
    if any(z == 0 for _, z, _ in parts):
        return math.inf, "none"
    by_rdp = rdp_epsilon(event, delta)
    if adaptive or others or by_rdp == 0 or delta < LEAST_PLD_DELTA:
        return by_rdp, "RDP"
    by_pld = _pld_epsilon(_merged(parts, 128), float(delta))
    return (by_pld, "PLD") if by_pld < by_rdp else (by_rdp, "RDP")


def rdp_epsilon(event: dp_event.DpEvent, delta: float) -> float:
    """ε by Rényi DP at fixed orders (Mironov, Talwar & Zhang 2019; conversion: Canonne, Kamath & Steinke 2020, Prop. 12)."""
    _check_delta(delta)
    parts, others = _parts(event)
    if any(z == 0 for _, z, _ in parts):
        return math.inf
    curve = np.zeros(len(ORDERS))
    for q, z, count in _merged(parts, 32):
        curve = curve + count * _rdp_curve(q, z)
    for other, count in others:
        curve = curve + count * _curve_of(other)
    with _quiet():
        bound, _ = rdp_privacy_accountant.compute_epsilon(ORDERS, curve, float(delta))
    return max(0.0, float(bound)) if parts or others else 0.0


@lru_cache(maxsize=4096)
def _rdp_curve(q: float, z: float) -> NDArray[np.float64]:
    event = dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(z))
    # dp_accounting's sum of exponentials is off by up to 1e-14, reads as negative, and a negative Rényi divergence as ε = 0.
    return np.maximum(_curve_of(event), 0.0) + (0.0 if q == 1 else 1e-14)


def _curve_of(event: dp_event.DpEvent) -> NDArray[np.float64]:
    with _quiet():
        return rdp_privacy_accountant.RdpAccountant(ORDERS).compose(event).rdp


@contextmanager
def _quiet() -> Iterator[None]:
    # dp_accounting logs a warning for every order that it leaves out.
    logger = absl_logging.get_absl_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@lru_cache(maxsize=4096)
def _pld_epsilon(parts: tuple[Part, ...], delta: float) -> float:
    """The larger of both neighbours' ε; one unsampled Gaussian has it in closed form (Balle & Wang 2018, Thm 8)."""
    if len(parts) == 1 and parts[0][0] == 1 and parts[0][2] == 1:
        return gaussian_mechanism.get_epsilon_gaussian(parts[0][1], delta) * (1 + 1e-9) + 1e-11
    with np.errstate(all="ignore"):
        bounds = [_removal_epsilon(parts, delta), _addition_epsilon(parts, delta)]
    return math.inf if any(math.isnan(bound) for bound in bounds) else max(0.0, *bounds)


def _removal_epsilon(parts: tuple[Part, ...], delta: float) -> float:
    _, guess = _saddle(parts, delta, True, math.inf)
    bound = math.inf
    for _ in range(4):
        cut = _cut(parts, delta, guess)
        tilt, renyi = _saddle(parts, delta, True, cut)
        guess = min(guess, renyi)
        bound = min(bound, _one_sided_epsilon(parts, delta, True, tilt, guess, cut))
        if not LEAST_EPSILON < bound < guess / 1.5:
            break
        # The Rényi bound was loose, and the grid that it asked for too coarse.
        guess = bound
    return bound


def _addition_epsilon(parts: tuple[Part, ...], delta: float) -> float:
    tilt, guess = _saddle(parts, delta, False, math.inf)
    # Whoever is added was left out with probability 1 − q: that loss is bounded, whatever the noise.
    most = -sum(count * float(np.log1p(-q)) for q, _, count in parts)
    return min(most, _one_sided_epsilon(parts, delta, False, tilt, guess, math.inf))


def _cut(parts: tuple[Part, ...], delta: float, guess: float) -> float:
    # A loss far above ε counts as infinite, which adds at most e^(ε−loss) of its mass to δ: a rare one needs no cells.
    highest = max(float(_loss(q, z, np.array(1 + _reach(parts, delta) * z))) for q, z, _ in parts)
    cuts = np.geomspace(min(guess, highest) / 100, highest, 200)
    mass = np.zeros_like(cuts)
    for q, z, count in parts:
        x = _where_loss(q, z, cuts)
        mass += count * ((1 - q) * ndtr(-x / z) + q * ndtr((1 - x) / z))
    added = mass * np.exp(np.minimum(guess - cuts, 0.0))
    return float(cuts[np.argmax(added < CUT * delta)]) if added[-1] < CUT * delta else highest


def _one_sided_epsilon(
    parts: tuple[Part, ...], delta: float, removes: bool, tilt: float, guess: float, cut: float
) -> float:
    """ε of δ(ε) = E[(1 − e^(ε−L))₊], L the sum of the parts' privacy losses, never below the true one.

    Every loss is put on one grid by connect-the-dots (Doroshenko et al. 2022, Alg. 1): it adds h²/12·(1 + λ) a step.
    The grid is tilted by e^(λL) before the FFT, λ from the Rényi bound, so that the FFT's rounding (1e-16 × steps of the
    largest mass) is a share of δ; dp_accounting's plain FFT drowns δ ≤ 1e-10 in it (ε = 3.9 to 6.1 where 2.90 is right: q=1e-3, z=1, 1e5 steps, δ=1e-12).
    """
    steps, reach = sum(count for _, _, count in parts), _reach(parts, delta)
    h = min(math.sqrt(12 * ROUNDING * guess / (steps * (1 + tilt))), 1 / (1 + tilt))
    # A loss far below zero is rounded up, at a weight of e^(−NEGLIGIBLE): the cells are needed elsewhere.
    least, most = (-NEGLIGIBLE / tilt, cut) if removes else (-math.inf, NEGLIGIBLE / tilt)
    spans = [np.clip(_loss(q, z, np.array([-reach * z, 1 + reach * z])), least, most) for q, z, _ in parts]
    cells = min(CELLS, 8 * CELLS // len(parts))
    h = max(h, *(float(high - low) / cells for low, high in spans))
    while True:
        grids = [_grid(q, z, h, span, removes) for (q, z, _), span in zip(parts, spans, strict=True)]
        counts = [count for _, _, count in parts]
        bottom, top = _window(grids, counts, tilt, h)
        if (top - bottom) / h < cells:
            break
        h *= max(2.0, (top - bottom) / h / cells)

    first = math.floor(bottom / h)
    size = next_fast_len(math.ceil(top / h) - first + 1, real=True)
    spectrum, log_mass, infinite = np.ones(size // 2 + 1, complex), 0.0, 0.0
    for (start, masses, beyond), count in zip(grids, counts, strict=True):
        indices = start + np.arange(len(masses))
        weights = np.log(masses) + tilt * h * indices
        scale = _log_sum_exp(weights)
        spectrum *= rfft(np.bincount(indices % size, np.exp(weights - scale), size)) ** count
        log_mass += count * scale
        infinite += count * beyond
    tilted = np.maximum(np.roll(irfft(spectrum, size), -(first % size)), 0.0)
    losses = h * (first + np.arange(size))
    # Beyond the top the FFT wraps mass around to smaller losses: it is charged as an infinite loss instead.
    if top < h * sum(
        count * (start + len(masses) - 1) for (start, masses, _), count in zip(grids, counts, strict=True)
    ):
        infinite += math.exp(min(0.0, log_mass - tilt * top - WRAPPED))
    shares = tilted * np.exp(np.minimum(log_mass - tilt * losses - math.log(delta), 600.0))
    return _invert(losses, shares, 1 - 1e-6 - infinite / delta)


def _reach(parts: tuple[Part, ...], delta: float) -> float:
    # In standard deviations of the noise: what lies beyond, in any of the steps, has less than δ·e^(−NEGLIGIBLE).
    return math.sqrt(2 * (math.log(sum(count for _, _, count in parts) / delta) + NEGLIGIBLE))


def _saddle(parts: tuple[Part, ...], delta: float, removes: bool, cut: float) -> tuple[float, float]:
    # The λ of the best Rényi bound and that bound, by the trapezoidal rule; nothing here needs to be an upper bound.
    tilts, reach = np.geomspace(1e-4, 1e8, 121), _reach(parts, delta)
    cumulants = np.zeros_like(tilts)
    for q, z, count in parts:
        x = np.linspace(-reach * z, 1 + reach * z, min(2**15, 64 + math.ceil(8 * (2 * reach + 1 / z))))
        loss = _loss(q, z, x)
        base = -0.5 * (x / z) ** 2 + (loss if removes else 0.0)
        base = np.where(loss > cut, -math.inf, base) - _log_sum_exp(base)
        exponents = base + tilts[:, None] * (loss if removes else -loss)
        cumulants += count * _log_sum_exp(exponents)
    bounds = (cumulants - math.log(delta) - np.log1p(tilts)) / tilts - np.log1p(1 / tilts)
    bounds = np.maximum(np.nan_to_num(bounds, nan=math.inf), 1e-9)
    best = int(np.argmin(bounds))
    return float(tilts[best]), float(bounds[best])


def _loss(q: float, z: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """log((1−q)N(0,z²) + qN(1,z²)) − log N(0,z²) at x: the loss of removing; increasing."""
    ratio = (x - 0.5) / (z * z)
    return (
        ratio
        if q == 1
        else np.where(ratio < 1, np.log1p(q * np.expm1(ratio)), np.logaddexp(math.log1p(-q), math.log(q) + ratio))
    )


def _where_loss(q: float, z: float, loss: NDArray[np.float64]) -> NDArray[np.float64]:
    if q == 1:
        return z * z * loss + 0.5
    below = np.log1p(np.maximum(np.expm1(np.minimum(loss, 1.0)) / q, -1.0))
    above = loss - math.log(q) + np.log1p(-(1 - q) * np.exp(-np.maximum(loss, 1.0)))
    return z * z * np.where(loss < 1, below, above) + 0.5


def _grid(
    q: float, z: float, h: float, span: NDArray[np.float64], removes: bool
) -> tuple[int, NDArray[np.float64], float]:
    """First index, masses of one part's loss at multiples of h, and the mass of an infinite loss.

    A mass P (other neighbour: Q) in a cell goes to the cell's two ends so that both P and Q are kept.
    """
    low, high = math.floor(span[0] / h), math.ceil(span[1] / h)
    loss = h * np.arange(low, high + 1)
    x = _where_loss(q, z, loss)
    without = _between(x / z)
    extra = q * (_between((x - 1) / z) - without)
    if removes:
        mass = without + extra
        upper = extra - without * np.expm1(np.minimum(loss[:-1], 700.0))
    else:
        mass = without
        upper = (without * np.expm1(np.minimum(loss[1:], 700.0)) - extra) * np.exp(-loss[1:])
    upper = np.clip(upper / -math.expm1(-h), 0.0, mass)
    left, right = ndtr(x[0] / z), ndtr(-x[-1] / z)
    if removes:
        left = (1 - q) * left + q * ndtr((x[0] - 1) / z)
        right = (1 - q) * right + q * ndtr((1 - x[-1]) / z)
    else:
        low, mass, upper, left, right = -high, mass[::-1], upper[::-1], right, left
    masses = np.append(mass - upper, 0.0) + np.append(0.0, upper)
    masses[0] += left
    return low, masses, float(right)


def _between(x: NDArray[np.float64]) -> NDArray[np.float64]:
    # On the right, the difference of upper tails: the difference of lower tails would lose every digit.
    return np.where(x[:-1] > 0, ndtr(-x[:-1]) - ndtr(-x[1:]), ndtr(x[1:]) - ndtr(x[:-1]))


def _window(
    grids: list[tuple[int, NDArray[np.float64], float]], counts: list[int], tilt: float, h: float
) -> tuple[float, float]:
    # Chernoff, on the tilted sum: what lies outside has a tilted mass below e^(−WRAPPED) on either side.
    sums = [(np.log(masses), h * (start + np.arange(len(masses)))) for start, masses, _ in grids]
    variance = 0.0
    for (logs, losses), count in zip(sums, counts, strict=True):
        weights = np.exp(logs + tilt * losses - _log_sum_exp(logs + tilt * losses))
        mean = np.dot(weights, losses)
        variance += count * float(np.dot(weights, (losses - mean) ** 2))

    def cumulant(order: float) -> float:
        return sum(
            count * float(_log_sum_exp(logs + order * losses))
            for (logs, losses), count in zip(sums, counts, strict=True)
        )

    least = sum(count * losses[0] for (_, losses), count in zip(sums, counts, strict=True))
    most = sum(count * losses[-1] for (_, losses), count in zip(sums, counts, strict=True))
    here, scale = cumulant(tilt), math.sqrt(2 * WRAPPED / max(variance, h * h))
    # A rare loss that lies far away is bounded best by a small shift.
    for shift in scale * np.geomspace(5e-3, 2, 9):
        most = min(most, (cumulant(tilt + shift) - here + WRAPPED) / shift)
        least = max(least, (here - cumulant(tilt - shift) - WRAPPED) / shift)
    return float(least), float(max(most, least + h))


def _log_sum_exp(exponents: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = exponents.max(axis=-1, keepdims=True)
    return largest[..., 0] + np.log(np.exp(exponents - largest).sum(axis=-1))


def _invert(losses: NDArray[np.float64], shares: NDArray[np.float64], target: float) -> float:
    # The smallest ε with Σ shares·(1 − e^(ε−loss))₊ ≤ target; on a cell it is one logarithm.
    above = np.append(np.cumsum(shares[::-1])[::-1], 0.0)

    def discounted(index: int) -> float:
        return float(np.dot(shares[index:], np.exp(losses[index] - losses[index:])))

    if not target > 0:
        return math.inf
    low, high = -1, len(losses) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if above[middle] - discounted(middle) <= target:
            high = middle
        else:
            low = middle
    if above[high] <= target:
        return float(losses[max(low, 0)])
    return float(losses[high] + math.log((above[high] - target) / discounted(high)))


def _parts(event: dp_event.DpEvent) -> tuple[tuple[Part, ...], list[tuple[dp_event.DpEvent, int]]]:
    """The (sampled) Gaussians of an event with their counts, all unsampled ones as one, and whatever else it holds."""
    sampled: Counter[tuple[float, float]] = Counter()
    others, precision, queue = [], 0.0, [(event, 1)]
    while queue:
        event, count = queue.pop()
        match event:
            case dp_event.NoOpDpEvent():
                pass
            case dp_event.ComposedDpEvent(events=events):
                queue += [(inner, count) for inner in events]
            case dp_event.SelfComposedDpEvent(event=inner, count=times):
                _check_count(times, "SelfComposedDpEvent.count")
                queue += [(inner, count * int(times))] if times else []
            case dp_event.NonPrivateDpEvent():
                precision = math.inf
            case dp_event.GaussianDpEvent(noise_multiplier=z):
                precision += count * _precision(z)
            case dp_event.PoissonSampledDpEvent(sampling_probability=q, event=inner):
                if not 0 <= q <= 1:
                    raise ValueError(f"PoissonSampledDpEvent: sampling_probability={q} is not in [0, 1].")
                # Gaussians on one and the same sample are one Gaussian: amplified once, never each by itself.
                gaussians, rest = _parts(inner)
                if rest or any(rate < 1 for rate, _, _ in gaussians):
                    others.append((event, count))
                elif gaussians and q == 1:
                    precision += count * _precision(gaussians[0][1])
                elif gaussians and q > 0:
                    sampled[float(q), gaussians[0][1]] += count
            case dp_event.DpEvent():
                others.append((event, count))
            case _:
                raise TypeError(f"epsilon: the event holds a {type(event).__name__}; pass a dp_accounting.DpEvent.")
    unsampled = [(1.0, max(precision, 1e-200) ** -0.5, 1)] if precision else []
    return tuple(unsampled + sorted((q, z, count) for (q, z), count in sampled.items())), others


def _precision(z: float) -> float:
    if not z >= 0:
        raise ValueError(f"GaussianDpEvent: noise_multiplier={z} is not a number ≥ 0.")
    return 1 / max(z * z, 1e-300) if z > 1e-100 else math.inf


def _merged(parts: tuple[Part, ...], limit: int) -> tuple[Part, ...]:
    # A schedule may change its noise every step: near ones are accounted as one, with the larger rate and the smaller noise.
    ratio = 1e-3
    names = {(q, z): (q, z) for q, z, _ in parts}
    while len(set(names.values())) > limit:
        ratio *= 2
        names = {(q, z): (_snapped(q, ratio, up=True), _snapped(z, ratio, up=False)) for q, z, _ in parts}
    merged: Counter[tuple[float, float]] = Counter()
    for q, z, count in parts:
        merged[names[q, z]] += count
    return tuple((q, z, count) for (q, z), count in merged.items())


def _snapped(value: float, ratio: float, *, up: bool) -> float:
    rounding, bound = (math.ceil, max) if up else (math.floor, min)
    return min(bound(value, math.exp(ratio * rounding(math.log(value) / ratio))), max(value, 1.0))


def _rounded_up(value: float) -> str:
    exact = Decimal(value)
    if value == 0 or 1 <= value < 1e6:
        return str(exact.quantize(Decimal("0.01"), ROUND_CEILING))
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), ROUND_CEILING)
    return f"{rounded:f}" if 1e-4 <= value < 1 else f"{rounded:.2e}"


def _check_delta(delta: float) -> None:
    if isinstance(delta, bool) or not isinstance(delta, int | float | np.floating):
        raise TypeError(f"delta={delta!r} is a {type(delta).__name__}; pass a float in (0, 1), such as 1e-5.")
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta} is not in (0, 1); choose one well below 1 / number of units.")


def _check_count(count: int, name: str) -> None:
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        raise TypeError(f"{name}={count!r} is a {type(count).__name__}; pass a whole number.")
    if count < 0:
        raise ValueError(f"{name}={count} is negative; pass a whole number ≥ 0.")

"""ε by the distribution of the privacy loss on a grid, never too small, for events that were fixed in advance."""

# SciPy ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Complex128, Float64, Int64
from scipy.fft import next_fast_len
from scipy.special import ndtr, ndtri

LARGEST_GRID = 2**22  # the most points of a grid, before and after composition: seconds, and less than 1 GB
LARGEST_LOSS = 600.0  # of a single release: its exponential must be a float
END_SHARE = 1e-8  # of δ: what the cut ends of all releases together may add to it
WINDOW_TAIL = 1e-6  # of the tilted mass: what may lie beyond each end of the window
WINDOW_FACTORS = np.geomspace(0.01, 1.0, 10)  # of the best order for a normal law: those at which its ends are bounded
COARSE = 2**10  # cells on each side of the mean, and of points beyond them, of which the window is computed
MOST_TILTS = 12
WIDER_TILTS = 4.0 ** np.arange(5)  # times the tilt: those at which a moment may show that ε is small enough
LARGEST_EXPONENT = 400.0  # of a weight in the window: less than a float holds by what e^300 below and all cells take
REACH = 300.0  # losses on either side of where little mass is left, in which ε is searched
NO_MASS = -50.0  # the logarithm below which a Fourier coefficient is left out; it counts as rounding
NEGLIGIBLE = 1e-3  # the share of δ that a bound of rounding may add, or it is made smaller
NEAR = 32  # cells on each side of the mean whose masses are transformed one by one where rounding counts
ROUNDING = 10 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class _Grid:
    """The losses of a release: `masses` at the multiples `first`, `first` + 1, … of the step, the rest infinite."""

    first: int
    masses: Float64[np.ndarray, "points"]
    infinite: float


@dataclass(frozen=True, eq=False)
class _Tilted:
    """The masses of a grid times e^{θ·loss}, divided by their sum; with the logarithm of that sum, rounded up."""

    masses: Float64[np.ndarray, "points"]
    log_moment: float

    @property
    def mean(self) -> float:
        """The mean, in cells from the first one."""
        return float(self.masses @ np.arange(len(self.masses)))

    @property
    def variance(self) -> float:
        """The variance, in cells squared."""
        return float(self.masses @ (np.arange(len(self.masses)) - self.mean) ** 2)

    def coarse(self) -> "_Coarse":
        """Return a distribution on fewer points, of which bounds of exponential moments are soon computed.

        Near the mean nothing changes. Each mass elsewhere moves to the two points around it such that its mean stays:
        an exponential is convex, so its moments only grow.
        """
        center = round(self.mean)
        start, stop = max(0, center - COARSE), min(len(self.masses), center + COARSE)
        cells, masses = [np.arange(start, stop)], [self.masses[start:stop]]
        for first, part in ((0, self.masses[:start]), (stop, self.masses[stop:])):
            width = -(-len(part) // COARSE)
            if width:
                blocks = _padded(part, width).reshape(-1, width)
                to_next = blocks @ (np.arange(width) / width)
                points = np.append(np.maximum(blocks.sum(axis=1) - to_next, 0.0), 0.0)
                points[1:] += to_next
                cells.append(first + width * np.arange(len(points)))
                masses.append(points)
        return _Coarse(np.concatenate(cells), np.log(np.concatenate(masses)))


@dataclass(frozen=True, eq=False)
class _Coarse:
    """Some cells, and the logarithms of their masses."""

    cells: Int64[np.ndarray, "points"]
    log_masses: Float64[np.ndarray, "points"]

    def log_exponential(self, order: float) -> float:
        """Return log E[e^{order·cell}]."""
        exponents = self.log_masses + order * self.cells
        largest = float(exponents.max())
        return largest + math.log(float(np.exp(exponents - largest).sum()))


def epsilon_on_grid(parts: Mapping[tuple[float, float], int], delta: float, step: float, tilt: float) -> float | None:
    """Return an upper bound of ε of Gaussians that were fixed in advance.

    The loss of each release is moved to two neighbouring points of a grid, such that the pair of distributions on the
    grid dominates that of the release (Doroshenko et al. 2022, "Connect the Dots: Tighter Discrete Approximations of
    Privacy Loss Distributions", section 4); for removing a unit, and for adding one. The composed loss is a sum of
    independent losses, so its distribution is a convolution, by FFT.

    In float64 the rounding of an FFT would drown masses below 10⁻¹⁶, which decide δ. So each distribution is tilted
    first: its mass at loss l is multiplied by e^{θl} and divided by the sum of all. The composed mass then lies around
    ε, and is tilted back:

        P(L = l) = e^{K − θl} · P_θ(L = l),    K = the sum over releases of log E[e^{θ·loss}].

    P_θ is computed in a window that leaves out 10⁻⁶ of it at each end. What lies above is charged as an infinite loss,
    by Chernoff's bound; what lies below wraps to the upper end of the window, where it only adds to δ. Bounds of all
    roundings are added to the masses.

    Args:
        parts: How many releases there are of each sampling rate in (0, 1] and noise multiplier above 0.
        delta: δ, in (0, 1).
        step: The step of the grid.
        tilt: θ, which should be the order at which Rényi DP is best, less 1; another one is taken if it is far off.

    Returns:
        ε, 0 or more, infinity where the loss of a release is too large; or None if the grid needs too many points.
    """
    counts = list(parts.values())
    end = END_SHARE * delta / sum(counts)
    ranges = [_range(rate, noise, end) for rate, noise in parts]
    if any(low < -LARGEST_LOSS or high > LARGEST_LOSS for low, high in ranges):
        return math.inf
    if sum(high - low for low, high in ranges) / step + 3 * len(parts) > LARGEST_GRID:
        return None
    grids = [_grids(rate, noise, step, end) for rate, noise in parts]
    removed = _epsilon([grid for grid, _ in grids], counts, delta, step, tilt)
    if removed is None:
        return None
    return _epsilon([grid for _, grid in grids], counts, delta, step, tilt, least=removed)


def _range(rate: float, noise: float, end: float) -> tuple[float, float]:
    """Return the losses, for removing a unit, beyond which at most a mass of `end` lies on either side."""
    reach = -float(ndtri(end))
    low, high = (_loss(rate, noise, x) for x in (-noise * reach, 1 + noise * reach))
    return low, high


def _loss(rate: float, noise: float, x: float) -> float:
    exponent = (2 * x - 1) / (2 * noise**2)
    return exponent if rate == 1 else float(np.logaddexp(math.log1p(-rate), math.log(rate) + exponent))


def _places(rate: float, noise: float, losses: Float64[np.ndarray, "points"]) -> Float64[np.ndarray, "points"]:
    """Return where the loss of removing a unit is `losses`: the inverse of `_loss`, −∞ where none is as small."""
    if rate == 1:
        return noise**2 * losses + 0.5
    return noise**2 * np.log(np.maximum(0.0, 1 + np.expm1(losses) / rate)) + 0.5


@np.errstate(all="ignore")
def _grids(rate: float, noise: float, step: float, end: float) -> tuple[_Grid, _Grid]:
    """Return the losses of removing and of adding a unit on a grid.

    With the unit, a release is x of (1 − q)·N(0, z²) + q·N(1, z²), without it of N(0, z²). The loss of removing grows
    with x, and the loss of adding is its negative, so the same points of x bound the cells of both grids.
    """
    low, high = _range(rate, noise, end)
    first, last = math.floor(low / step), math.ceil(high / step)
    losses = step * np.arange(first, last + 1)
    x = _places(rate, noise, losses)
    without, moved = _Cells.of(x / noise), _Cells.of((x - 1) / noise)
    sampled = rate * moved.inside + (1 - rate) * without.inside
    width = -math.expm1(-step)
    # The upper end of a cell takes (upper − e^{its lower loss}·lower)/width of the two laws' masses in it.
    over = np.expm1(losses[:-1]) + rate
    up = (rate * moved.inside - over * without.inside) / width
    up += ROUNDING * (rate * moved.size + np.abs(over) * without.size) / width
    removed = _at_ends(up, sampled)
    removed[0] += rate * moved.below + (1 - rate) * without.below
    ratio = np.exp(-losses[1:])
    over = rate * ratio - np.expm1(-losses[1:])
    up = (over * without.inside - rate * ratio * moved.inside) / width
    up += ROUNDING * (np.abs(over) * without.size + rate * ratio * moved.size) / width
    added = _at_ends(up[::-1], without.inside[::-1])
    added[0] += without.above
    beyond = rate * moved.above + (1 - rate) * without.above
    return _Grid(first, removed, beyond), _Grid(-last, added, without.below)


@dataclass(frozen=True, eq=False)
class _Cells:
    """The masses of N(0, 1) in cells, what their rounding is relative to, and the masses beyond the cells."""

    inside: Float64[np.ndarray, "cells"]
    size: Float64[np.ndarray, "cells"]
    below: float
    above: float

    @staticmethod
    def of(ends: Float64[np.ndarray, "points"]) -> "_Cells":
        tails = ndtr(-np.abs(ends))  # of the nearer side, so that a mass far out keeps its digits
        inside = tails[1:] - tails[:-1]
        middle = int(np.searchsorted(ends, 0.0))
        inside[middle:] *= -1
        if 0 < middle < len(ends):
            inside[middle - 1] = 1 - tails[middle - 1] - tails[middle]
        below, above = (float(ndtr(end)) for end in (ends[0], -ends[-1]))
        return _Cells(np.maximum(inside, 0.0), np.maximum(tails[1:], tails[:-1]), below, above)


def _at_ends(up: Float64[np.ndarray, "cells"], masses: Float64[np.ndarray, "cells"]) -> Float64[np.ndarray, "cells+1"]:
    """Return the masses at the ends of cells of which `up`, or what there is, moves to the upper end."""
    up = np.clip(up, 0.0, masses)
    ends = np.zeros(len(masses) + 1)
    ends[1:] = up
    ends[:-1] += masses - up
    return ends


@np.errstate(all="ignore")
def _epsilon(
    grids: Sequence[_Grid], counts: Sequence[int], delta: float, step: float, tilt: float, least: float = 0.0
) -> float | None:
    """Return the larger of `least` and ε of the composed losses; None if they need too many points."""
    infinite = -math.expm1(sum(count * math.log1p(-grid.infinite) for grid, count in zip(grids, counts, strict=True)))
    if infinite >= delta:
        return math.inf
    if least > 0 and _surely_below(grids, counts, delta - infinite, step, tilt, least):
        return least
    best = math.inf
    for _ in range(MOST_TILTS):
        tilted = [_tilt(grid, step, tilt) for grid in grids]
        log_moment = _sum(counts, (each.log_moment for each in tilted))
        window = _window(tilted, counts, delta, tilt * step)
        if window is None:
            return None
        low, size, tail = window
        # Weights are relative to the mean, where K − θl is 0 or less: the sum that is allowed is a float if δ is one.
        # Weights that no float holds are then too small to count, or those of losses below, which are left out.
        middle = min(max(round(_sum(counts, (each.mean for each in tilted))) - low, 0), size - 1)
        begin = max(0, middle - int(LARGEST_EXPONENT / (tilt * step)))
        first = step * (sum(grid.first * count for grid, count in zip(grids, counts, strict=True)) + low + begin)
        middle -= begin
        scale = log_moment - tilt * (first + step * middle)
        left = delta - infinite - tail * math.exp(min(0.0, scale - tilt * step * (size - begin - middle)))
        if left <= 0:
            tilt *= 2.0
            continue
        allowed = math.exp(min(LARGEST_EXPONENT, math.log(left) - scale))
        powers = _power(tilted, counts, size)
        offset = _offset(_inverse(powers, low, size)[begin:], middle, allowed, step, tilt)
        # The bound of the rounding, added to all masses above ε, may be large beside the sum that is allowed.
        weight = math.exp(min(LARGEST_EXPONENT, -tilt * (offset - step * middle)))
        if powers.rounding * weight > NEGLIGIBLE * allowed * -math.expm1(-tilt * step):
            powers = _precise_power(tilted, counts, size, powers.kept)
            offset = _offset(_inverse(powers, low, size)[begin:], middle, allowed, step, tilt)
        best = min(best, first + offset)
        if 0 < offset <= step * (size - begin - 2) or best <= 0:
            break
        tilt *= 0.5 if offset == 0 else 2.0
    return max(least, best)


def _sum(counts: Sequence[int], values: Iterable[float]) -> float:
    return math.fsum(count * value for count, value in zip(counts, values, strict=True))


def _surely_below(
    grids: Sequence[_Grid], counts: Sequence[int], delta: float, step: float, tilt: float, epsilon: float
) -> bool:
    """Return whether a moment shows that ε of the composed losses is below the given one.

    (1 − e^{−x})₊ ≤ e^{θx} · θ^θ/(1 + θ)^{1 + θ}, which bounds δ (Canonne, Kamath & Steinke 2020, Prop. 12).
    """
    for order in tilt * WIDER_TILTS:
        log_moment = _sum(counts, (_tilt(grid, step, order).log_moment for grid in grids))
        factor = order * math.log(order) - (1 + order) * math.log1p(order)
        if log_moment - order * epsilon + factor <= math.log(delta):
            return True
    return False


def _tilt(grid: _Grid, step: float, tilt: float) -> _Tilted:
    last = len(grid.masses) - 1
    masses = grid.masses * np.exp(tilt * step * np.arange(-last, 1))
    total, shift = float(masses.sum()), tilt * step * (grid.first + last)
    log_moment = math.log(total) + shift
    return _Tilted(masses / total, log_moment + ROUNDING * (abs(math.log(total)) + abs(shift) + 1))


def _window(
    tilted: Sequence[_Tilted], counts: Sequence[int], delta: float, tilt: float
) -> tuple[int, int, float] | None:
    """Return the first cell of a window, its size, and the tilted mass above it at most; None if it is too large.

    What lies five deviations above ε weighs e^{−θ · five deviations}. Where that is more than δ, less is left out.
    """
    variance = _sum(counts, (each.variance for each in tilted))
    needed = -math.log(WINDOW_TAIL) + max(0.0, -math.log(delta) - 5 * tilt * math.sqrt(variance))
    most = sum(count * (len(each.masses) - 1) for each, count in zip(tilted, counts, strict=True))
    low, high = 0, most
    coarse = [each.coarse() for each in tilted]
    for order in WINDOW_FACTORS * math.sqrt(2 * needed / max(variance, 1e-6)):
        up, down = (needed + _sum(counts, (each.log_exponential(sign * order) for each in coarse)) for sign in (1, -1))
        high, low = min(high, math.ceil(up / order)), max(low, math.floor(-down / order))
    size = int(cast(Any, next_fast_len)(high - low + 1, real=True))
    return None if size > LARGEST_GRID else (low, size, 0.0 if high == most else math.exp(-needed))


@dataclass(frozen=True, eq=False)
class _Power:
    """The Fourier transform of composed masses on a circle of cells: `values` at the frequencies `kept`, elsewhere 0.

    The composed masses begin at cell `shift`, and each is rounded by at most `rounding`.
    """

    kept: Int64[np.ndarray, "kept"]
    values: Complex128[np.ndarray, "kept"]
    shift: int
    rounding: float


def _power(tilted: Sequence[_Tilted], counts: Sequence[int], size: int) -> _Power:
    """Return the transforms of the masses, to the power of their counts, multiplied.

    A coefficient of a transform is rounded by at most some units of rounding times log₂ of the size; its power, by as
    much times the count; and the mean size of the powers bounds what that makes of a composed mass.
    """
    sizes, logs = np.zeros(size // 2 + 1), np.zeros(size // 2 + 1, np.complex128)
    kept = np.arange(len(sizes))
    for each, count in zip(tilted, counts, strict=True):
        transform = np.fft.rfft(_folded(each.masses, size))[kept]
        sizes[kept] += 0.5 * count * np.log(transform.real**2 + transform.imag**2)
        logs[kept] += count * np.log(transform)
        kept = kept[sizes[kept] > NO_MASS]
    values = np.exp(logs[kept])
    rounding = ROUNDING * math.log2(size) * (sum(counts) + 1) * 2 * float(np.abs(values).sum()) / size
    return _Power(kept, values, 0, rounding + math.exp(NO_MASS))


def _precise_power(
    tilted: Sequence[_Tilted], counts: Sequence[int], size: int, kept: Int64[np.ndarray, "kept"]
) -> _Power:
    """Return the same with less rounding, where the counts are large and so few frequencies are kept.

    At such a frequency φ, the transform of masses m around a cell c is 1 + w up to the shift by c, with

        w = Σ_j m_j · (e^{−iφ(j − c)} − 1),

    of which the cells next to c are added up as they stand here, and only the others, which hold little mass, by FFT.
    What is rounded is w instead of 1 + w, and log(1 + w) keeps its digits.
    """
    logs, rounded = np.zeros(len(kept), np.complex128), np.zeros(len(kept))
    shift = 0
    for each, count in zip(tilted, counts, strict=True):
        center = round(each.mean)
        near = slice(max(0, center - NEAR), min(len(each.masses), center + NEAR + 1))
        others = each.masses.copy()
        others[near] = 0.0
        mass = float(others.sum())
        turn = np.exp(2j * math.pi / size * (center * kept % size))
        deviations = np.fft.rfft(_folded(others, size))[kept] * turn - mass
        rounded += count * (mass * (math.log2(size) + 2))
        for cell in range(near.start, near.stop):
            angles = (2 * math.pi / size) * ((cell - center) * kept)
            sines = np.sin(angles)
            deviations += each.masses[cell] * (-2 * np.sin(0.5 * angles) ** 2 - 1j * sines)
            rounded += count * each.masses[cell] * (np.abs(sines) + 2 * np.sin(0.5 * angles) ** 2)
        logs += count * np.log1p(deviations)
        shift += center * count
    values = np.exp(logs)
    rounding = ROUNDING * 2 * float(np.abs(values) @ (rounded + math.log2(size))) / size
    return _Power(kept, values, shift, rounding + math.exp(NO_MASS))


def _inverse(power: _Power, low: int, size: int) -> Float64[np.ndarray, "size"]:
    """Return the composed masses in the window that begins at cell `low`, each raised by its rounding."""
    spectrum = np.zeros(size // 2 + 1, np.complex128)
    spectrum[power.kept] = power.values
    masses = np.roll(np.fft.irfft(spectrum, size), -((low - power.shift) % size))
    return np.maximum(masses, 0.0) + power.rounding


def _folded(masses: Float64[np.ndarray, "points"], size: int) -> Float64[np.ndarray, "size"]:
    """Return masses on a circle of so many cells, padded with zeros or wrapped."""
    return _padded(masses, size).reshape(-1, size).sum(axis=0)


def _padded(masses: Float64[np.ndarray, "points"], multiple: int) -> Float64[np.ndarray, "padded"]:
    """Return masses with zeros after them, in a number that is a multiple."""
    return np.concatenate([masses, np.zeros(-len(masses) % multiple)])


def _offset(composed: Float64[np.ndarray, "cells"], middle: int, allowed: float, step: float, tilt: float) -> float:
    """Return the loss above the window's first one from which on the hockey-stick sum is at most `allowed`.

    Args:
        composed: The tilted masses in the window.
        middle: The cell that weights are relative to.
        allowed: The sum of e^{−θ·(loss − middle loss)} · mass · (1 − e^{ε − loss}) that is allowed over losses above ε.
        step: The step of the grid.
        tilt: θ.

    Returns:
        The loss; 0 if ε lies at the window's beginning or below, and the last cell's if it lies there or above, where
        only what the window leaves out is left.
    """
    cells, rounded = np.arange(len(composed)), 1 + ROUNDING * (len(composed) + REACH)
    weights = composed * np.exp(-tilt * step * (cells - middle))
    from_here = np.append(np.cumsum(weights[::-1])[::-1], 0.0) * rounded
    # From the first cell on above which there is little enough mass, ε is surely reached; far below it, it is not.
    reached = len(composed) - int(np.searchsorted(from_here[-2::-1], allowed, side="right"))
    reach = math.ceil(REACH / step)
    near = slice(max(0, reached - reach), min(len(composed), reached + reach))
    relative = step * (cells[near] - reached)
    # The sum at a cell's loss l is S(l) = e^{−h} · S(l + h) + (1 − e^{−h}) · (the mass above l), whose terms are all
    # positive. The mass from l on, less a part of it, would lose its digits where the cell itself holds most of it.
    terms = from_here[near.start + 1 : near.stop + 1] * np.exp(-relative)
    beyond = from_here[near.stop] * math.exp(-step * (near.stop - reached))
    sums = np.exp(relative) * (-math.expm1(-step) * np.cumsum(terms[::-1])[::-1] + beyond) * rounded
    enough = np.flatnonzero(sums <= allowed)
    if len(enough) == 0:
        return step * (len(composed) - 1)
    cell = int(enough[0])
    if cell == 0:
        return step * near.start
    # Between two cells the sum is affine in e^ε.
    subtracted = float(weights[near][cell:] @ np.exp(relative[cell] - relative[cell:]))
    share = (allowed - sums[cell]) / subtracted if subtracted > 0 else 1.0
    below = min(-math.log1p(-share), step) if share < 1 else 0.0
    return step * (near.start + cell) - below

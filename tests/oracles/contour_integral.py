"""δ of composed Gaussians without a grid of losses: an integral of moments along a line in the complex plane.

With L the composed privacy loss and M(s) = E[e^{sL}], for any θ > 0

    δ(ε) = E[(1 − e^{ε − L})₊] = 1/(2πi) ∫_{θ − i∞}^{θ + i∞} M(s) e^{−sε} / (s(s + 1)) ds,

and M is the product of the moments of the releases, each an integral over x of N(0, z²) of a power of the ratio of the
two laws, 1 − q + q·e^{(2x − 1)/2z²}. Both integrals are sums over equal steps, which are exact but for roundings once
the steps are small. There is no FFT, no grid of losses and no cut of ends, so nothing is shared with dpcomp's ε.
"""

import math

import numpy as np

CHUNK = 500  # points of the line at a time
MOST_POINTS = 400_000


def delta_of(epsilon, parts, tilt):
    """δ at ε, the larger of removing and adding a unit; `tilt` is θ, at best near the order where Rényi DP is best."""
    return max(_delta(epsilon, parts, tilt, power) for power in (lambda s: 1 + s, lambda s: -s))


@np.errstate(all="ignore")  # far out on the line a moment may be 0
def _delta(epsilon, parts, tilt, power):
    def composed(s):
        return sum(count * log_moments(rate, noise, power(s)) for (rate, noise), count in parts.items())

    h = 1e-3 * tilt
    spread = math.sqrt(max(float(np.diff(composed(tilt + h * np.arange(-1.0, 2.0)).real, 2)[0]) / h**2, 1e-12))
    step = 2 * math.pi / max(60 / tilt, 40 * spread, 40)  # the sum repeats L with this period, seen through e^{θL}
    center = float(composed(np.array([tilt + 0j])).real[0]) - tilt * epsilon
    total = largest = 0.0
    for start in range(0, MOST_POINTS, CHUNK):
        t = step * (np.arange(start, start + CHUNK) + 0.5)
        s = tilt + 1j * t
        logs = composed(s)
        values = np.where(np.isfinite(logs), np.exp(np.nan_to_num(logs) - s * epsilon - center), 0) / (s * (s + 1))
        total += float(values.real.sum())
        largest = max(largest, float(np.abs(values).max()))
        if np.abs(values).max() < 1e-11 * largest:
            return math.exp(center) * step / math.pi * total
    raise ValueError("the integrand does not end: this oracle is for composed losses that are smooth")


def log_moments(rate, noise, powers):
    """log E[ratio^power] over x of N(0, z²), for the ratio of the laws with and without the unit."""
    order = float(np.max(np.abs(np.real(powers)))) + 1
    step = min(noise, noise**2) / 12
    x = np.arange(-11 * noise - 1, 11 * noise + order + 1, step)
    log_ratio = np.logaddexp(np.log1p(-rate) if rate < 1 else -np.inf, np.log(rate) + (2 * x - 1) / (2 * noise**2))
    weights = np.exp(-0.5 * (x / noise) ** 2)
    # E[ratio^p] − 1 = E[expm1(p·log ratio)] keeps the digits of small rates.
    exponents = np.multiply.outer(powers, log_ratio)
    large = float(np.max(exponents.real - 0.5 * (x / noise) ** 2)) > 600
    assert not large, "a moment is too large for this oracle"
    moments = (weights * np.expm1(exponents)).sum(axis=-1) * (step / (noise * math.sqrt(2 * math.pi)))
    return np.log1p(moments)

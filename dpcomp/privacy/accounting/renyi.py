"""Rényi DP of Gaussians on all units or on a Poisson sample, at fixed orders."""

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float64
from scipy.special import gammaln  # pyright: ignore[reportMissingTypeStubs]  # SciPy ships no types

# Below 1.02 the conversion to ε is not stable; above 2,048 no order is the best one where ε is above 0.01.
ORDERS = (1.02, 1.05, *np.arange(11, 30) / 10, *range(3, 33), *np.geomspace(40, 2048, 30).round())
ROUNDING = 8 * float(np.finfo(np.float64).eps)  # of a sum of four numbers, as a share of the sum of their sizes
QUADRATURE_ERROR = 1e-12  # of the logarithm of a moment
MOST_NODES = 2**14  # of a quadrature; the chord is used where it would take more

_ALL = np.array(ORDERS, dtype=np.float64)
_WHOLE = _ALL[np.rint(_ALL) == _ALL]
_BELOW_THREE = _ALL[_ALL < 3]
# All terms k of the sums for all whole orders α in one array, from k = 2 on, one order after the other.
_STARTS = np.concatenate([[0], np.cumsum(_WHOLE - 1)[:-1]]).astype(np.int64)
_ORDER = np.repeat(_WHOLE, (_WHOLE - 1).astype(np.int64))
_K = np.arange(len(_ORDER)) - np.repeat(_STARTS, (_WHOLE - 1).astype(np.int64)) + 2.0
_GAMMAS = (gammaln(_ORDER + 1), gammaln(_K + 1), gammaln(_ORDER - _K + 1))
_LOG_BINOMIAL, _LOG_BINOMIAL_SIZE = _GAMMAS[0] - _GAMMAS[1] - _GAMMAS[2], sum(_GAMMAS)


@lru_cache(maxsize=2**15)
def rdp_curve(rate: float, noise: float) -> Float64[np.ndarray, "orders"]:
    """Return an upper bound of the Rényi divergence of a release at each of `ORDERS`, read-only.

    For neighbours P (with the unit) and Q, the moment A(α) = E_Q[(P/Q)^α] gives the divergence log A(α)/(α − 1). At
    whole orders it is a sum, in which 1 is left out by the binomial theorem, so that no digits of a tiny divergence are
    lost:

        A(α) − 1 = Σ_{k=2}^{α} C(α, k) q^k (1 − q)^{α−k} (exp((k² − k)/2z²) − 1).

    log A is convex in α (Hölder) and 0 at α = 1, so between whole orders its chord is an upper bound. Below 3, where
    the chord is loose, log A is also integrated by the trapezoidal rule, as A(α) = E[(1 − q + q·e^{(2x−1)/2z²})^α]
    for x of N(0, z²). The integrand is analytic, and its modulus on lines at height a from the real axis is at most
    e^{a²/2z²} times its value on the axis as long as a ≤ πz²/2, so with step a/5 the rule's relative error is below
    2·e^{a²/2z²}/(e^{10π} − 1) < 10⁻¹² for a ≤ z (Trefethen & Weideman 2014, Thm 5.1); that much is added.
    Every rounding is bounded and added too.

    Source: Mironov, Talwar & Zhang 2019, "Rényi Differential Privacy of the Sampled Gaussian Mechanism", sections 3.3
    (the sum) and 3.1 (adding a unit never costs more than removing it).

    Args:
        rate: q, the probability with which a unit is sampled, in (0, 1].
        noise: z, the noise multiplier, above 0.
    """
    if rate == 1:
        curve = _ALL / (2 * noise**2) * (1 + ROUNDING)
    else:
        whole = _log_moments(rate, noise)
        logs = np.interp(_ALL, np.concatenate([[1.0], _WHOLE]), np.concatenate([[0.0], whole])) * (1 + ROUNDING)
        low = slice(0, len(_BELOW_THREE))
        logs[low] = np.minimum(logs[low], _integrated_log_moments(rate, noise))
        curve = logs / (_ALL - 1) * (1 + ROUNDING)
    curve.flags.writeable = False
    return curve


@np.errstate(all="ignore")
def _log_moments(rate: float, noise: float) -> Float64[np.ndarray, "whole"]:
    """Return an upper bound of log A at the whole orders."""
    log_rate, log_rest = _K * math.log(rate), (_ORDER - _K) * math.log1p(-rate)
    exponent = (_K * _K - _K) / (2 * noise * noise)
    log_factor = np.where(exponent < 1, np.log(np.expm1(exponent)), exponent + np.log1p(-np.exp(-exponent)))
    terms = _LOG_BINOMIAL + log_rate + log_rest + log_factor
    terms += ROUNDING * (_LOG_BINOMIAL_SIZE - log_rate - log_rest + np.abs(log_factor) + 1)
    largest = np.maximum.reduceat(terms, _STARTS)
    terms -= np.repeat(largest, (_WHOLE - 1).astype(np.int64))
    log_sum = largest + np.log(np.add.reduceat(np.exp(terms), _STARTS)) + ROUNDING * (np.abs(largest) + 8)
    return np.logaddexp(0.0, log_sum) * (1 + ROUNDING)


@np.errstate(all="ignore")
def _integrated_log_moments(rate: float, noise: float) -> Float64[np.ndarray, "below_three"]:
    """Return an upper bound of log A at the orders below 3; infinity where it would take too long."""
    height = min(0.5 * math.pi * noise**2, noise)
    step, reach = height / 5, 9 * noise
    if (2 * reach + 3) / step > MOST_NODES:
        return np.full(len(_BELOW_THREE), math.inf)
    x = np.arange(-reach, reach + 3, step)  # at order α < 3, all mass lies within nine deviations of [0, α]
    log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2))
    terms = _BELOW_THREE[:, None] * log_ratio - x * x / (2 * noise**2)
    largest = terms.max(axis=1)
    total = np.exp(terms - largest[:, None]).sum(axis=1)
    return (
        largest + np.log(total * (step / (noise * math.sqrt(2 * math.pi)))) + QUADRATURE_ERROR * (1 + np.abs(largest))
    )

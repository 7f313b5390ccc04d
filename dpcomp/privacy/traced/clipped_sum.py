"""The clipped sum inside a trace of JAX: in float64 where the trace has it, else in pairs of floats.

Where `jax.enable_x64` is on, norms and sums of float32 units are float64, and the proof is that of
dpcomp/privacy/units/clipped_sum.py; the square of a float32 value neither over- nor underflows there. Elsewhere pairs
hold what one float would round.

Why pairs keep the contract of `Clip` in float32, whose rounding is u = 2⁻²⁴: each unit is first scaled by a power of
two to a largest magnitude in [½, 1), so no square overflows, and what underflows is below 10⁻¹⁹ of it. Squares are
added in pairs, then pairs of pairs, which errs by at most (log₂ d + 1)·u of them: 1.7·10⁻⁶ at 10⁸ coordinates, half of
which reaches the norm. The product of a unit with its factor is rounded depending on that unit alone. Units are added
as (high, low) pairs in a tree, where only low is rounded: a sum of n units is off by at most (log₂ n)²·n·u²·C, which is
1.4·10⁻⁶·C for 10⁶ units.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

from array_api_compat import array_namespace, is_jax_array
from jaxtyping import Float

from dpcomp.privacy.units.clipped_sum import UNITS_PER_SUM, added


def is_traced(array: Any) -> bool:
    """Return whether an array has no values yet, because JAX is tracing the function that computes it."""
    if not is_jax_array(array):
        return False
    from jax.core import Tracer  # pyright: ignore[reportUnknownVariableType, reportMissingImports]

    return isinstance(array, Tracer)


def _lax() -> Any:
    """Return `jax.lax`, which is imported here and not before; its types are not complete."""
    from jax import lax

    return lax


def traced_sum(
    layers: Sequence[Float[Any, "n _"]], norm: float, margin: float
) -> tuple[tuple[Any, ...], tuple[Any, ...], Any]:
    """Return ∑ᵢ min(1, C/(‖xᵢ‖ + margin·C)) xᵢ as one or two arrays a layer, whose sum it is.

    Args:
        layers: An (n, m) array a layer, all of one dtype, traced by JAX.
        norm: C, the clip norm.
        margin: What is added to the norm of a unit, in units of C.

    Returns:
        An (m,) array a layer; an (m,) array a layer of what the first was rounded by, none where they are float64; and
        the number of units that are finite.
    """
    xp = array_namespace(*layers)
    if layers[0].dtype == xp.float32 and "float64" in xp.__array_namespace_info__().dtypes(kind="real floating"):
        return _float64_sum(layers, norm, margin)
    high, low, finite = _sum_of_pairs(layers, norm, margin)
    return high, low, xp.sum(xp.astype(finite, xp.int32))


def _float64_sum(
    layers: Sequence[Float[Any, "n _"]], norm: float, margin: float
) -> tuple[tuple[Any, ...], tuple[Any, ...], Any]:
    """Return the sum in float64, without remainders, and the number of units that are finite."""
    lax, xp = _lax(), array_namespace(*layers)
    squares = xp.zeros(layers[0].shape[:1], dtype=xp.float64)
    for x in layers:
        squares = squares + xp.sum(xp.square(xp.astype(x, xp.float64)), axis=1)
    norms = xp.sqrt(squares)
    finite = xp.isfinite(norms)
    factors = xp.where(finite, xp.minimum(norm / (norms + margin * norm), 1.0), 0.0)
    n, starts = layers[0].shape[0], range(0, layers[0].shape[0], UNITS_PER_SUM)
    sums = tuple(xp.zeros(x.shape[1], dtype=xp.float64) for x in layers)
    low = sums
    for start in starts:
        part = slice(start, min(n, start + UNITS_PER_SUM))
        group: tuple[Any, ...] = lax.platform_dependent(
            tuple(x[part] for x in layers), factors[part], finite[part], cpu=_by_unit, default=_by_product
        )
        pairs = [added(high, rest, more) for high, rest, more in zip(sums, low, group, strict=True)]
        sums, low = tuple(high for high, _ in pairs), tuple(rest for _, rest in pairs)
    return sums, () if len(starts) < 2 else low, xp.sum(xp.astype(finite, xp.int32))


def _by_unit(layers: tuple[Any, ...], factors: Any, finite: Any) -> tuple[Any, ...]:
    """Return ∑ᵢ fᵢxᵢ a layer, one unit after the other: float64 copies of all units would not stay in a cache."""
    lax, xp = _lax(), array_namespace(factors)

    def add(i: Any, sums: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            total + factors[i] * xp.where(finite[i], xp.astype(x[i], xp.float64), 0.0)
            for total, x in zip(sums, layers, strict=True)
        )

    return lax.fori_loop(0, factors.shape[0], add, tuple(xp.zeros(x.shape[1], dtype=xp.float64) for x in layers))


def _by_product(layers: tuple[Any, ...], factors: Any, finite: Any) -> tuple[Any, ...]:
    """Return ∑ᵢ fᵢxᵢ a layer as matrix products, which is what a GPU is fast at."""
    xp = array_namespace(factors)
    return tuple(factors @ xp.where(finite[:, None], xp.astype(x, xp.float64), 0.0) for x in layers)


def _sum_of_pairs(
    layers: Sequence[Float[Any, "n _"]], norm: float, margin: float
) -> tuple[tuple[Any, ...], tuple[Any, ...], Any]:
    """Return the sum as (high, low) pairs, and which units are finite."""
    xp = array_namespace(*layers)
    finite = xp.asarray(True)
    for x in layers:
        finite = finite & xp.all(xp.isfinite(x), axis=1)
    layers = [xp.where(finite[:, None], x, xp.zeros_like(x)) for x in layers]
    largest = xp.zeros_like(layers[0], shape=layers[0].shape[:1])
    for x in layers:
        largest = xp.maximum(largest, xp.max(xp.abs(x), axis=1, initial=0.0))
    _, exponents = xp.frexp(largest)
    mantissa, exponent = math.frexp(norm)
    scaled = [_times_power_of_two(x, -exponents[:, None]) for x in layers]
    squares = xp.zeros_like(largest)
    for x in scaled:
        squares = squares + _pairwise_sum(xp.square(x).T)
    # In units of 2^exponent, the unit is scaled·2^(exponents − exponent), and C is the mantissa.
    unclipped = _times_power_of_two(xp.ones_like(largest), exponents - exponent)
    size = xp.sqrt(squares)  # 0 for a unit of zeros alone, else ½ or more
    factors = xp.minimum(unclipped, mantissa / xp.where(size > 0, size + margin * mantissa / unclipped, 1.0))
    high, low = zip(*(_pair_sum(factors[:, None] * x) for x in scaled), strict=True)
    one = xp.ones_like(largest, shape=())
    back = _times_power_of_two(one, xp.asarray(exponent, dtype=exponents.dtype))
    return tuple(part * back for part in high), tuple(part * back for part in low), finite


def _times_power_of_two(x: Any, exponents: Any) -> Any:
    """Return x·2^exponents, exactly unless it over- or underflows; in two steps, as 2^exponents itself may overflow."""
    first = exponents // 2
    return x * _power_of_two(first, x.dtype) * _power_of_two(exponents - first, x.dtype)


def _power_of_two(exponents: Any, dtype: Any) -> Any:
    """Return 2^exponents from its bits: a power function may round."""
    lax, xp = _lax(), array_namespace(exponents)
    bits, digits = (64, 52) if cast(int, xp.finfo(dtype).bits) == 64 else (32, 23)
    bias = 2 ** (bits - digits - 2) - 1
    integers = xp.clip(exponents, 1 - bias, bias).astype(xp.int64 if bits == 64 else xp.int32) + bias
    return lax.bitcast_convert_type(integers << digits, dtype)


def _pairwise_sum(x: Any) -> Any:
    """Return the sum over the first axis, of pairs, then of pairs of pairs."""
    xp = array_namespace(x)
    if x.shape[0] == 0:
        return xp.zeros_like(x, shape=x.shape[1:])
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        x = xp.concat([x[:half] + x[half : 2 * half], x[2 * half :]], axis=0)
    return x[0]


def _pair_sum(x: Any) -> tuple[Any, Any]:
    """Return the sum over the first axis as (high, low)."""
    xp = array_namespace(x)
    if x.shape[0] == 0:
        zero = xp.zeros_like(x, shape=x.shape[1:])
        return zero, zero
    low = xp.zeros_like(x)
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        high, rest = added(x[:half], low[:half] + low[half : 2 * half], x[half : 2 * half])
        x, low = xp.concat([high, x[2 * half :]], axis=0), xp.concat([rest, low[2 * half :]], axis=0)
    return x[0], low[0]

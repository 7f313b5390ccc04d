"""The clipped sum inside a trace of JAX, which may have no float64: pairs of floats hold what one of them would round.

Why it keeps the contract of `Clip` in float32, whose rounding is u = 2⁻²⁴. Each unit is first scaled by a power of two
to a largest magnitude in [½, 1), so no square overflows, and what underflows is below 10⁻¹⁹ of it. Squares are added in
pairs, then pairs of pairs, which errs by at most (log₂ d + 1)·u of them: 1.7·10⁻⁶ at 10⁸ coordinates, half of which
reaches the norm. The product of a unit with its factor is rounded depending on that unit alone. Units are added as
(high, low) pairs in a tree, where only low is rounded: a sum of n units is off by at most (log₂ n)²·n·u²·C, which is
1.4·10⁻⁶·C for 10⁶ units.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

from array_api_compat import array_namespace, is_jax_array
from jaxtyping import Float

from dpcomp.privacy.clipped_sum import added


def is_traced(array: Any) -> bool:
    """Return whether an array has no values yet, because JAX is tracing the function that computes it."""
    if not is_jax_array(array):
        return False
    from jax.core import Tracer  # pyright: ignore[reportUnknownVariableType, reportMissingImports]

    return isinstance(array, Tracer)


def traced_sum(
    layers: Sequence[Float[Any, "n _"]], norm: float, margin: float
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return ∑ᵢ min(1, C/(‖xᵢ‖ + margin·C)) xᵢ as two arrays a layer, whose sum it is.

    Args:
        layers: An (n, m) array a layer, all of one dtype, traced by JAX.
        norm: C, the clip norm.
        margin: What is added to the norm of a unit, in units of C.

    Returns:
        An (m,) array a layer, and an (m,) array a layer of what the first was rounded by.
    """
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
    return tuple(part * back for part in high), tuple(part * back for part in low)


def _times_power_of_two(x: Any, exponents: Any) -> Any:
    """Return x·2^exponents, exactly unless it over- or underflows; in two steps, as 2^exponents itself may overflow."""
    first = exponents // 2
    return x * _power_of_two(first, x.dtype) * _power_of_two(exponents - first, x.dtype)


def _power_of_two(exponents: Any, dtype: Any) -> Any:
    """Return 2^exponents from its bits: a power function may round."""
    from jax import lax

    xp = array_namespace(exponents)
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

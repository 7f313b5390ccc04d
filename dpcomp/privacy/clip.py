"""Clipping: scale each unit to a bounded norm, and sum the units."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import (
    array_namespace,
    is_lazy_array,  # pyright: ignore[reportUnknownVariableType]  # its signature names packages that may be missing
)
from jaxtyping import Float

from dpcomp.core.checks import real_number
from dpcomp.core.public_context import PublicContext
from dpcomp.privacy.claim import Bounded, Claim, Unbounded
from dpcomp.privacy.unit_gradients import Total, Units

UNITS_PER_SUM = 64  # units added in float32 at a time
SQUARES_PER_SUM = 512  # squares added in float32 at a time: at 4,096 a constant vector's norm is off by 2·10⁻⁶


@dataclass(frozen=True)
class Clip:
    """Scale each unit x by min(1, C/(‖x‖ + 10⁻⁶)), where C is `norm`, and sum the units.

    The norm is that of the whole unit, over all layers. The 10⁻⁶ is that of Opacus, and errs on the safe side. A unit
    whose norm is not finite contributes zero.

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", Algorithm 1.

    **Privacy:** each scaled unit has norm ≤ C(1 + 10⁻⁵) in floating point, so adding or removing one moves
    the sum by no more, whatever the unit holds. Sums are float64 (NumPy, torch); JAX without 64-bit mode rounds
    a sum of n units to n·2⁻²⁴·C: give it micro-batches of at most 128 (PRIVACY_RULES hazards 5, 6 and 41).

    Args:
        norm: C, the largest L2 norm of a unit, a finite number above 0.

    Raises:
        TypeError: `norm` is not a number.
        ValueError: `norm` is not a finite number above 0.

    Examples:
        >>> import numpy as np
        >>> import dpcomp as dp
        >>> (total,) = dp.Clip(1.0).sum((np.array([[30.0, 40.0], [0.1, 0.2]]),))
        >>> print(total.round(3))
        [0.7 1. ]
    """

    norm: float

    def __post_init__(self):
        norm = real_number(self.norm, "Clip(norm)", "a finite number above 0")
        if not (norm > 0 and math.isfinite(norm)):
            raise ValueError(f"{self}: the clip norm is a finite number above 0")
        object.__setattr__(self, "norm", norm)

    def claim(self, before: Claim, where: str) -> Claim:
        """Return `Bounded(l2=norm)` for units that nothing bounds.

        Raises:
            ValueError: The units were clipped before, or their support is not public.
        """
        if not isinstance(before, Unbounded) or not before.support_is_public:
            raise ValueError(f"{where} meets a sum: units are clipped once, before they are added up")
        return Bounded(l2=self.norm)

    def apply(self, value: Units | Total, context: PublicContext) -> Total:
        """Clip each unit and sum the units.

        Raises:
            ValueError: `value` is a sum already.
        """
        if isinstance(value, Total):
            raise ValueError(f"{self} meets a sum: units are clipped once, before they are added up")
        sums = self.sum(value.layers)
        return Total(layers=sums, layout=value.layout, support=value.support, units=value.count)

    def sum(self, layers: tuple[Float[Any, "n _"], ...]) -> tuple[Float[Any, "_"], ...]:
        """Return ∑ᵢ min(1, C/(‖xᵢ‖ + 10⁻⁶)) xᵢ, layer by layer; the norm is over all layers of the unit.

        Args:
            layers: An (n, m) array a layer, of one framework: n units, m coordinates of the layer.

        Returns:
            An (m,) array a layer.
        """
        xp = array_namespace(*layers)
        norms = unit_norms(layers)
        finite = xp.isfinite(norms)
        factors = xp.where(finite, self.norm / (norms + 1e-6), xp.zeros_like(norms))
        factors = xp.minimum(factors, xp.ones_like(factors))
        # 0 · NaN is NaN, so rows without a finite norm are blanked: a pass that is made only when needed, except
        # inside a trace, which cannot look, and where a product of matrices might run in TF32 besides.
        if is_lazy_array(layers[0]):
            zeros = (xp.zeros_like(x) for x in layers)
            products = (
                xp.where(finite[:, None], factors[:, None] * x, zero) for x, zero in zip(layers, zeros, strict=True)
            )
            return tuple(xp.sum(product, axis=0) for product in products)
        if not bool(xp.all(finite)):
            layers = tuple(xp.where(finite[:, None], x, xp.zeros_like(x)) for x in layers)
        return tuple(_weighted_sum(factors, x) for x in layers)


def unit_norms(layers: tuple[Float[Any, "n _"], ...]) -> Float[Any, "n"]:
    """Return the (n,) norms ‖xᵢ‖ over all layers of each unit, to a relative error of 10⁻⁶ up to 10⁸ coordinates."""
    xp = array_namespace(*layers)
    with np.errstate(over="ignore", invalid="ignore"):  # a square that overflows is an infinite norm: meant
        return xp.sqrt(sum(_squared_norms(x) for x in layers))


def _squared_norms(x: Float[Any, "n m"]) -> Float[Any, "n"]:
    """Return ‖xᵢ‖² of each row.

    One long float32 sum reads low (torch's by 0.7–1.2 % at 10⁷ coordinates), so squares are added in
    blocks, and the blocks in float64, or, where a framework has none, in blocks again.
    """
    xp, (n, m) = array_namespace(x), x.shape
    floats = xp.__array_namespace_info__().dtypes(kind="real floating")
    widest = floats.get("float64", floats["float32"])
    whole = m - m % SQUARES_PER_SUM
    if whole == 0:
        return xp.astype(xp.linalg.vector_norm(x, axis=1), widest) ** 2
    blocks = xp.reshape(x[:, :whole], (n, whole // SQUARES_PER_SUM, SQUARES_PER_SUM))
    squares = _squared_norms(xp.astype(xp.linalg.vector_norm(blocks, axis=2), widest))
    return squares if whole == m else squares + _squared_norms(x[:, whole:])


def _weighted_sum(factors: Float[Any, "n"], x: Float[Any, "n m"]) -> Float[Any, "m"]:
    """Return ∑ᵢ fᵢxᵢ, in float64.

    A float32 sum of n units of norm C is off by n·2⁻²⁴·C, so only a few rows are added in float32.
    """
    xp = array_namespace(x)
    total = None
    for start in range(0, max(1, x.shape[0]), UNITS_PER_SUM):
        rows = xp.astype(factors[start : start + UNITS_PER_SUM], x.dtype) @ x[start : start + UNITS_PER_SUM]
        if rows.dtype != x.dtype:
            raise ValueError(
                f"a product of {x.dtype} came out as {rows.dtype}: automatic mixed precision would round units above "
                "the clip norm. Clip outside of autocast"
            )
        rows = xp.astype(rows, xp.float64)
        total = rows if total is None else total + rows
    return total

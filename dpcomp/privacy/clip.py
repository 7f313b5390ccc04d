"""Clipping: scale each unit to a bounded norm, and sum the units."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_array, is_torch_array
from jaxtyping import Bool, Float

from dpcomp.core.checks import real_number
from dpcomp.core.public_context import PublicContext
from dpcomp.privacy.claim import Bounded, Claim, Unbounded
from dpcomp.privacy.traced.clipped_sum import is_traced, traced_sum
from dpcomp.privacy.units.clipped_sum import device_sum, host_sum
from dpcomp.privacy.units.factored_units import FactoredUnits
from dpcomp.privacy.units.unit_gradients import Total, Units

SMALLEST_NORM, LARGEST_NORM = 1e-20, 1e20  # beyond, clipped values or their noise leave the range of float32
MARGIN = 1e-6  # added to norms, in clip norms
SQUARES_PER_SUM = 128  # added in the units' own precision: in float32 and any order, a norm is off by 3.8·10⁻⁶
SINGLE_NORMS = (1e-9, 1e9)  # the clip norms at which norms of float32 units need no more range than float32 has


@dataclass(frozen=True)
class Clip:
    """Scale each unit x by min(1, C/(‖x‖ + 10⁻⁶·C)), where C is `norm`, and sum the units.

    The norm is that of the whole unit, over all layers. The 10⁻⁶ errs on the safe side. A unit whose norm is not finite
    contributes zero, by the same operations as any other unit. For C between 10⁻⁹ and 10⁹, norms are computed in the
    precision of the gradients, so in float32 a norm above 1.8·10¹⁹ is not finite; for other C they are in float64.

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", Algorithm 1.

    **Privacy:** adding or removing one unit moves the sum by at most C(1 + 10⁻⁵) in floating point, whatever the unit
    holds, for up to 10⁶ units in any micro-batches. Norms are summed in short blocks, whose worst error is known; sums
    are float64 with compensation (dpcomp/privacy/units/clipped_sum.py has the proof), on the host for NumPy, JAX and
    torch on the CPU. Inside `jax.jit` they are float64 or pairs of floats (PRIVACY_RULES hazards 5, 6, 41 and 44).

    Args:
        norm: C, the largest L2 norm of a unit, from 10⁻²⁰ to 10²⁰.

    Raises:
        TypeError: `norm` is not a number.
        ValueError: `norm` lies outside its range.

    Examples:
        >>> import numpy as np
        >>> import dpcomp as dp
        >>> (total,) = dp.Clip(1.0).sum((np.array([[30.0, 40.0], [0.1, 0.2]]),))
        >>> print(total.round(3))
        [0.7 1. ]
    """

    norm: float

    def __post_init__(self):
        norm = real_number(self.norm, "Clip(norm)", f"a number from {SMALLEST_NORM:g} to {LARGEST_NORM:g}")
        if not SMALLEST_NORM <= norm <= LARGEST_NORM:
            raise ValueError(
                f"{self}: the clip norm is a finite number above 0, from {SMALLEST_NORM:g} to {LARGEST_NORM:g}; "
                "beyond, float32 cannot hold the release. Scale the loss, or choose a norm near those of the gradients"
            )
        object.__setattr__(self, "norm", norm)

    def claim(self, before: Claim, where: str) -> Claim:
        """Return `Bounded(l2=norm)` for units that nothing bounds.

        Raises:
            ValueError: The units were clipped before, or their support is not public.
        """
        if not isinstance(before, Unbounded) or not before.support_is_public:
            raise ValueError(f"{where} meets a sum: units are clipped once, before they are added up")
        return Bounded(l2=self.norm)

    def apply(self, value: Units | FactoredUnits | Total, context: PublicContext) -> Total:
        """Clip each unit and sum the units.

        Raises:
            ValueError: `value` is a sum already.
        """
        if isinstance(value, Total):
            raise ValueError(f"{self} meets a sum: units are clipped once, before they are added up")
        if isinstance(value, FactoredUnits):
            if not self._wide:
                sums, finite = value.weighted_sum(self._factors)
                counts = {"units": value.count, "not_finite": value.count - finite}
                return Total(layers=sums, layout=value.layout, support=value.support, **counts)
            value = value.rows()
        if is_traced(value.layers[0]):
            sums, remainders, finite = traced_sum(_alike(value.layers), self.norm, MARGIN)
        else:
            (sums, finite), remainders = self._sum(value.layers), ()
        counts = {"units": value.count, "not_finite": value.count - finite}
        total = Total(layers=sums, layout=value.layout, support=value.support, **counts)
        return total.with_remainders(remainders)

    def sum(self, layers: tuple[Float[Any, "n _"], ...]) -> tuple[Float[Any, "_"], ...]:
        """Return ∑ᵢ min(1, C/(‖xᵢ‖ + 10⁻⁶·C)) xᵢ, layer by layer; the norm is over all layers of the unit.

        Args:
            layers: An (n, m) array a layer, of one framework: n units, m coordinates of the layer.

        Returns:
            An (m,) float64 array a layer: of torch for units of torch, else of NumPy. Inside a trace of JAX they are
            traced arrays of float64, or without it of the units' dtype, which rounds the sum.
        """
        alike = _alike(layers)
        return traced_sum(alike, self.norm, MARGIN)[0] if is_traced(alike[0]) else self._sum(layers)[0]

    def _sum(self, layers: tuple[Float[Any, "n _"], ...]) -> tuple[tuple[Float[Any, "_"], ...], int]:
        """Return the sum, and the number of units whose norm is finite."""
        given, layers = layers, _alike(layers)
        xp = _namespace(*layers)
        norms = unit_norms(tuple(xp.astype(x, xp.float64) for x in layers) if self._wide else layers)
        factors, finite = self._factors(norms)
        if not is_numpy_array(layers[0]):
            return tuple(device_sum(factors, layers)), int(xp.count_nonzero(finite))
        sums = host_sum(factors, finite, layers)
        if all(map(is_torch_array, given)):
            sums = map(array_namespace(*given).asarray, sums)
        return tuple(sums), int(np.count_nonzero(finite))

    @property
    def _wide(self) -> bool:
        """Whether norms of float32 units need more range than float32 has."""
        return not SINGLE_NORMS[0] <= self.norm <= SINGLE_NORMS[1]

    def _factors(self, norms: Float[Any, "n"]) -> tuple[Float[Any, "n"], Bool[Any, "n"]]:
        """Return the factors of units, 0 for one whose norm is not finite; and whether each norm is finite."""
        xp = _namespace(norms)
        finite = xp.isfinite(norms)
        limited = xp.minimum(self.norm / (norms + MARGIN * self.norm), xp.ones_like(norms))
        return xp.where(finite, limited, xp.zeros_like(norms)), finite


def unit_norms(layers: tuple[Float[Any, "n _"], ...]) -> Float[Any, "n"]:
    """Return the (n,) float64 norms ‖xᵢ‖ over all layers of each unit, to a relative error of 4·10⁻⁶.

    They are an array of torch for units on a device, else of NumPy.

    Args:
        layers: An (n, m) array a layer, of one framework, in float32 or float64.
    """
    xp = array_namespace(*_alike(layers))
    return xp.sqrt(squared_norms(layers))


def squared_norms(layers: tuple[Float[Any, "n _"], ...]) -> Float[Any, "n"]:
    """Return the squares of `unit_norms`.

    Args:
        layers: An (n, m) array a layer, of one framework, in float32 or float64.
    """
    with np.errstate(all="ignore"):  # a square that overflows is an infinite norm: meant, whatever a caller has set
        return sum(map(_squared_norms, _alike(layers)))  # pyright: ignore[reportReturnType]


def _alike(layers: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return layers of one dtype, float32 or wider, as arrays of NumPy unless they are traced or lie on a device."""
    if not any(map(is_traced, layers)) and not all(map(is_torch_array, layers)):
        layers = tuple(map(np.asarray, layers))
    xp = _namespace(*layers)
    dtype = xp.result_type(xp.float32, *layers)
    layers = tuple(layer if layer.dtype == dtype else xp.astype(layer, dtype) for layer in layers)
    if is_torch_array(layers[0]):
        on_cpu = layers[0].device.type == "cpu"
        return tuple(layer.detach().numpy() if on_cpu else layer.detach() for layer in layers)
    return layers


def _squared_norms(x: Float[Any, "n m"]) -> Float[Any, "n"]:
    """Return ‖xᵢ‖² of each row in float64.

    One long float32 sum reads low (torch's by 0.7–1.2 % at 10⁷ coordinates), so squares are added in short blocks, and
    the blocks in float64.
    """
    xp, (n, m) = _namespace(x), x.shape
    whole = m - m % SQUARES_PER_SUM
    if whole == 0:
        return _squares(x)
    blocks = _squares(xp.reshape(x[:, :whole], (n, whole // SQUARES_PER_SUM, SQUARES_PER_SUM)))
    squares = xp.sum(blocks, axis=1)
    return squares if whole == m else squares + _squares(x[:, whole:])


def _squares(x: Float[Any, "... m"]) -> Float[Any, "..."]:
    """Return the sum of squares over the last axis, rounded like x, as float64."""
    xp = _namespace(x)
    if xp is np:
        return np.vecdot(x, x).astype(np.float64)
    return xp.astype(xp.linalg.vector_norm(x, axis=-1), xp.float64) ** 2


def _namespace(*arrays: Any) -> Any:
    """Return the functions of the framework of some arrays; those of NumPy at once, since each step asks."""
    return np if all(isinstance(array, np.ndarray) for array in arrays) else array_namespace(*arrays)

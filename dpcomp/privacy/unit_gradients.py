"""Per-unit gradients and their sum, layer by layer, as arrays of NumPy, torch or JAX."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from array_api_compat import array_namespace, is_torch_array
from jaxtyping import Float, Float64

from dpcomp.core.checks import check_type
from dpcomp.core.layout import Layout
from dpcomp.core.support import Everywhere, Support, checked_support


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layers:
    """Arrays, one a layer, whose last axis runs over the coordinates of the layer that are in the support."""

    layers: tuple[Any, ...]
    layout: Layout
    support: Support = field(default_factory=Everywhere)


def _restricted(value: _Layers, support: Support) -> tuple[Any, ...]:
    """Return the layers on a smaller support."""
    if value.support != Everywhere():
        raise ValueError(
            f"the coordinates are already restricted to {type(value.support).__name__}: restrict them once"
        )
    support = checked_support(support, "restrict was given")
    edges = np.cumsum([0, *(layer.shape[-1] for layer in value.layers)])
    indices = support.indices(value.layout.size)
    cuts = np.searchsorted(indices, edges)
    return tuple(layer[..., indices[cuts[i] : cuts[i + 1]] - edges[i]] for i, layer in enumerate(value.layers))


@dataclass(frozen=True, kw_only=True, eq=False)
class Units(_Layers):
    """The gradients of n units.

    Args:
        layers: An (n, m) array a layer, where m is the number of the layer's coordinates in the support.
        layout: The layers of the whole vector.
        support: Which coordinates the arrays hold.
    """

    @property
    def count(self) -> int:
        """The number of units n."""
        return self.layers[0].shape[0]

    def restrict(self, support: Support) -> "Units":
        """Return the units on a smaller support.

        Raises:
            ValueError: They were restricted before.
        """
        return replace(self, layers=_restricted(self, support), support=support)

    @classmethod
    def of(cls, block: Any, layout: Layout) -> "Units":
        """Make units of a block of gradients: a row a unit, in float32 or wider.

        Args:
            block: A tuple of (n, …) arrays, one a layer of the layout, or a single (n, d) array.
            layout: The layers of the whole vector.

        Raises:
            ValueError: The shapes do not fit the layout, or the arrays do not hold floats.
        """
        arrays = tuple(cast(Sequence[Any], block)) if isinstance(block, (tuple, list)) else (block,)
        given = [math.prod(array.shape[1:]) if array.ndim else -1 for array in arrays]
        expected = [layout.size] if len(arrays) == 1 else list(layout.sizes)
        if given != expected or len({array.shape[0] for array in arrays}) != 1:
            shapes = [tuple(array.shape) for array in arrays]
            raise ValueError(
                f"a block of shapes {shapes} does not fit the layout: give an (n, …) array a layer with "
                f"{expected} coordinates a unit, and the same n for all layers"
            )
        return cls(layers=tuple(map(_rows, arrays)), layout=layout)

    def masked(self, mask: Callable[[Float[Any, "n d"]], Float[Any, "n d"]]) -> "Units":
        """Map whole units, over all layers at once, such as by top-k over the whole vector.

        Args:
            mask: Maps an (n, d) array, a row a unit, to another; a row of the result depends on the same row alone.
        """
        xp = array_namespace(*self.layers)
        widths = [layer.shape[1] for layer in self.layers]
        rows = mask(xp.concat(self.layers, axis=1))
        edges = np.cumsum([0, *widths])
        layers = tuple(rows[:, edges[i] : edges[i + 1]] for i in range(len(widths)))
        return replace(self, layers=layers)

    def sum(self) -> "Total":
        """Sum the units without clipping them."""
        xp = array_namespace(*self.layers)
        sums = tuple(xp.sum(layer, axis=0) for layer in self.layers)
        return Total(layers=sums, layout=self.layout, support=self.support, units=self.count)


@dataclass(frozen=True, kw_only=True, eq=False)
class Total(_Layers):
    """The sum over the units of a micro-batch; totals of micro-batches are added with `+`.

    Args:
        layers: An (m,) array a layer, where m is the number of the layer's coordinates in the support.
        layout: The layers of the whole vector.
        support: Which coordinates the arrays hold.
        units: The number of units in the sum, a private value.
        mechanism: The mechanism that clipped the units, which `pipeline.clip` sets; no other may add noise to the sum.
    """

    units: int
    mechanism: Any = None

    def restrict(self, support: Support) -> "Total":
        """Return the sum on a smaller support.

        Raises:
            ValueError: It was restricted before.
        """
        return replace(self, layers=_restricted(self, support), support=support)

    def __add__(self, other: "Total") -> "Total":
        if other is self:
            raise ValueError("this total was added to itself: every unit would count twice")
        check_type(other, Total, f"a total is added to a total, not to a {type(other).__name__}")
        for name, mine, theirs in (
            ("layout", self.layout, other.layout),
            ("support", self.support, other.support),
            ("mechanism", self.mechanism, other.mechanism),
        ):
            if mine != theirs:
                raise ValueError(f"two totals of different {name} were added: clip both by one pipeline, in one round")
        if [layer.shape for layer in self.layers] != [layer.shape for layer in other.layers]:
            raise ValueError("two totals of blocks with different layers were added: cut all blocks of a batch alike")
        sums = tuple(mine + theirs for mine, theirs in zip(self.layers, other.layers, strict=True))
        return replace(self, layers=sums, units=self.units + other.units)

    def vector(self) -> Float64[np.ndarray, "k"]:
        """Return the sum on its k supported coordinates, as a (k,) array of NumPy."""
        return np.concatenate([on_host(layer) for layer in self.layers])


def on_host(array: Any) -> Float64[np.ndarray, "..."]:
    """Return an array of any framework as an array of NumPy."""
    return np.asarray(array.cpu() if is_torch_array(array) else array, dtype=np.float64)


def _rows(array: Any) -> Float[Any, "n m"]:
    """Return the coordinates of each unit in a row, in float32 or wider: half precision cannot hold a norm."""
    xp = array_namespace(array)
    if not xp.isdtype(array.dtype, "real floating") and "float" not in str(array.dtype):
        raise ValueError(f"a block holds {array.dtype}: gradients are floats, of 16 bits or more")
    if xp.finfo(array.dtype).bits < 32:
        array = xp.astype(array, xp.float32)
    return xp.reshape(array, (array.shape[0], math.prod(array.shape[1:])))

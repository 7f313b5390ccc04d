"""What a mechanism works on: per-unit gradients, layer by layer, and their sum (NumPy, torch or JAX)."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array
from jaxtyping import Float, Float64

from dpcomp.core.layout import Layout
from dpcomp.core.support import Everywhere, Support


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layers:
    """Layer arrays whose last axis runs over the supported coordinates of the layer."""

    layers: tuple[Any, ...]
    layout: Layout
    support: Support = field(default_factory=Everywhere)


def _restricted(value: _Layers, support: Support) -> tuple[Any, ...]:
    """The layers on a smaller support."""
    if value.support != Everywhere():
        raise ValueError(f"the coordinates are already restricted to {type(value.support).__name__}: restrict once")
    edges = np.cumsum([0, *(layer.shape[-1] for layer in value.layers)])
    indices = support.indices(value.layout.size)
    cuts = np.searchsorted(indices, edges)
    return tuple(layer[..., indices[cuts[i] : cuts[i + 1]] - edges[i]] for i, layer in enumerate(value.layers))


@dataclass(frozen=True, kw_only=True, eq=False)
class Units(_Layers):
    """The gradients of n units: an (n, m) array a layer, m the layer's supported coordinates."""

    @property
    def count(self) -> int:
        """n."""
        return self.layers[0].shape[0]

    def restrict(self, support: Support) -> "Units":
        """The same on a smaller support."""
        return replace(self, layers=_restricted(self, support), support=support)

    @classmethod
    def of(cls, block: Any, layout: Layout) -> "Units":
        """A block as the mechanism wants it: rows of at least float32.

        A block is a tuple of (n, …) arrays, one a layer of the layout, or a single (n, d) array.

        Raises:
            ValueError: the shapes do not fit the layout, or the arrays hold no floats.
        """
        arrays = tuple(block) if isinstance(block, (tuple, list)) else (block,)
        found = [int(np.prod(array.shape[1:])) if array.ndim else -1 for array in arrays]
        wanted = [layout.size] if len(arrays) == 1 else list(layout.sizes)
        if found != wanted or len({array.shape[0] for array in arrays}) != 1:
            shapes = [tuple(array.shape) for array in arrays]
            raise ValueError(
                f"a block of shapes {shapes} does not fit the layout: it wants (n, …) arrays with "
                f"{wanted} coordinates a unit, one a layer, and one n for all"
            )
        return cls(layers=tuple(map(_rows, arrays)), layout=layout)

    def masked(self, mask: Callable[[Float[Any, "n d"]], Float[Any, "n d"]]) -> "Units":
        """Each whole unit through `mask`, a map of rows: the one place that needs all layers at once."""
        xp = array_namespace(*self.layers)
        widths = [layer.shape[1] for layer in self.layers]
        rows = mask(xp.concat(self.layers, axis=1))
        edges = np.cumsum([0, *widths])
        layers = tuple(rows[:, edges[i] : edges[i + 1]] for i in range(len(widths)))
        return replace(self, layers=layers)

    def sum(self) -> "Total":
        """The plain sum over units, clipped by nothing."""
        xp = array_namespace(*self.layers)
        sums = tuple(xp.sum(layer, axis=0) for layer in self.layers)
        return Total(layers=sums, layout=self.layout, support=self.support, units=self.count)


@dataclass(frozen=True, kw_only=True, eq=False)
class Total(_Layers):
    """The sum over units: one row a layer. Totals of micro-batches add up.

    It says how many units it holds (as private as they are), and which mechanism made it, so that no other adds
    noise to it: `pipeline.clip` sets that, stages leave it None.
    """

    units: int
    mechanism: Any = None

    def restrict(self, support: Support) -> "Total":
        """The same on a smaller support."""
        return replace(self, layers=_restricted(self, support), support=support)

    def __add__(self, other: "Total") -> "Total":
        if other is self:
            raise ValueError("this total was added to itself: every unit would count twice")
        mine = (self.layout, self.support, self.mechanism)
        if not isinstance(other, Total) or (other.layout, other.support, other.mechanism) != mine:
            raise ValueError("totals add up when they have one layout, one support and one mechanism: these differ")
        if [layer.shape for layer in self.layers] != [layer.shape for layer in other.layers]:
            raise ValueError("totals add up when their blocks were cut into the same layers: these differ")
        sums = tuple(mine + theirs for mine, theirs in zip(self.layers, other.layers, strict=True))
        return replace(self, layers=sums, units=self.units + other.units)

    def vector(self) -> Float64[np.ndarray, "k"]:
        """The sum on its support, on the host."""
        return np.concatenate([on_host(layer) for layer in self.layers])


def on_host(array: Any) -> Float64[np.ndarray, "..."]:
    """A framework's array as NumPy's."""
    return np.asarray(array.cpu() if is_torch_array(array) else array, dtype=np.float64)


def _rows(array: Any) -> Float[Any, "n m"]:
    """Each unit's coordinates in a row, in float32 or wider: half precision cannot hold a norm."""
    xp = array_namespace(array)
    if not xp.isdtype(array.dtype, "real floating") and "float" not in str(array.dtype):
        raise ValueError(f"a block of {array.dtype}: gradients are floats")
    if xp.finfo(array.dtype).bits < 32:
        array = xp.astype(array, xp.float32)
    return xp.reshape(array, (array.shape[0], int(np.prod(array.shape[1:]))))

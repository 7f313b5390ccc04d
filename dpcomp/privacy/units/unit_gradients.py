"""Per-unit gradients and their sum, layer by layer, as arrays of NumPy, torch or JAX."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from array_api_compat import array_namespace, is_torch_array
from jaxtyping import Float, Float64

from dpcomp.core.checks import check_type
from dpcomp.core.errors import NotPrivate
from dpcomp.core.exact_sum import ExactSum
from dpcomp.core.layout import Layout
from dpcomp.core.read_only import read_only
from dpcomp.core.support import Everywhere, Support, checked_support
from dpcomp.display.text import without_values
from dpcomp.privacy.units.batches import Batches
from dpcomp.privacy.units.clipped_sum import added

COUNTS = ("units", "not_finite", "within")  # of a total, which are added with it


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class _Layers:
    """Arrays, one a layer, whose last axis runs over the coordinates of the layer that are in the support."""

    layers: tuple[Any, ...]
    layout: Layout
    support: Support = field(default_factory=Everywhere)

    def __repr__(self) -> str:
        return without_values(self, self.layout.size)


def _restricted(value: _Layers, layers: tuple[Any, ...], support: Support) -> tuple[Any, ...]:
    """Return layers of a value on a smaller support."""
    if value.support != Everywhere():
        raise ValueError(
            f"the coordinates are already restricted to {type(value.support).__name__}: restrict them once"
        )
    support = checked_support(support, "restrict was given")
    edges = np.cumsum([0, *(layer.shape[-1] for layer in layers)])
    indices = support.indices(value.layout.size)
    cuts = np.searchsorted(indices, edges)
    return tuple(layer[..., indices[cuts[i] : cuts[i + 1]] - edges[i]] for i, layer in enumerate(layers))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
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
        return replace(self, layers=_restricted(self, self.layers, support), support=support)

    @classmethod
    def of(cls, block: Any, layout: Layout) -> "Units":
        """Make units of a block of gradients: a row a unit, in float32 or wider.

        Args:
            block: A tuple of (n, …) arrays, one a layer of the layout, or a single (n, d) array.
            layout: The layers of the whole vector.

        Raises:
            TypeError: The block holds no arrays.
            ValueError: The shapes do not fit the layout, or the arrays do not hold floats.
        """
        arrays = tuple(cast(Sequence[Any], block)) if isinstance(block, (tuple, list)) else (block,)
        if not all(hasattr(array, "shape") and hasattr(array, "ndim") for array in arrays):
            raise TypeError(
                f"a block holds {', '.join(sorted({type(array).__name__ for array in arrays}))}: give arrays of NumPy, "
                "PyTorch or JAX, an (n, …) array a layer"
            )
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
        """Sum the units without clipping them, in the widest floats that their framework has."""
        xp = array_namespace(*self.layers)
        floats = xp.__array_namespace_info__().dtypes(kind="real floating")
        widest = floats.get("float64", floats["float32"])
        sums = tuple(xp.sum(layer, axis=0, dtype=widest) for layer in self.layers)
        return Total(layers=sums, layout=self.layout, support=self.support, units=self.count)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Total(_Layers):
    """The sum over the units of a micro-batch; totals of micro-batches are added with `+`.

    What `pipeline.clip` returns, and sums of it, may be released once by `pipeline.noise` and no more: a total that is
    made by hand, by `dataclasses.replace` or by a deep copy, or was pickled, is not released at all. A micro-batch may
    be added into several sums, of which one is released.

    Args:
        layers: An (m,) array a layer, where m is the number of the layer's coordinates in the support.
        layout: The layers of the whole vector.
        support: Which coordinates the arrays hold.
        units: The number of units in the sum, a private value.
        not_finite: How many of them counted as zero, since their norm is not finite; a private value, which no client
            tells anybody. A traced array inside a trace of JAX.
        within: How many of them were no longer than the norm of `AdaptiveClip`; a private value. 0 for other clips.

    Attributes:
        remainders: An (m,) array a layer of what rounding took from `layers`; the sum is both together. Empty if that
            is nothing.
    """

    units: int
    not_finite: int = field(default=0, repr=False)
    within: int = field(default=0, repr=False)
    remainders: tuple[Any, ...] = field(default=(), init=False, repr=False)
    _seal: "_Seal | None" = field(default=None, init=False, repr=False)

    def restrict(self, support: Support) -> "Total":
        """Return the sum on a smaller support.

        Raises:
            ValueError: It was restricted before.
        """
        restricted = replace(self, layers=_restricted(self, self.layers, support), support=support)
        return restricted.with_remainders(_restricted(self, self.remainders, support) if self.remainders else ())

    def with_remainders(self, remainders: tuple[Any, ...]) -> "Total":
        """Return the sum with what rounding took from its layers; the result is not sealed."""
        total = replace(self)
        object.__setattr__(total, "remainders", remainders)
        return total

    def sealed(self, batches: Batches) -> "Total":
        """Return a read-only copy on the host, marked as what a pipeline clipped; only `pipeline.clip` calls this."""
        layers = tuple(np.array(on_host(layer)) for layer in self.layers)
        remainders = tuple(np.array(on_host(layer)) for layer in self.remainders)
        return replace(self, layers=layers).with_remainders(remainders)._marked(batches)

    def with_sum(self, vector: Float64[np.ndarray, "k"], counts: Mapping[str, int], batches: Batches) -> "Total":
        """Return a total of this one's shape with another sum, sealed; only `SumOfTotals` calls this."""
        edges = np.cumsum([layer.shape[0] for layer in self.layers])[:-1]
        layers = tuple(np.split(vector, edges))
        return replace(self, layers=layers, **counts)._marked(batches)

    def _marked(self, batches: Batches) -> "Total":
        """Return the sum of arrays that nobody else holds, made read-only, with a seal."""
        for layer in (*self.layers, *self.remainders):
            layer.flags.writeable = False
        total = self.with_remainders(self.remainders)
        seal = _Seal(total.layers, total.remainders, total.support, total.units, total.within, batches)
        object.__setattr__(total, "_seal", seal)
        return total

    def batches(self, clipped_by: Any) -> Batches:
        """Return the micro-batches in the sum, which a release uses up.

        Args:
            clipped_by: What identifies the mechanism that releases.

        Raises:
            NotPrivate: Another mechanism clipped the sum, or it was made or changed by hand.
        """
        seal = self._seal
        if seal is None or not seal.fits(self) or seal.batches.clipped_by != clipped_by:
            raise NotPrivate(
                "this total was not made by this pipeline's clip, or was changed or copied since, so its sensitivity "
                "may be another: clip the block with this pipeline, and add totals with +"
            )
        return seal.batches

    def __add__(self, other: "Total") -> "Total":
        check_type(other, Total, f"a total is added to a total, not to a {type(other).__name__}")
        if other is self:
            raise ValueError("this total was added to itself: every unit would count twice")
        for name, mine, theirs in (
            ("layout", self.layout, other.layout),
            ("support", self.support, other.support),
            ("mechanism", self.clipped_by, other.clipped_by),
        ):
            if mine != theirs:
                raise ValueError(f"two totals of different {name} were added: clip both by one pipeline, in one round")
        if [layer.shape for layer in self.layers] != [layer.shape for layer in other.layers]:
            raise ValueError("two totals of blocks with different layers were added: cut all blocks of a batch alike")
        batches = None
        if self._seal is not None and other._seal is not None:
            mine, theirs = (total.batches(total.clipped_by) for total in (self, other))
            batches = mine.joined(theirs)
        pairs = [_added_pairs(mine, theirs) for mine, theirs in zip(self._pairs(), other._pairs(), strict=True)]
        counts = {name: getattr(self, name) + getattr(other, name) for name in COUNTS}
        total = replace(self, layers=tuple(high for high, _ in pairs), **counts)
        total = total.with_remainders(tuple(low for _, low in pairs))
        return total if batches is None else total._marked(batches)

    def vector(self) -> Float64[np.ndarray, "k"]:
        """Return the sum on its k supported coordinates, as a (k,) array of NumPy."""
        vector = np.concatenate([on_host(layer) for layer in self.layers])
        return vector + np.concatenate([on_host(layer) for layer in self.remainders]) if self.remainders else vector

    @property
    def clipped_by(self) -> Any:
        """What identifies the mechanism that clipped the sum; None for a sum made by hand."""
        return None if self._seal is None else self._seal.batches.clipped_by

    def _pairs(self) -> list[tuple[Any, Any]]:
        return list(zip(self.layers, self.remainders or (0.0,) * len(self.layers), strict=True))


class SumOfTotals:
    """The exact sum of totals that a pipeline clipped; it does not depend on the order in which they are added.

    **Privacy:** adding a total uses it up, as a release does; the sum is released once (PRIVACY_RULES hazard 39).

    Args:
        empty: The total of no unit: `pipeline.empty_total(memory)`.

    Raises:
        NotPrivate: `empty` was not made by a pipeline's clip, or was released.
    """

    def __init__(self, empty: Total):
        self._clipped_by = empty.clipped_by
        self._empty, self._batches = empty, empty.batches(self._clipped_by)
        self._sum = ExactSum(len(empty.vector()))
        self._counts: dict[str, int] = dict.fromkeys(COUNTS, 0)

    def add(self, total: Total) -> None:
        """Add a total.

        Raises:
            NotPrivate: Another mechanism clipped the total, it was made by hand, or it was added or released before.
            ValueError: It has another layout or support.
        """
        if total.layout != self._empty.layout or total.support != self._empty.support:
            raise ValueError("a total of another layout or support was added: clip all by one pipeline, in one round")
        total.batches(self._clipped_by).take()
        self._sum.add(total.vector())
        for name in COUNTS:
            self._counts[name] += getattr(total, name)

    def total(self) -> Total:
        """Return the sum so far, rounded once to float64."""
        return self._empty.with_sum(self._sum.rounded(), self._counts, self._batches)


@dataclass(frozen=True, eq=False)
class _Seal:
    """What a clip made: a total whose contents are other objects was changed or copied since."""

    layers: tuple[Any, ...]
    remainders: tuple[Any, ...]
    support: Support
    units: int
    within: int
    batches: Batches

    def fits(self, total: Total) -> bool:
        """Return whether a total still has the contents that were sealed."""
        return (
            total.layers is self.layers
            and total.remainders is self.remainders
            and total.support is self.support
            and (total.units, total.within) == (self.units, self.within)
            and not any(layer.flags.writeable for layer in (*self.layers, *self.remainders))
        )

    def __deepcopy__(self, memo: Any) -> "_Seal":
        return self


def _added_pairs(mine: tuple[Any, Any], theirs: tuple[Any, Any]) -> tuple[Any, Any]:
    return added(mine[0], mine[1] + theirs[1], theirs[0])


def on_host(array: Any) -> Float64[np.ndarray, "..."]:
    """Return an array of any framework as an array of NumPy."""
    if not isinstance(array, np.ndarray) and is_torch_array(array):
        array = array.detach().cpu()
    return np.asarray(array, dtype=np.float64)


def _rows(array: Any) -> Float[Any, "n m"]:
    """Return the coordinates of each unit in a row, read-only, in float32 or wider: 16 bits cannot hold a norm."""
    xp = array_namespace(array)
    if not xp.isdtype(array.dtype, "real floating") and "float" not in str(array.dtype):
        raise ValueError(f"a block holds {array.dtype}: gradients are floats, of 16 bits or more")
    if xp.finfo(array.dtype).bits < 32:
        array = xp.astype(array, xp.float32)
    return read_only(xp.reshape(array, (array.shape[0], math.prod(array.shape[1:]))))

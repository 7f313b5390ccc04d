"""Layer terms: what one layer adds to the norms and weighted sums of per-example gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dpcomp.privacy.clip import squared_norms
from dpcomp.privacy.units.clipped_sum import device_sum, host_sum

Kept = Sequence[Int64[Any, "_"]] | None  # of each parameter, the positions in the support; None for all


class LayerTerms(Protocol):
    """The gradients of k examples with respect to the trained parameters of one layer.

    Sums and norms of products are taken in float64: so a norm reads low by no more than 10⁻¹² of it and of what its
    products would add up to without signs, and an example moves a sum by its own row alone.
    """

    def rows(self, some: slice = slice(None)) -> list[Float[Tensor, "n *shape"]]:
        """Return the rows, or those of some examples, a tensor a parameter."""
        ...

    def squares(self, kept: Kept) -> Float64[Any, "k"]:
        """Return the squared norms of the rows on the support."""
        ...

    def sums(self, factors: Float64[Any, "k"], finite: Bool[Any, "k"], kept: Kept) -> list[Float64[Any, "_"]]:
        """Return ∑ᵢ fᵢxᵢ on the support, over the examples that are finite, a flat array a parameter."""
        ...


@dataclass(frozen=True, eq=False)
class RowTerms:
    """Terms that are held as rows, which are taken in the precision of the model, each example alone.

    Args:
        parts: A (k, *shape) tensor a parameter, whose memory may be in another order.
    """

    parts: list[Tensor]

    def rows(self, some: slice = slice(None)) -> list[Float[Tensor, "n *shape"]]:
        """Return the rows."""
        return [part[some] for part in self.parts]

    def squares(self, kept: Kept) -> Float64[Any, "k"]:
        """Return the squared norms."""
        return squared_norms(tuple(self._flat(kept)))

    def sums(self, factors: Float64[Any, "k"], finite: Bool[Any, "k"], kept: Kept) -> list[Float64[Any, "_"]]:
        """Return the weighted sums."""
        flat = self._flat(kept)
        if isinstance(flat[0], np.ndarray):
            sums: list[Any] = host_sum(_on_host(factors), _on_host(finite), flat)
        else:
            sums = device_sum(factors, flat)
        return sums if kept is not None else [_in_order(one, part) for one, part in zip(sums, self.parts, strict=True)]

    def _flat(self, kept: Kept) -> list[Float[Any, "k _"]]:
        """Return the rows with their coordinates in a row: on the support, else in the order in which they lie."""
        if kept is None:
            return self._as_they_lie
        return [
            _as_norms(part.flatten(1)[:, torch.as_tensor(k, device=part.device)])
            for part, k in zip(self.parts, kept, strict=True)
        ]

    @cached_property
    def _as_they_lie(self) -> list[Float[Any, "k _"]]:
        return [
            _as_norms((part if part.is_contiguous() else part.permute(0, *_order(part))).flatten(1))
            for part in self.parts
        ]


@dataclass(frozen=True, eq=False)
class OuterProducts:
    """Terms of a linear layer with one input vector an example: row i is gᵢaᵢᵀ, whose norm is ‖aᵢ‖‖gᵢ‖.

    Source: Goodfellow 2015, "Efficient Per-Example Gradient Computations".

    Args:
        inputs: (k, in) inputs of the layer; None if its weight is not trained.
        gradients: (k, out) gradients of its outputs.
        bias: Whether its bias is trained.
    """

    inputs: Float[Tensor, "k i"] | None
    gradients: Float[Tensor, "k o"]
    bias: bool

    def rows(self, some: slice = slice(None)) -> list[Float[Tensor, "n *shape"]]:
        """Return the rows."""
        g = self.gradients[some]
        weight = [] if self.inputs is None else [g[:, :, None] * self.inputs[some, None, :]]
        return [*weight, *([g] if self.bias else [])]

    def squares(self, kept: Kept) -> Float64[Any, "k"]:
        """Return the squared norms."""
        g = self._wide_gradients[:-1]
        if kept is None:
            squares = _dot(g, g)
            if self._wide_inputs is not None:
                a = self._wide_inputs[:-1]
                return _as_norms((_dot(a, a) + 1.0 if self.bias else _dot(a, a)) * squares)
            return _as_norms(squares)
        squares, g2 = torch.zeros_like(g[:, 0]), g.square()
        if self._wide_inputs is not None:
            a2 = self._wide_inputs[:-1].square()
            squares = (g2 @ _mask(kept[0], (g2.shape[1], a2.shape[1]), a2)).mul_(a2).sum(dim=1)
        if self.bias:
            squares = squares + g2[:, torch.as_tensor(kept[-1], device=g2.device)].sum(dim=1)
        return _as_norms(squares)

    def sums(self, factors: Float64[Any, "k"], finite: Bool[Any, "k"], kept: Kept) -> list[Float64[Any, "_"]]:
        """Return the weighted sums."""
        g = _weighted(self._wide_gradients, factors, finite)
        weight = [] if self._wide_inputs is None else [g.t() @ _blanked(self._wide_inputs, finite)]
        return _on_support([*weight, *([g.sum(dim=0)] if self.bias else [])], kept)

    @cached_property
    def _wide_inputs(self) -> Tensor | None:
        return None if self.inputs is None else _widened(self.inputs)

    @cached_property
    def _wide_gradients(self) -> Tensor:
        return _widened(self.gradients)


@dataclass(frozen=True, eq=False)
class FewPositions:
    """Terms of a linear map at few positions an example: row i is GᵢᵀAᵢ, whose norm is that of Gram matrices.

    ‖GᵀA‖² = ∑ₛₜ (AAᵀ)ₛₜ(GGᵀ)ₛₜ, in float64, since terms of both signs cancel.

    Source: Bu, Mao & Xu 2022, "Scalable and Efficient Training of Large Convolutional Neural Networks with
    Differential Privacy", section 3.

    Args:
        inputs: (k, positions, in) inputs of the map.
        gradients: (k, positions, out) gradients of its outputs.
        bias: Whether its bias is trained.
    """

    inputs: Float[Tensor, "k t i"]
    gradients: Float[Tensor, "k t o"]
    bias: bool

    def rows(self, some: slice = slice(None)) -> list[Float[Tensor, "n *shape"]]:
        """Return the rows."""
        g = self.gradients[some]
        return [g.transpose(1, 2) @ self.inputs[some], *([g.sum(dim=1)] if self.bias else [])]

    def squares(self, kept: Kept) -> Float64[Any, "k"]:
        """Return the squared norms, raised by what rounding of the Gram matrices may have taken."""
        if kept is not None:
            return RowTerms(self.rows()).squares(kept)
        a, g = self._wide_inputs[:-1], self._wide_gradients[:-1]
        products = (g @ g.transpose(1, 2)).mul_(a @ a.transpose(1, 2))
        squares = products.sum(dim=(1, 2))
        unsigned = a.square().sum(dim=2).sqrt_().mul_(g.square().sum(dim=2).sqrt_()).sum(dim=1).square_()
        if self.bias:
            squares = squares + g.sum(dim=1).square_().sum(dim=1)
        terms = a.shape[1] ** 2 + a.shape[2] + g.shape[2]  # added up for a norm, each rounded by 2⁻⁵³
        return _as_norms(squares.clamp_(min=0.0).add_(unsigned, alpha=4.0 * terms * 2.0**-53))

    def sums(self, factors: Float64[Any, "k"], finite: Bool[Any, "k"], kept: Kept) -> list[Float64[Any, "_"]]:
        """Return the weighted sums."""
        g = _weighted(self._wide_gradients, factors, finite).flatten(0, 1)
        a = _blanked(self._wide_inputs, finite).flatten(0, 1)
        return _on_support([g.t() @ a, *([g.sum(dim=0)] if self.bias else [])], kept)

    @cached_property
    def _wide_inputs(self) -> Tensor:
        return _widened(self.inputs)

    @cached_property
    def _wide_gradients(self) -> Tensor:
        return _widened(self.gradients)


@dataclass(frozen=True, eq=False)
class TableTerms:
    """Terms of an embedding table: row i has gᵢₜ at the row of the table that position t looked up.

    Args:
        places: (k, positions) rows of the table.
        gradients: (k, positions, width) gradients of what was looked up; zero where the table is padded.
        shape: (rows, width) of the table.
    """

    places: Int64[Tensor, "k t"]
    gradients: Float[Tensor, "k t w"]
    shape: tuple[int, int]

    def rows(self, some: slice = slice(None)) -> list[Float[Tensor, "n *shape"]]:
        """Return the rows."""
        places, g = self.places[some], self.gradients[some]
        found = g.new_zeros((len(places), *self.shape))
        return [found.scatter_add_(1, places[:, :, None].expand_as(g), g)]

    def squares(self, kept: Kept) -> Float64[Any, "k"]:
        """Return the squared norms: products of the gradients at positions that looked up the same row."""
        g = self._on_support(self._wide_gradients[:-1], kept)
        same = self.places[:, :, None] == self.places[:, None, :]
        squares = (g @ g.transpose(1, 2)).mul_(same).sum(dim=(1, 2))
        unsigned = g.square().sum(dim=2).sqrt_().sum(dim=1).square_()
        terms = g.shape[1] ** 2 + g.shape[2]
        return _as_norms(squares.clamp_(min=0.0).add_(unsigned, alpha=4.0 * terms * 2.0**-53))

    def sums(self, factors: Float64[Any, "k"], finite: Bool[Any, "k"], kept: Kept) -> list[Float64[Any, "_"]]:
        """Return the weighted sums."""
        g = self._on_support(_weighted(self._wide_gradients, factors, finite), kept).flatten(0, 1)
        table = g.new_zeros(self.shape).index_add_(0, self.places.flatten(), g)
        return _on_support([table], kept)

    @cached_property
    def _wide_gradients(self) -> Tensor:
        return _widened(self.gradients)

    def _on_support(self, gradients: Tensor, kept: Kept) -> Tensor:
        return gradients if kept is None else gradients * _mask(kept[0], self.shape, gradients)[self.places]


def _widened(values: Tensor) -> Tensor:
    """Return values in float64, with a spare row at the end."""
    wide = values.new_empty((values.shape[0] + 1, *values.shape[1:]), dtype=torch.float64)
    wide[:-1] = values
    return wide


def _blanked(wide: Tensor, finite: Any) -> Tensor:
    """Set the rows of examples that are not finite to zero, and return all but the spare row.

    As many rows are written whatever the examples hold: for one that is finite, the spare row.
    """
    k = wide.shape[0] - 1
    if wide.device.type == "cpu":
        wide.numpy()[np.where(finite, k, np.arange(k))] = 0.0  # torch's index_fill_ takes four times as long
    else:
        wide.index_fill_(0, torch.where(finite, k, torch.arange(k, device=wide.device)), 0.0)
    return wide[:-1]


def _weighted(wide: Tensor, factors: Any, finite: Any) -> Tensor:
    """Return fᵢgᵢ, zero for examples that are not finite."""
    factors = torch.as_tensor(factors, device=wide.device)
    return _blanked(wide, finite) * factors.view(-1, *(1 for _ in wide.shape[1:]))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the products of rows."""
    if a.device.type == "cpu":  # one pass, without an array of products
        return torch.from_numpy(np.vecdot(a.numpy(), b.numpy()))
    return (a * b).sum(dim=1)


def _mask(kept: Any, shape: tuple[int, int], like: Tensor) -> Tensor:
    """Return a table that is 1 at the positions in the support, else 0."""
    mask = torch.zeros(shape[0] * shape[1], dtype=like.dtype, device=like.device)
    mask[torch.as_tensor(kept, device=like.device)] = 1.0
    return mask.view(shape)


def _on_support(sums: list[Tensor], kept: Kept) -> list[Float64[Any, "_"]]:
    flat = [part.reshape(-1) for part in sums]
    if kept is not None:
        flat = [part[torch.as_tensor(k, device=part.device)] for part, k in zip(flat, kept, strict=True)]
    return [part.numpy() if part.device.type == "cpu" else part for part in flat]


def _order(part: Tensor) -> list[int]:
    """Return the axes after the first in the order in which they lie in memory, from the farthest apart."""
    return sorted(range(1, part.ndim), key=lambda axis: (-part.stride(axis), axis))


def _in_order(flat: Any, part: Tensor) -> Float64[Any, "_"]:
    """Return a sum with the coordinates of `_flat` in the order of the parameter."""
    if part.is_contiguous():
        return flat
    order = _order(part)
    axes = np.argsort(order)
    if isinstance(flat, np.ndarray):
        return flat.reshape([part.shape[axis] for axis in order]).transpose(axes).reshape(-1)
    return flat.reshape([part.shape[axis] for axis in order]).permute(*axes.tolist()).reshape(-1)


def _as_norms(values: Tensor) -> Float[Any, "k *_"]:
    """Return values as an array of NumPy on the host, as `squared_norms` does."""
    return values.numpy() if values.device.type == "cpu" else values


def _on_host(values: Any) -> Any:
    return values.cpu().numpy() if isinstance(values, Tensor) else values

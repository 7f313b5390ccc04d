"""Repeated examples: data sets of torch's own kinds in which one example is behind several items."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from dpcomp.core.errors import NotPrivate

Positions = Shaped[np.ndarray, "_"]  # of items or examples


def refuse_repeated_examples(dataset: Any) -> None:
    """Refuse a data set of which two items are the same example; looks into `Subset`, `ConcatDataset`, `StackDataset`.

    **Privacy:** each item is drawn and clipped by itself, so an example that is behind k of them moves the sum by k
    clip norms. What other data sets hold is not seen: that an example is one item stands in each guarantee.

    Args:
        dataset: A map-style data set.

    Raises:
        NotPrivate: Naming two items and the example that is behind both; or a data set of torch's kinds says that it
            has more items than it holds, or has keys that cannot be told apart.
    """
    if not isinstance(dataset, (Subset, ConcatDataset, StackDataset)):
        return
    items = np.arange(len(dataset))
    parts_of: dict[Any, list[tuple[Any, Positions, Positions, Positions]]] = {}
    for origin, of_items, positions in _origins(dataset, items, items):
        holder, places = _places(origin, positions)
        parts_of.setdefault(holder, []).append((origin, of_items, places, positions))
    for parts in parts_of.values():
        of_items, places, names = (np.concatenate(column) for column in list(zip(*parts, strict=True))[1:])
        if places.dtype == object:  # keys, which have no order: equal ones get one number
            numbers: dict[Any, int] = {}
            places = np.array([numbers.setdefault(key, len(numbers)) for key in places], dtype=np.int64)
        order = np.lexsort((of_items, places))
        of_items, places, names = of_items[order], places[order], names[order]
        again = np.flatnonzero((places[1:] == places[:-1]) & (of_items[1:] != of_items[:-1]))
        if len(again):
            one, other = of_items[again[0]], of_items[again[0] + 1]
            raise NotPrivate(
                f"the items {one} and {other} of the data set are both example {names[again[0]]} of a "
                f"{type(parts[0][0]).__name__}: an example that is behind several items moves the sum by several clip "
                "norms. List each example once, in one Subset or ConcatDataset only; augment in __getitem__, or give "
                "make_private views=k for k views of each example"
            )


def _origins(dataset: Any, items: Positions, positions: Positions) -> Iterator[tuple[Any, Positions, Positions]]:
    """Yield the data sets that hold the examples behind some items, with the items and the positions of their examples.

    Args:
        dataset: A data set, or a part of one.
        items: The items that come from it.
        positions: Which of its entries they are.
    """
    if positions.dtype.kind in "iu" and hasattr(dataset, "__len__"):
        positions = np.where(positions < 0, positions + len(dataset), positions)
    if isinstance(dataset, Subset):
        indices = _indices(dataset)
        _refuse_more_than(len(indices), dataset, positions)
        yield from _origins(dataset.dataset, items, indices[positions])
    elif isinstance(dataset, ConcatDataset):
        _refuse_more_than(dataset.cumulative_sizes[-1], dataset, positions)
        start = 0
        for part, stop in zip(dataset.datasets, dataset.cumulative_sizes, strict=True):
            here = (positions >= start) & (positions < stop)
            yield from _origins(part, items[here], positions[here] - start)
            start = stop
    elif isinstance(dataset, StackDataset):
        parts = list(dataset.datasets.values() if isinstance(dataset.datasets, dict) else dataset.datasets)
        if positions.dtype.kind in "iu":
            _refuse_more_than(min(map(len, parts)), dataset, positions)
        for part in parts:
            yield from _origins(part, items, positions)
    else:
        yield dataset, items, positions


def _refuse_more_than(held: int, dataset: Any, positions: Positions) -> None:
    """Refuse positions that a data set of torch's kinds does not hold: those of a longer own class, or keys."""
    kind = type(dataset).__name__
    if len(positions) and positions.dtype.kind not in "iu":
        raise NotPrivate(
            f"a {kind} is asked for the item {positions[0]!r}, which is no whole number, so which example is behind it "
            "is not known: give whole numbers as indices of it, and other keys to a data set of your own alone"
        )
    if len(positions) and positions.max() >= held:
        raise NotPrivate(
            f"a {kind} is asked for its item {positions.max()}, and holds {held}: what its own __len__ adds would be "
            "further items of the same examples, each of which moves the sum by a clip norm. Leave __len__ to torch's "
            "class; augment in __getitem__, or give make_private views=k for k views of each example"
        )


def _indices(subset: Any) -> Positions:
    """Return the indices of a Subset; none are whole numbers, too, and keys such as tuples are objects."""
    try:
        found = np.asarray(subset.indices)
    except ValueError:  # tuples of several lengths
        found = np.empty((), dtype=object)
    if found.ndim == 1 and found.dtype != object:
        return found if found.size else found.astype(np.int64)
    keys = np.empty(len(subset.indices), dtype=object)
    for i in range(len(keys)):
        keys[i] = key = subset.indices[i]
        try:
            hash(key)
        except TypeError as error:
            raise NotPrivate(
                f"index {i} of a {type(subset).__name__} is a {type(key).__name__}, which cannot be held to the "
                "others, and may stand for several examples: give whole numbers, strings or tuples, one an example"
            ) from error
    return keys


def _places(origin: Any, positions: Positions) -> tuple[Any, Positions]:
    """Return what data sets over the same examples share, and where in it the examples at some positions are.

    That is the data set itself; or for a `TensorDataset` the memory behind the largest part of its items, since slices
    and views of a tensor have its examples.
    """
    if type(origin) is not TensorDataset:
        return id(origin), positions
    part = max(origin.tensors, key=lambda tensor: tensor[:1].nbytes)
    in_rows = part.layout is torch.strided and part.numel() and part.stride(0)
    if not in_rows or positions.dtype.kind not in "iu":
        return tuple(map(id, origin.tensors)), positions
    places = part.data_ptr() + positions.astype(np.int64) * (part.stride(0) * part.itemsize)
    return part.untyped_storage().data_ptr(), places

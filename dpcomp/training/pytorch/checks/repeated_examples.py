"""Repeated examples: data sets of torch's own kinds in which one example is behind several items."""

from typing import Any

import numpy as np

from dpcomp.core.errors import NotPrivate
from dpcomp.training.pytorch.checks.origins import OF_TORCH, Origin, Positions, origins
from dpcomp.training.pytorch.checks.row_memory import same_memory

_REMEDY = (
    "an example that is behind several items moves the sum by several clip norms. List each example once, in one "
    "Subset or ConcatDataset only; augment in __getitem__, or give make_private views=k for k views of each example"
)


def refuse_repeated_examples(dataset: Any) -> None:
    """Refuse a data set of which two items are the same example; looks into torch's own kinds of data sets.

    These are `Subset`, `ConcatDataset`, `StackDataset` and `TensorDataset`. Items are the same example if they have the
    same position in the same data set, or if inputs of theirs are rows of `TensorDataset`s in the same memory
    (`same_memory` says when). Targets that several data sets share are no examples.

    **Privacy:** each item is drawn and clipped by itself, so an example that is behind k of them moves the sum by k
    clip norms. What other data sets hold is not seen, nor copies of an example: that an example is one item stands in
    each guarantee.

    Args:
        dataset: A map-style data set.

    Raises:
        NotPrivate: Naming two items and the example that is behind both; or a data set of torch's kinds says that it
            has more items than it holds, or has keys that cannot be told apart.
    """
    if not isinstance(dataset, OF_TORCH):
        return
    items = np.arange(len(dataset))
    behind = list(origins(dataset, items, items))
    by_dataset: dict[int, list[Origin]] = {}
    for origin in behind:
        by_dataset.setdefault(id(origin.dataset), []).append(origin)
    for parts in by_dataset.values():
        _refuse_same_positions(parts)
    if (pair := same_memory(behind)) is not None:
        raise NotPrivate(
            f"the items {pair.items[0]} and {pair.items[1]} of the data set are both example {pair.example} of a "
            f"{type(pair.dataset).__name__}, since inputs of them lie in the same memory: {_REMEDY}. Where what they "
            "share is public, such as a table, give each data set a copy of it (tensor.clone())"
        )


def _refuse_same_positions(parts: list[Origin]) -> None:
    """Refuse parts of one data set in which a position comes twice, for different items."""
    if len(parts) == 1 and _increases(parts[0].positions):
        return
    of_items = np.concatenate([part.items for part in parts])
    places = names = np.concatenate([part.positions for part in parts])
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
            f"{type(parts[0].dataset).__name__}: {_REMEDY}"
        )


def _increases(positions: Positions) -> bool:
    return positions.dtype.kind == "i" and bool((positions[1:] > positions[:-1]).all())

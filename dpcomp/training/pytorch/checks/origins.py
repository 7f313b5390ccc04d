"""Origins: which examples of which data sets are behind the items of a data set of torch's own kinds."""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import is_
from typing import Any

import numpy as np
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from dpcomp.core.errors import NotPrivate

Positions = Shaped[np.ndarray, "_"]  # of items or examples
OF_TORCH = (Subset, ConcatDataset, StackDataset, TensorDataset)  # data sets that are looked into


@dataclass(frozen=True, eq=False)
class Origin:
    """A data set that holds the examples behind some items.

    Args:
        path: The numbers of the parts that lead to it.
        dataset: The data set.
        items: The items, each once.
        positions: Which of its entries the examples are.
        tensors: Those whose rows its entries are; none but of a `TensorDataset`.
    """

    path: tuple[int, ...]
    dataset: Any
    items: Positions
    positions: Positions
    tensors: tuple[Tensor, ...]


def origins(dataset: Any, items: Positions, positions: Positions, path: tuple[int, ...] = ()) -> Iterator[Origin]:
    """Yield the data sets that hold the examples behind some items.

    Args:
        dataset: A data set, or a part of one.
        items: The items that come from it.
        positions: Which of its entries they are.
        path: The numbers of the parts that lead to it.

    Raises:
        NotPrivate: A data set of torch's kinds is asked for more items than it holds, or by keys that cannot be told
            apart.
    """
    if positions.dtype.kind in "iu" and hasattr(dataset, "__len__"):
        positions = positions.astype(np.int64, copy=False)
        positions = np.where(positions < 0, positions + len(dataset), positions)
    if isinstance(dataset, Subset):
        _refuse_more_than(len(dataset.indices), dataset, positions)
        yield from origins(dataset.dataset, items, _indices(dataset, positions), (*path, 0))
    elif isinstance(dataset, ConcatDataset):
        _refuse_more_than(dataset.cumulative_sizes[-1], dataset, positions)
        stops = np.asarray(dataset.cumulative_sizes)
        numbers = np.searchsorted(stops, positions, side="right")
        order = np.argsort(numbers, kind="stable")
        used, firsts = np.unique(numbers[order], return_index=True)
        for number, here in zip(used.tolist(), np.split(order, firsts[1:]), strict=False):
            start = stops[number - 1] if number else 0
            yield from origins(dataset.datasets[number], items[here], positions[here] - start, (*path, number))
    elif isinstance(dataset, StackDataset):
        parts = list(dataset.datasets.values() if isinstance(dataset.datasets, dict) else dataset.datasets)
        if positions.dtype.kind in "iu":
            _refuse_more_than(min(map(len, parts)), dataset, positions)
        for number, part in enumerate(parts):
            yield from origins(part, items, positions, (*path, number))
    else:
        tensors = _tensors_of(dataset)
        if tensors:
            _refuse_more_than(tensors[0].size(0), dataset, positions)
        yield Origin(path, dataset, items, positions, tensors)


class Traced:
    """The examples behind the items of a data set as they are now, to which later draws are held.

    **Privacy:** each item is drawn by its number. Were the indices of a `Subset` written between two draws, a batch
    could hold an example many times that was behind one item when the pass began.

    Args:
        dataset: A map-style data set; of one that is not of torch's kinds, nothing is known.
    """

    def __init__(self, dataset: Any):
        self._dataset, self._before = dataset, dict[tuple[int, ...], Origin]()
        if isinstance(dataset, OF_TORCH):
            items = np.arange(len(dataset))
            self._before |= {origin.path: origin for origin in origins(dataset, items, items)}

    def refuse_other(self, items: list[int]) -> None:
        """Refuse items behind which other examples are now.

        Args:
            items: Their numbers.

        Raises:
            NotPrivate: Naming an item.
        """
        if not items or not isinstance(self._dataset, OF_TORCH):
            return
        drawn = np.asarray(items)
        for now in origins(self._dataset, drawn, drawn):
            before = self._before.get(now.path)
            item = int(now.items[0]) if before is None else _first_other(now, before)
            if item is not None:
                raise NotPrivate(
                    f"item {item} of the data set is another example than when the pass began, so an example could "
                    "count several times: the indices of a Subset, or the parts of a data set, were written since. "
                    "Change them between two passes over the loader, and not in one"
                )


def _first_other(now: Origin, before: Origin) -> int | None:
    """Return the first item behind which another example was before."""
    where = np.minimum(np.searchsorted(before.items, now.items), len(before.items) - 1)
    as_before = before.items[where] == now.items
    same_rows = len(now.tensors) == len(before.tensors) and all(map(is_, now.tensors, before.tensors))
    if now.dataset is not before.dataset or not same_rows:
        return int(now.items[0])
    as_before = as_before & (before.positions[where] == now.positions)
    return None if as_before.all() else int(now.items[~as_before][0])


def _tensors_of(dataset: Any) -> tuple[Tensor, ...]:
    """Return the tensors whose rows are the items of a `TensorDataset`, or of an own class that inherits from it.

    One with a `__len__` of its own that is shorter may choose among the rows, so it is as any other data set.
    """
    tensors = getattr(dataset, "tensors", ()) if isinstance(dataset, TensorDataset) else ()
    if not tensors or not all(isinstance(part, Tensor) for part in tensors):
        return ()
    own_length = type(dataset).__len__ is not TensorDataset.__len__
    return () if own_length and len(dataset) < tensors[0].size(0) else tuple(tensors)


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
            f"a {kind} is asked for its item {positions.max()}, and holds {held}: no example is behind that index, and "
            "what its own __len__ adds would be further items of the same examples, each of which moves the sum by a "
            "clip norm. Give indices below its length, and leave __len__ to torch's class; augment in __getitem__, or "
            "give make_private views=k for k views of each example"
        )


def _indices(subset: Any, positions: Positions) -> Positions:
    """Return the indices of a Subset at some positions; keys such as tuples are objects, and none are whole numbers."""
    held = subset.indices
    at_once = isinstance(held, (np.ndarray, Tensor)) or (
        isinstance(held, (list, tuple, range)) and len(positions) >= len(held)
    )
    listed = held if at_once else [held[position] for position in positions.tolist()]
    here = positions if at_once else np.arange(len(positions))
    try:
        found = np.asarray(listed)
    except ValueError:  # tuples of several lengths
        found = np.empty((), dtype=object)
    if found.ndim == 1 and (found.dtype.kind in "iu" or not found.size):
        return found.astype(np.int64)[here]
    keys = np.empty(len(positions), dtype=object)
    for i, position in enumerate(positions.tolist()):
        keys[i] = key = held[position]
        try:
            hash(key)
        except TypeError as error:
            raise NotPrivate(
                f"index {position} of a {type(subset).__name__} is a {type(key).__name__}, which cannot be held to the "
                "others, and may stand for several examples: give whole numbers, strings or tuples, one an example"
            ) from error
    return keys

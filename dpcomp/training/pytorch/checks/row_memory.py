"""Row memory: where the inputs of the items of `TensorDataset`s lie, by which the same example twice is seen."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from dpcomp.training.pytorch.checks.origins import Origin

Places = Int64[np.ndarray, "_"]
_LOOKED_AT = 1_000  # rows of a tensor that may be a table
_ROWS_A_VALUE = 10  # at least, on average, in a table


@dataclass(frozen=True)
class Pair:
    """Two items that are the same example.

    Args:
        items: Their numbers.
        example: The position of the example in the data set behind the first of them.
        dataset: That data set.
    """

    items: tuple[int, int]
    example: int
    dataset: Any


def same_memory(of_items: Iterable[Origin]) -> Pair | None:
    """Return two items whose inputs lie in the same memory; None without any.

    The last tensor of several of a `TensorDataset` holds the targets, which many items may share; the others are the
    inputs. Two items are the same example if any bytes of the input of one are bytes of an input of the other, as with
    slices, crops and views of one array, whichever library made it. What does not count:

    - an input that is one row for all items (`expand`) beside inputs that are not: it is a constant;
    - an input of at most a tenth as many values as rows beside other inputs, such as the number of a domain;
    - a row of which only a part is in the next row of the same tensor, as in sliding windows: items that begin at
      different places of a series are different examples;
    - two tensors of the same data set, such as a series and the same series one step later.

    Args:
        of_items: The data sets behind the items.
    """
    rows: list[_Rows] = []
    for origin in of_items:
        for part in _inputs(origin):
            if part.expanded and len(origin.items) > 1:
                one, other = sorted(origin.items.tolist())[:2]
                return Pair((one, other), int(origin.positions[0]), origin.dataset)
            rows.append(part)
    for group in _groups(rows):
        if len({id(part.origin.dataset) for part in group}) > 1:
            group = [part for part in group if not part.is_table()]
            if (pair := _overlap(group)) is not None:
                return pair
    return None


class _Rows:
    """The rows of a tensor that are inputs of items.

    Args:
        tensor: The tensor.
        origin: The data set of which it is a part, and the items.
        beside: The inputs of this data set.

    Attributes:
        place: The memory in which addresses count: a device, or the tensor itself where its rows are at no address.
        starts: The address at which each row begins.
        length: The number of bytes from there on that tell a row: all up to its end, or to the start of the next one.
        across: Where the elements of a row have those of other rows in between, as in a transposed array, the number of
            bytes after which a row goes on; else 0.
        span: The first and the last address of all rows.
        expanded: Whether the rows are one and the same.
    """

    def __init__(self, tensor: Tensor, origin: Origin, beside: Sequence[Tensor]):
        self.tensor, self.origin, self._beside = tensor, origin, beside
        self.place, self.expanded = str(tensor.device), _is_expanded(tensor)
        if (base := _address(tensor)) is None:
            self.place, self.starts, self.length, self.across = f"tensor {id(tensor)}", origin.positions, 1, 0
            self.span = int(self.starts.min()), int(self.starts.max()) + 1
            return
        n, step, size = tensor.size(0), tensor.stride(0), tensor.itemsize
        dims = [(s, k) for s, k in zip(tensor.stride()[1:], tensor.shape[1:], strict=True) if k > 1]
        others = [stride for stride, _ in dims if 0 < n * step <= stride]
        extent = 1 + sum((number - 1) * stride for stride, number in dims if stride not in others)
        self.length = size * (min(extent, step) if step and n > 1 else extent)
        self.across = size * math.gcd(*others)
        self.starts = base + origin.positions * (step * size)
        whole = size * (1 + sum((number - 1) * stride for stride, number in dims))
        self.span = int(self.starts.min()), int(self.starts.max()) + whole

    def is_table(self) -> bool:
        """Return whether the tensor has few values, beside inputs that have more."""
        return len(self._beside) > 1 and _has_few_values(self.tensor) and not all(map(_has_few_values, self._beside))


def _inputs(origin: Origin) -> Iterator[_Rows]:
    """Yield the rows by which the examples of a `TensorDataset` are told apart."""
    inputs = origin.tensors[:-1] or origin.tensors
    told = [part for part in inputs if not _is_expanded(part)]
    told = told or [part for part in inputs if not _is_constant(part)]
    if not told:  # inputs that are alike for all: the targets are the examples
        told = [part for part in origin.tensors[len(inputs) :] if not _is_expanded(part)]
    for part in told:
        if len(origin.positions) and (_address(part) is None or part.numel()):
            yield _Rows(part, origin, told)


def _groups(rows: Iterable[_Rows]) -> Iterator[list[_Rows]]:
    """Yield the rows in groups: those of different groups share no memory."""
    group: list[_Rows] = []
    end = 0
    for part in sorted(rows, key=lambda part: (part.place, part.span)):
        if group and (part.place != group[0].place or part.span[0] >= end):
            yield group
            group = []
        end = max(end, part.span[1]) if group else part.span[1]
        group.append(part)
    if group:
        yield group


def _overlap(group: Sequence[_Rows]) -> Pair | None:
    """Return two items of different data sets whose rows overlap; None without any."""
    if not group:
        return None
    numbers = np.repeat(np.arange(len(group)), [len(part.starts) for part in group])
    starts, items, examples = (
        np.concatenate(column)
        for column in zip(*((part.starts, part.origin.items, part.origin.positions) for part in group), strict=True)
    )
    lengths = np.array([part.length for part in group])[numbers]
    if across := math.gcd(*(part.across for part in group)):
        starts = (starts - starts.min()) % across
        beyond = starts + lengths > across  # what goes on at the start
        starts = np.concatenate((starts, starts[beyond] - across))
        lengths, numbers, items, examples = (
            np.concatenate((column, column[beyond])) for column in (lengths, numbers, items, examples)
        )
    names = {id(part.origin.dataset): number for number, part in enumerate(group)}
    datasets = np.array([names[id(part.origin.dataset)] for part in group])[numbers]
    order = np.lexsort((items, starts))
    starts, ends, items, datasets = starts[order], (starts + lengths)[order], items[order], datasets[order]
    # Held to the row before it, and to that of those before it which ends last, a row meets an overlap if there is one.
    last = np.maximum.accumulate(ends)
    further = np.flatnonzero(np.concatenate(([True], ends[1:] > last[:-1])))
    ending_last = further[np.searchsorted(further, np.arange(len(ends)), side="right") - 1]
    here = np.arange(1, len(ends))
    for before in (here - 1, ending_last[:-1]):
        both = (ends[before] > starts[here]) & (items[before] != items[here]) & (datasets[before] != datasets[here])
        if both.any():
            first = int(np.argmax(both))
            one, other = order[before[first]], order[here[first]]
            pair = sorted(((int(items[before[first]]), one), (int(items[here[first]]), other)))
            (item, place), (other_item, _) = pair
            return Pair((item, other_item), int(examples[place]), group[int(numbers[place])].origin.dataset)
    return None


def _address(tensor: Tensor) -> int | None:
    """Return where the elements of a tensor begin; None of one whose rows are at no address, as sparse ones."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return None
    try:
        return tensor.data_ptr() or None
    except RuntimeError:  # torch's, of a kind of tensor without memory of its own
        return None


def _is_expanded(tensor: Tensor) -> bool:
    """Return whether all rows of a tensor are the same memory."""
    return _address(tensor) is not None and tensor.size(0) > 1 and tensor.stride(0) == 0


def _is_constant(tensor: Tensor) -> bool:
    """Return whether all elements of an expanded tensor are one number."""
    row = tensor[0]
    return bool((row == row.flatten()[:1]).all())


def _has_few_values(tensor: Tensor) -> bool:
    """Return whether rows of a tensor come again and again, as far as some of them show."""
    if _address(tensor) is None:
        return False
    n = tensor.size(0)
    looked_at = torch.arange(min(n, _LOOKED_AT)) * n // min(n, _LOOKED_AT)
    some = tensor.detach()[looked_at.to(tensor.device)].cpu().reshape(len(looked_at), -1).resolve_conj().contiguous()
    different = {row.tobytes() for row in some.view(torch.uint8).numpy()}
    return len(different) * _ROWS_A_VALUE <= len(looked_at)

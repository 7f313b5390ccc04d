"""Nested batches: tensors and columns in tuples, lists and mappings, whose first axis runs over the examples."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Path = tuple[Any, ...]  # of a leaf in a structure: keys and positions, from outside to inside

# What a column holds: of subclasses only NumPy's, since values of others may have attributes of the whole batch.
PLAIN = frozenset({str, bytes, bool, int, float, complex, np.str_, np.bytes_, np.float64, np.complex128})


class Call(NamedTuple):
    """The arguments with which a model is called: positional ones, and those by name."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def is_column(value: Any) -> bool:
    """Return whether a value is a column: a list or tuple of strings, bytes or numbers, one an example.

    `default_collate` makes one of the strings of examples.
    """
    return type(value) in (list, tuple) and len(value) > 0 and all(type(part) in PLAIN for part in value)


def mapped_leaves(function: Callable[[Path, Any], Any], value: Any, path: Path = ()) -> Any:
    """Return a structure of the same form with a function applied to each leaf and its path; a column is a leaf."""
    if isinstance(value, Tensor):  # before a mapping, whose test takes ten times as long
        return function(path, value)
    if type(value) is Call:  # whose positional arguments are no column, whatever they are
        args = [mapped_leaves(function, part, (*path, 0, place)) for place, part in enumerate(value.args)]
        return Call(tuple(args), mapped_leaves(function, value.kwargs, (*path, 1)))
    if is_column(value):
        return function(path, value)
    if isinstance(value, (tuple, list)):
        parts = [mapped_leaves(function, part, (*path, place)) for place, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, Mapping):
        # A copy keeps the type and what hangs on it, such as the fields of Hugging Face's outputs.
        result = copy.copy(value)
        for key, part in value.items():
            result[key] = mapped_leaves(function, part, (*path, key))  # pyright: ignore[reportIndexIssue]
        return result
    return function(path, value)


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a structure of the same form with a function applied to each tensor; strings and numbers stay."""
    if isinstance(value, Tensor):
        return function(value)
    return mapped_leaves(lambda _, part: function(part) if isinstance(part, Tensor) else part, value)


def copied(value: Any) -> Any:
    """Return a structure whose containers, columns, tensors and arrays are copies."""

    def copy_of(_: Path, part: Any) -> Any:
        if isinstance(part, Tensor):
            return part.clone()
        return part.copy() if isinstance(part, (np.ndarray, list)) else part

    return mapped_leaves(copy_of, value)


def leaves(value: Any) -> dict[Path, Any]:
    """Return the leaves of a structure by their paths, in order."""
    found: dict[Path, Any] = {}
    mapped_leaves(found.setdefault, value)
    return found


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors of a structure, in order."""
    if isinstance(value, Tensor):
        return [value]
    parts = value if isinstance(value, (tuple, list)) else value.values() if isinstance(value, Mapping) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def count(value: Any) -> int:
    """Return the number of examples in a batch: the length of its first tensor that has an axis; 0 without one."""
    return next((part.shape[0] for part in tensors(value) if part.ndim), 0)


def along_examples(
    of_tensor: Callable[[Tensor], Tensor], of_column: Callable[[list[Any]], list[Any]], value: Any
) -> Any:
    """Return a structure of the same form with functions applied to each tensor and column that runs over the examples.

    Tensors without an axis stay, and so do lists of another length than the tensors beside them, such as the height and
    the width that a model returns.

    Args:
        of_tensor: Called with each tensor that has an axis.
        of_column: Called with each column, as a list.
        value: The structure.
    """

    def along(_: Path, part: Any) -> Any:
        if isinstance(part, Tensor):
            return of_tensor(part) if part.ndim else part
        if is_column(part) and len(part) == (count(value) or len(part)):
            return type(part)(of_column(list(part)))
        return part

    return mapped_leaves(along, value)


def rows(value: Any, start: int, stop: int) -> Any:
    """Return some examples of a batch."""
    return along_examples(lambda part: part[start:stop], lambda column: column[start:stop], value)


def repeated(value: Any, times: int) -> Any:
    """Return a batch of copies of the single example in a batch of one."""
    return along_examples(
        lambda part: part.expand(times, *part.shape[1:]).contiguous(), lambda column: column * times, value
    )


def picked(value: Any, positions: Tensor) -> Any:
    """Return the examples at some positions of a batch."""
    return along_examples(
        lambda part: part[positions], lambda column: [column[place] for place in positions.tolist()], value
    )


def parts(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the parts of a structure by their paths, in order: all but tuples, lists and dictionaries that hold others.

    A container on which more hangs than its parts, such as an object of an own class of dictionaries, is a part itself.
    """
    if isinstance(value, Tensor) or not _holds_parts(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from parts(part, (*path, key))
    else:
        for place, part in enumerate(value):
            yield from parts(part, (*path, place))


def _holds_parts(value: Any) -> bool:
    kind = type(value)
    if kind in (list, tuple):
        return bool(value) and not is_column(value)
    if kind in (dict, OrderedDict):
        return bool(value) and not getattr(value, "__dict__", None)
    named = isinstance(value, tuple) and hasattr(value, "_fields") and not hasattr(value, "__dict__")
    return named and kind is not PackedSequence


def named_part(place: str, path: Path) -> str:
    """Return the name of a part of a structure, such as "the inputs['mask'][0]"."""
    return place + "".join(f"[{key!r}]" for key in path)


def same_column(one: Any, other: Any) -> bool:
    """Return whether two columns hold the same values of the same types."""
    return len(one) == len(other) and all(
        a is b or (type(a) is type(b) and a == b and repr(a) == repr(b)) for a, b in zip(one, other, strict=True)
    )


def columns(value: Any) -> list[Any]:
    """Return the columns of a structure, in order."""
    return [part for part in leaves(value).values() if is_column(part)]


def to(value: Any, *, device: torch.device) -> Any:
    """Return a structure with its tensors on a device."""
    return mapped(lambda part: part.to(device), value)


def emptied(value: Any) -> Any:
    """Return a batch without examples, of the same form: tensors of length 0, and empty columns."""
    if isinstance(value, Tensor):
        return value[:0] if value.ndim else value
    if isinstance(value, Mapping):
        return {key: emptied(part) for key, part in value.items()}
    if not isinstance(value, (tuple, list)):
        return value
    if is_column(value):
        return type(value)()
    parts = [emptied(part) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def inputs_and_targets(batch: Any) -> tuple[Any, Any]:
    """Split a batch into what the model gets and what the loss compares its outputs with.

    The targets are the last part of a tuple or list of several parts, and `"labels"` of a mapping; else None.
    """
    if isinstance(batch, Mapping):
        inputs = {key: part for key, part in batch.items() if key != "labels"}
        return inputs, batch.get("labels")
    if isinstance(batch, (tuple, list)):
        if len(batch) < 2:
            return next(iter(batch), None), None
        return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
    return batch, None


def call_of(inputs: Any, constants: Mapping[str, Any] = MappingProxyType({})) -> Call:
    """Return the arguments with which a model is called.

    Args:
        inputs: A tuple's parts are positional, a mapping's by name, anything else is the only one; a call stays.
        constants: Further arguments by name.
    """
    if type(inputs) is Call:
        return Call(inputs.args, {**inputs.kwargs, **constants})
    if isinstance(inputs, Mapping):
        return Call((), {**inputs, **constants})
    if isinstance(inputs, (tuple, list)) and not is_column(inputs):
        return Call(tuple(inputs), dict(constants))
    return Call((inputs,), dict(constants))

"""Nested batches: tensors in tuples, lists and mappings, whose first axis runs over the examples."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Path = tuple[Any, ...]  # of a leaf in a structure: keys and positions, from outside to inside


def mapped_leaves(function: Callable[[Path, Any], Any], value: Any, path: Path = ()) -> Any:
    """Return a structure of the same form with a function applied to each leaf and its path."""
    if isinstance(value, Tensor):  # before a mapping, whose test takes ten times as long
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
    """Return a structure whose containers, tensors and arrays are copies."""
    return mapped_leaves(
        lambda _, part: (
            part.clone() if isinstance(part, Tensor) else part.copy() if isinstance(part, np.ndarray) else part
        ),
        value,
    )


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


def rows(value: Any, start: int, stop: int) -> Any:
    """Return some examples of a batch; tensors without an axis stay."""
    return mapped(lambda part: part[start:stop] if part.ndim else part, value)


def repeated(value: Any, times: int) -> Any:
    """Return a batch of copies of the single example in a batch of one."""
    return mapped(lambda part: part.expand(times, *part.shape[1:]).contiguous() if part.ndim else part, value)


def picked(value: Any, positions: Tensor) -> Any:
    """Return the examples at some positions of a batch."""
    return mapped(lambda part: part[positions] if part.ndim else part, value)


def to(value: Any, *, device: torch.device) -> Any:
    """Return a structure with its tensors on a device."""
    return mapped(lambda part: part.to(device), value)


def emptied(value: Any) -> Any:
    """Return a batch without examples, of the same form: tensors of length 0, and no strings."""
    if isinstance(value, Tensor):
        return value[:0] if value.ndim else value
    if isinstance(value, Mapping):
        return {key: emptied(part) for key, part in value.items()}
    if not isinstance(value, (tuple, list)):
        return value
    if any(isinstance(part, (str, bytes)) for part in value):
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


def call_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with which a model is called: a tuple's parts, a mapping's by name, anything else as one."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}

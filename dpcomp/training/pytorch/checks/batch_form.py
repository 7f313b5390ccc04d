"""Form of a batch: what a trial, and the rows of a step, take for granted of its tensors."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dpcomp.core.errors import NotPrivate
from dpcomp.training.pytorch.rows.structures import count


def check_batch(inputs: Any, targets: Any) -> None:
    """Refuse a batch that is not of plain tensors whose first axis runs over the examples.

    Args:
        inputs: What the model gets.
        targets: What the loss gets.

    Raises:
        NotPrivate: Naming the part of the batch.
    """
    leaves = [*_leaves(inputs, "the inputs"), *_leaves(targets, "the targets")]
    n = count(inputs)
    for place, part in leaves:
        _check_kind(place, part)
        if isinstance(part, Tensor) and part.ndim and len(part) != n:
            raise NotPrivate(
                f"{place} have shape {tuple(part.shape)} in a batch of {n} examples: the first axis of each tensor "
                "runs over the examples. Move that axis to the front in collate_fn (batch_first), and keep what is "
                "shared by all examples in the model"
            )
    if not n:
        raise NotPrivate(
            "the inputs have no tensor with an axis over the examples: let the data set or collate_fn give one"
        )


def _check_kind(place: str, part: Any) -> None:
    if isinstance(part, PackedSequence):
        raise NotPrivate(
            f"{place} are a PackedSequence, whose rows are time steps and not examples: give padded sequences and "
            "their lengths, and pack them in the model"
        )
    if part.is_nested or part.layout != torch.strided:
        kind = "nested" if part.is_nested else f"of layout {part.layout}"
        raise NotPrivate(f"{place} are a tensor that is {kind}: pad it, or make it dense, in collate_fn")
    if part.is_complex():
        raise NotPrivate(
            f"{place} are {part.dtype}: give real numbers (torch.view_as_real), and make them complex in the model"
        )


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Tensor, PackedSequence)):
        yield place, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{place}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{place}[{number}]")

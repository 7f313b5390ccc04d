"""Form of a batch: what a trial, and the rows of a step, take for granted of its parts."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dpcomp.core.errors import NotPrivate
from dpcomp.training.pytorch.rows.structures import count, is_column, named_part, parts

REMEDY = (
    "give tensors, or lists of strings or numbers, with an entry an example, in plain tuples, lists and dictionaries"
)


def check_batch(inputs: Any, targets: Any) -> None:
    """Refuse a batch of which a part cannot be cut into examples.

    Tensors and columns are cut along their first axis. Whatever else model or loss get of a batch, they would also get
    where an example is looked at alone, so the examples would be tied through it and no comparison would show it.

    Args:
        inputs: What the model gets.
        targets: What the loss gets.

    Raises:
        NotPrivate: Naming the part of the batch.
    """
    # A mapping gives the model its parts by name, and nothing else of itself.
    given = dict(inputs) if isinstance(inputs, Mapping) else inputs
    leaves = [("the inputs", *each) for each in parts(given)] + [("the targets", *each) for each in parts(targets)]
    for place, path, part in leaves:
        if type(part) is not Tensor or part.layout is not torch.strided or part.dtype in _COMPLEX:
            _check_kind(named_part(place, path), part)
    n = count(inputs)
    if not n:
        raise NotPrivate(
            "the inputs have no tensor with an axis over the examples: let the data set or collate_fn give one"
        )
    for place, path, part in leaves:
        if isinstance(part, Tensor) and part.shape[:1] != (n,):
            raise NotPrivate(
                f"{named_part(place, path)} have shape {tuple(part.shape)} in a batch of {n} examples: the first axis "
                "of each tensor runs over the examples. Move that axis to the front in collate_fn (batch_first), and "
                "keep what is shared by all examples in the model or the loss"
            )
        if is_column(part) and len(part) != n:
            raise NotPrivate(
                f"{named_part(place, path)} are a {type(part).__name__} of {len(part)} values in a batch of {n} "
                "examples, of which none belongs to one example: give a value an example, and keep what is shared by "
                "all in the model or the loss"
            )


_COMPLEX = frozenset({torch.complex32, torch.complex64, torch.complex128})


def _check_kind(place: str, part: Any) -> None:
    if part is None or is_column(part) or (type(part) in (tuple, list, dict, OrderedDict) and not part):
        return
    if isinstance(part, PackedSequence):
        raise NotPrivate(
            f"{place} are a PackedSequence, whose rows are time steps and not examples: give padded sequences and "
            "their lengths, and pack them in the model"
        )
    if isinstance(part, np.ndarray):
        raise NotPrivate(f"{place} are an array of NumPy, which is not cut into examples: give torch.as_tensor(array)")
    if not isinstance(part, Tensor):
        raise NotPrivate(
            f"{place} are of type {type(part).__name__}, one value for all examples of a batch. It could be computed "
            f"from the batch, and move the rows of all: {REMEDY}; make what is constant an attribute of the model or "
            "the loss before make_private, or declare an argument of the model, make_private(..., constants={...})"
        )
    if part.is_nested or part.layout != torch.strided:
        kind = "nested" if part.is_nested else f"of layout {part.layout}"
        raise NotPrivate(f"{place} are a tensor that is {kind}: pad it, or make it dense, in collate_fn")
    if part.is_complex():
        raise NotPrivate(
            f"{place} are {part.dtype}: give real numbers (torch.view_as_real), and make them complex in the model"
        )
    if type(part) not in (Tensor, nn.Parameter):
        raise NotPrivate(
            f"{place} are a {type(part).__name__}, whose class may keep what belongs to a whole batch: give "
            "part.as_subclass(torch.Tensor)"
        )

"""Collation: holds each row of a batch to what collate_fn makes of its example alone."""

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torch.utils.data._utils.collate import default_collate_fn_map

from dpcomp.core.errors import NotPrivate
from dpcomp.training.pytorch.draws import Alone
from dpcomp.training.pytorch.private_model import PrivateModel
from dpcomp.training.pytorch.rows.passes import Pass
from dpcomp.training.pytorch.rows.structures import (
    Path,
    call_of,
    copied,
    count,
    inputs_and_targets,
    is_column,
    leaves,
    mapped_leaves,
    rows,
    to,
)

Collate = Callable[[list[Any]], Any]

MOST_LOOKED_AT = 256  # examples, for the shortest and the longest among them
MOST_FORMS = 6  # shapes of examples that are tried beside each other

REMEDY = (
    "padding to the longest of a batch that the model reads, MixUp, or statistics over a batch tie examples, and one "
    "example then moves the rows of all others. Mask what is padded, in the model and its loss, or pad to a fixed "
    "length; use no statistics of a batch; and augment in the data set's __getitem__, since a collate_fn that draws "
    "random numbers cannot be told from one that mixes"
)


def refuse_collation_that_ties(dataset: Dataset, collate: Collate, model: PrivateModel, device: torch.device) -> None:
    """Refuse a collate function under which a row depends on other examples of its batch; tried at the door.

    **Privacy:** an example's row must be a function of this example alone from the data set on: what pads, mixes or
    normalises before the model is a tie as much as a layer that does (PRIVACY_RULES hazards 29 and 31).

    Args:
        dataset: Of whose examples the shortest, the longest and others of different form are batched together.
        collate: The collate function.
        model: What `private_model` returned.
        device: Where the model is.

    Raises:
        NotPrivate: The gradient of an example collated alone is another than in a batch, or it fails alone.
    """
    if is_of_torch(collate):
        return
    with model.unmoved.modes.as_tried():
        for examples in _batches(dataset):
            inputs, targets = to(inputs_and_targets(collate(copied(examples))), device=device)
            if count(inputs) != len(examples):
                raise NotPrivate(
                    f"collate_fn gives {count(inputs)} rows for {len(examples)} examples: give each example one row"
                )
            for i in sorted({*range(min(len(examples), 8)), len(examples) // 2, len(examples) - 1}):
                try:
                    alone = to(inputs_and_targets(collate([copied(examples[i])])), device=device)
                except Exception as error:
                    raise NotPrivate(_fails_alone(error)) from error
                row = (call_of(rows(inputs, i, i + 1), model.constants), rows(targets, i, i + 1))
                _refuse_apart(model, row, (call_of(alone[0], model.constants), alone[1]), quiet=None)


def is_of_torch(collate: Collate) -> bool:
    """Return whether a collate function is torch's default, without rules of the user's own for further types."""
    rules = default_collate_fn_map.values()
    return collate is default_collate and all(rule.__module__ == default_collate.__module__ for rule in rules)


def collated(collate: Collate, examples: list[Any]) -> tuple[Any, Alone | None]:
    """Collate a batch, and one of its examples alone, to which the step holds the example's row.

    **Privacy:** an own collate function may tie examples, by padding, mixing or statistics. torch's stacks tensors, but
    takes the keys of mappings from the first example, types of numbers from all, and lists of strings as they are. So
    its batch is compared where it has another form than the example alone, or something else than tensors.

    Args:
        collate: The collate function.
        examples: One or more.

    Returns:
        The batch; and the place of an example, drawn from the operating system's entropy, with what was made of it
        alone, or None where the form of the batch shows that nothing is tied.
    """
    i, of_torch = secrets.randbelow(len(examples)), is_of_torch(collate)
    # First, and of a copy: a collate function may take an example apart.
    alone = collate([examples[i] if of_torch else copied(examples[i])])
    batch = collate(examples)
    return batch, None if of_torch and _of_like_tensors(batch, alone) else (i, alone)


def _of_like_tensors(batch: Any, alone: Any) -> bool:
    """Return whether a batch and an example alone are of tensors only, in the same places and of the same types."""
    mine, theirs = leaves(batch), leaves(alone)
    return mine.keys() == theirs.keys() and all(
        isinstance(part, Tensor) and isinstance(other := theirs[path], Tensor) and part.dtype == other.dtype
        for path, part in mine.items()
    )


def refuse_tied_row(
    model: PrivateModel, one: Pass, origins: Mapping[Path, Path] | None, inputs: Any, targets: Any, alone: Any, i: int
) -> None:
    """Refuse a batch of which a row is not what its example gives alone; one example of each batch is tried.

    Args:
        model: The model in training.
        one: A pass over the examples.
        origins: Which inputs its arguments are; None if they are made from these, and the inputs themselves are tried.
        inputs: The inputs of the examples of the pass, as they were delivered.
        targets: Their targets.
        alone: What the collate function made of the example alone.
        i: The number of the example in the pass.

    Raises:
        NotPrivate: The gradient of the example collated alone is another.
    """
    mine, (other, truth) = rows((inputs, targets), i, i + 1), inputs_and_targets(alone)
    if origins is None:
        row, single = (to(call_of(part, model.constants), device=one.device) for part in (mine[0], other))
    else:
        delivered, separate = leaves(inputs), leaves(other)

        def exchanged(path: Path, value: Any) -> Any:
            if path not in origins:
                return value
            if origins[path] not in separate:
                raise NotPrivate(f"collate_fn gives no {list(origins[path])} for an example alone: {REMEDY}")
            part = separate[origins[path]]
            return _in_form_of(value, delivered[origins[path]], part) if isinstance(value, Tensor) else part

        row, single = rows(one.call, i, i + 1), mapped_leaves(exchanged, one.call)
    truth, mine_truth = to((truth, mine[1]), device=one.device)
    _refuse_apart(model, (row, mine_truth), (single, truth), quiet=one.random)


def _refuse_apart(model: PrivateModel, row: Any, alone: Any, *, quiet: bool | None) -> None:
    if _same(row, alone):
        return
    try:
        apart = model.check.apart(row, alone, quiet=quiet)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise NotPrivate(_fails_alone(error)) from error
    if apart > 0:
        raise NotPrivate(
            f"the gradient of an example that collate_fn collates alone differs by {apart:.3g} of its norm from its "
            f"row in a batch: {REMEDY}"
        )


def _fails_alone(error: Exception) -> str:
    return (
        f"collate_fn makes of a single example what fails in a training step ({type(error).__name__}: {error}), so its "
        f"row cannot be held to that of the example alone; {REMEDY}"
    )


def _same(row: Any, alone: Any) -> bool:
    """Return whether two batches of one hold the same, so that their gradients are the same."""
    mine, theirs = leaves(row), leaves(alone)
    return mine.keys() == theirs.keys() and all(_equal(part, theirs[path]) for path, part in mine.items())


def _equal(part: Any, other: Any) -> bool:
    if isinstance(part, Tensor):
        return isinstance(other, Tensor) and part.dtype == other.dtype and torch.equal(part, other)
    if isinstance(part, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(part, other)
    return type(part) is type(other) and bool(part == other)


def _in_form_of(given: Tensor, delivered: Tensor, alone: Tensor) -> Tensor:
    """Return an example alone in the dtype, device and shape into which a script brought the batch."""
    alone = alone.to(device=given.device, dtype=given.dtype)
    lengths = dict(zip(delivered.shape[1:], alone.shape[1:], strict=False))
    for shape in (given.shape[1:], [lengths.get(length, length) for length in given.shape[1:]]):
        if given.shape[1:] != delivered.shape[1:] and alone.numel() == len(alone) * torch.Size(shape).numel():
            return alone.reshape(len(alone), *shape)
    return alone


def _batches(dataset: Dataset) -> list[list[Any]]:
    """Return examples to collate: the shortest beside the longest, one of each form, and many."""
    n = len(dataset)  # pyright: ignore[reportArgumentType]
    most = min(n, MOST_LOOKED_AT)
    examples = [dataset[round(i * (n - 1) / max(most - 1, 1))] for i in range(most)]
    ordered = sorted(examples, key=_extent)
    shortest, longest = ordered[0], ordered[-1]
    forms = list({_form(example): example for example in examples}.values())
    step = max(1, len(forms) // MOST_FORMS)
    some = [shortest, longest, *forms[::step][:MOST_FORMS], *examples[:2]]
    many = [*examples[:: max(1, most // 32)][:32], longest]
    return [[shortest, longest], [longest, shortest], some, examples[:2], many]


def _extent(example: Any) -> int:
    """Return how long an example is: the numbers, characters and other leaves that it holds."""
    return sum(_size(part) for part in leaves(example).values())


def _form(example: Any) -> tuple[Any, ...]:
    return tuple((path, *getattr(part, "shape", (_size(part),))) for path, part in leaves(example).items())


def _size(part: Any) -> int:
    if isinstance(part, Tensor):
        return part.numel()
    if isinstance(part, np.ndarray):
        return part.size
    if is_column(part):
        return sum(map(_size, part))
    return len(part) if isinstance(part, (str, bytes)) else 1

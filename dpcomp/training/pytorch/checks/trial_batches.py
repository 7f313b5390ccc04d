"""Batches for the trial of a model: real and made-up examples that differ in size, values, order, length and layout."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpcomp.training.pytorch.rows.structures import along_examples, count, mapped, picked, rows, tensors

MOST_EXAMPLES = 33  # above the sizes at which a loss or a layer is known to change its ways (8, 16, 32)
MOST_VALUES = 2e8  # of per-example gradients that a trial holds
GROWING = (-30.0, 1e3, -1e5, 1e10)  # factors: what keeps a largest value changes only for larger ones


@dataclass(frozen=True, eq=False)
class TrialBatch:
    """A batch to try.

    Args:
        what: What is special about it, in words.
        inputs: What the model gets.
        targets: What the loss gets.
        made_up: Whether a model may refuse it with an error, since no such batch need ever come.
        only_writes: Whether it is tried only for what model and loss write: its gradients may not be finite.
    """

    what: str
    inputs: Any
    targets: Any
    made_up: bool = False
    only_writes: bool = False


def trial_batches(inputs: Any, targets: Any, parameters: int) -> Iterator[TrialBatch]:
    """Yield batches to try, drawn with torch's global generator.

    Args:
        inputs: Real examples, as the model gets them.
        targets: Their targets.
        parameters: The number of trainable parameters, which limits how many examples are tried at a time.
    """
    most = max(2, min(MOST_EXAMPLES, int(MOST_VALUES / max(parameters, 1))))
    n = count(inputs)

    def real(positions: list[int]) -> tuple[Any, Any]:
        where = torch.tensor([position % n for position in positions])
        return picked(inputs, where), picked(targets, where)

    yield TrialBatch("real examples", *real(list(range(most))))
    yield TrialBatch("four real examples", *real([0, 1, 2, 3]))
    yield TrialBatch("one real example", *real([0]))
    yield TrialBatch("real examples in another order", *real(list(range(most))[::-1]))
    yield TrialBatch("copies of one example", *real([0] * most))
    some, truth = real(list(range(min(most, 8))))
    yield TrialBatch("a strided batch", mapped(_strided, some), truth)
    if any(part.ndim == 4 for part in tensors(some)):
        yield TrialBatch("a channels-last batch", mapped(_channels_last, some), truth)
    labels = _diverse_targets(targets, most)
    whole = real(list(range(most)))[0]
    yield TrialBatch("diverse targets", whole, labels, made_up=True)
    yield TrialBatch("made-up examples", mapped(_made_up, whole), labels, made_up=True)
    yield TrialBatch("examples of diverse lengths", mapped(_zeros_after, whole), labels, made_up=True)
    for factor in GROWING:
        large = mapped(lambda part, by=factor: grown(part, by), some)
        yield TrialBatch(f"examples times {factor:g}", large, truth, made_up=True, only_writes=True)
    lengths = {part.shape[1] for part in tensors(whole) if part.ndim >= 2}
    if len(lengths) == 1:
        (length,) = lengths
        for other in {length + 3, max(1, length - 2)} - {length}:
            four, long = rows(whole, 0, 4), rows(labels, 0, 4)
            yield TrialBatch(
                f"examples of length {other}",
                mapped(lambda part, to=other: _lengthened(part, to), four),
                mapped(lambda part, to=other, was=length: _lengthened_targets(part, was, to), long),
                made_up=True,
            )


def grown(part: Tensor, factor: float) -> Tensor:
    """Return larger values of floating-point inputs; all else stays."""
    return part * factor if part.is_floating_point() else part


def _made_up(part: Tensor) -> Tensor:
    if part.is_floating_point():
        return torch.randn(part.shape).to(part)
    if part.dtype == torch.bool or not part.numel():
        return part
    return torch.randint(int(part.min()), int(part.max()) + 1, part.shape).to(part)


def _diverse_targets(targets: Any, most: int) -> Any:
    """Return other targets: every class up to the largest that is there, real values in another order."""

    def diverse(part: Tensor) -> Tensor:
        if not part.numel():
            return part
        if part.is_floating_point() or part.dtype == torch.bool or int(part.min()) < 0:
            return part[torch.randint(len(part), (most,))]
        # The classes take turns, so that each is there.
        order = torch.arange(most * part[:1].numel()).reshape(most, *part.shape[1:])
        return (order % (int(part.max()) + 1)).to(part)

    def diverse_column(column: list[Any]) -> list[Any]:
        return [column[place] for place in torch.randint(len(column), (most,)).tolist()]

    return along_examples(diverse, diverse_column, targets)


def _zeros_after(part: Tensor) -> Tensor:
    """Return examples that end at different places, in no order: the rest is zero, as padding is."""
    if part.ndim < 2 or part.shape[1] < 2:
        return part
    ends = torch.randint(1, part.shape[1] + 1, (len(part), 1)).to(part.device)
    keep = torch.arange(part.shape[1], device=part.device)[None] < ends
    return part * keep.reshape(*keep.shape, *(1,) * (part.ndim - 2)).to(part.dtype)


def _lengthened(part: Tensor, length: int) -> Tensor:
    if part.ndim < 2:
        return part
    return part[:, torch.arange(length) % part.shape[1]]


def _lengthened_targets(part: Tensor, was: int, length: int) -> Tensor:
    return _lengthened(part, length) if part.ndim >= 2 and part.shape[1] == was else part


def _strided(part: Tensor) -> Tensor:
    """Return the same values in memory whose fastest axis runs over the examples."""
    return part.movedim(0, -1).contiguous().movedim(-1, 0) if part.ndim >= 2 else part


def _channels_last(part: Tensor) -> Tensor:
    return part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part

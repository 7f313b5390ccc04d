"""Evaluation of a model on the public examples of a task: its loss, and its metrics or accuracy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from dpcomp.core.errors import named_error
from dpcomp.training.metrics import LOSS, OwnMetrics, class_axes
from dpcomp.training.pytorch.rows.parameters import write
from dpcomp.training.pytorch.rows.structures import call_of, leaves, mapped, mapped_leaves
from dpcomp.training.pytorch.tasks.examples import Examples
from dpcomp.training.pytorch.tasks.supervised import SupervisedTask

EVALUATED_AT_ONCE = 128  # a layer's output for more examples leaves the processor's cache


class Evaluation:
    """Measures the columns of a task on its public sets of examples.

    Args:
        task: Gives the loss, and perhaps metrics.
        module: Gets the parameters, and is left in evaluation mode, on the device of the examples.
        sets: Examples by the name of their set, such as "test". A set without examples has no columns.

    Raises:
        TypeError: The task has parts of two kinds of metrics.
    """

    def __init__(self, task: SupervisedTask, module: nn.Module, sets: Mapping[str, Examples]):
        self._task, self._module, self._sets = task, module, sets
        self._own = OwnMetrics(task)

    def columns(self, parameters: Float32[np.ndarray, "d"]) -> dict[str, float]:
        """Return `<set>_<metric>` for each set and metric, and `<set>_loss`, the mean of the losses of batches.

        Args:
            parameters: The (d,) vector of all trainable parameters.

        Raises:
            ValueError: The model, the loss or the metrics fail on a set.
        """
        write(self._module, parameters)
        self._module.eval()
        found: dict[str, float] = {}
        for name, examples in self._sets.items():
            if len(examples):
                with torch.no_grad():
                    found |= {f"{name}_{column}": value for column, value in self._of_set(name, examples).items()}
        return found

    def _of_set(self, place: str, examples: Examples) -> dict[str, float]:
        total, right, counted = 0.0, 0, 0
        sums: Mapping[str, Any] = {}
        kept: list[tuple[Any, Any]] = []
        accurate = not (self._own.whole or self._own.by_sums)
        for start in range(0, len(examples), EVALUATED_AT_ONCE):
            stop = min(start + EVALUATED_AT_ONCE, len(examples))
            outputs, targets, loss = self._batch(place, examples, start, stop)
            total += loss * (stop - start)
            if accurate:
                axis = class_axis(self._task, outputs, targets)
                accurate = axis is not None
                if axis is not None:
                    right += int((outputs.argmax(dim=axis) == targets).sum())
                    counted += int((targets >= 0).sum())  # torch's losses ignore targets of -100
            elif self._own.by_sums:
                sums = self._own.added(place, sums, outputs, targets, said(outputs, targets))
            elif self._own.whole:
                kept.append(mapped(Tensor.cpu, (outputs, targets)))
        if self._own.whole:
            outputs, targets = _joined(kept, place, self._task.name)
            metrics = self._own.of_whole(place, outputs, targets, said(outputs, targets))
        elif self._own.by_sums:
            metrics = self._own.of_sums(place, sums)
        else:
            metrics = {"accuracy": right / counted} if accurate and counted else {}
        return {**metrics, LOSS: total / len(examples)}

    def _batch(self, place: str, examples: Examples, start: int, stop: int) -> tuple[Any, Any, float]:
        """Return outputs, targets and loss of some examples."""
        inputs, targets = examples.span(start, stop)
        args, kwargs = call_of(inputs)
        try:
            outputs = self._module(*args, **kwargs)
            return outputs, targets, float(self._task.loss(outputs, targets))
        except Exception as error:
            raise ValueError(
                f"model and loss of the task {self._task.name!r} fail on {said(inputs, targets, 'inputs')} of "
                f"{place}(): {named_error(error)}. Let {place}() return examples of the form of train()"
            ) from error


def class_axis(task: SupervisedTask, outputs: Any, targets: Any) -> int | None:
    """Return the axis of a batch of outputs that runs over classes; None where the targets are no class numbers.

    Where two axes have the length of a class axis, it is the one along which the right classes have the smaller loss.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or targets.dtype not in (
        torch.int64,
        torch.int32,
    ):
        return None
    axes = class_axes(tuple(outputs.shape), tuple(targets.shape))
    if len(axes) < 2 or not len(targets):
        return axes[0] if axes else None

    def loss_along(axis: int) -> float:
        classes = targets.clamp(0, outputs.shape[axis] - 1).long().unsqueeze(axis)
        return float(task.loss(torch.zeros_like(outputs).scatter_(axis, classes, 1.0), targets))

    return min(axes, key=loss_along)


def said(first: Any, targets: Any, name: str = "outputs") -> str:
    """Return the form of outputs or inputs, and of targets, for errors."""
    return f"{name} {_form(first)} and targets {_form(targets)}"


def _form(value: Any) -> str:
    forms = {
        "".join(f"[{key!r}]" for key in path): f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}"
        for path, part in leaves(value).items()
        if isinstance(part, Tensor)
    }
    return ", ".join(f"{path} {form}".strip() for path, form in forms.items()) or type(value).__name__


def _joined(batches: list[Any], place: str, name: str) -> Any:
    """Return outputs and targets of all batches in one structure of the same form."""
    parts = [leaves(batch) for batch in batches]

    def whole(path: tuple[Any, ...], first: Any) -> Any:
        if not isinstance(first, Tensor) or not first.ndim:
            return first
        return torch.cat([part[path] for part in parts])

    try:
        return mapped_leaves(whole, batches[0])
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"the outputs of the batches of {place}() of the task {name!r} differ in shape, as padded ones do, so "
            "metrics() cannot get them joined: give the task metric_sums(outputs, targets), which is called batch by "
            "batch, and metrics_of_sums(sums)"
        ) from error

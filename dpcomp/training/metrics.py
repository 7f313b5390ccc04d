"""Metrics: what a task measures of a model besides the loss, such as an area under a curve or a perplexity."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from dpcomp.core.errors import DpcompWarning, named_error

LOSS = "loss"  # the name of the column of the task's own loss


@runtime_checkable
class MeasuresWhole(Protocol):
    """What a task may have besides: metrics of all examples of a set at once, such as an AUC.

    Without this member and without those of `MeasuresBySums`, the accuracy is measured, if the targets are class
    numbers and the outputs have one axis more, over the classes.
    """

    def metrics(self, outputs: Any, targets: Any) -> Mapping[str, float]:
        """Return metrics by name, from the outputs and targets of all examples of a set.

        Args:
            outputs: What the model returned, on the host, joined along the axis of the examples: (n, …) tensors of
                PyTorch, or arrays of NumPy where JAX trains.
            targets: The targets of the same examples.

        Returns:
            A number for each metric. `test_<name>` and `validation_<name>` are columns of the run. The name "loss" is
            taken by the task's loss.
        """
        ...


@runtime_checkable
class MeasuresBySums(Protocol):
    """What a task may have in place of `MeasuresWhole`: sums over batches, where all outputs would not fit in memory.

    Numbers and arrays can be summed: the tokens that were right and all tokens, or a matrix of confusions.
    """

    def metric_sums(self, outputs: Any, targets: Any) -> Mapping[str, Any]:
        """Return sums over the examples of one batch, by name: numbers or arrays, which are added up over batches.

        Args:
            outputs: What the model returned for the batch.
            targets: The targets of the batch.
        """
        ...

    def metrics_of_sums(self, sums: Mapping[str, Any]) -> Mapping[str, float]:
        """Return metrics by name, from the sums over all batches of a set."""
        ...


class OwnMetrics:
    """Calls the metrics of a task, and holds what they return to its form.

    A model that diverged has outputs with which many metrics fail. Once the metrics of a set were measured, they are
    NaN where they fail or are missing later, with a warning, so that a run that is paid for is not lost.

    Args:
        task: A task that is a `MeasuresWhole` or a `MeasuresBySums`, or neither.

    Raises:
        TypeError: The task is both, or has one of the two members of `MeasuresBySums` alone.
    """

    def __init__(self, task: Any):
        self.whole, self.by_sums = isinstance(task, MeasuresWhole), isinstance(task, MeasuresBySums)
        self._task = task
        self._measured: dict[str, list[str]] = {}
        if self.whole and self.by_sums:
            raise TypeError(
                f"the task {task.name!r} has metrics() and metric_sums(): keep metrics(), which gets all outputs of a "
                "set at once, or metric_sums() and metrics_of_sums(), which get them batch by batch"
            )
        if not self.by_sums and (hasattr(task, "metric_sums") or hasattr(task, "metrics_of_sums")):
            raise TypeError(
                f"the task {task.name!r} has only one of metric_sums(outputs, targets) and metrics_of_sums(sums): the "
                "first adds up over batches, and the second makes metrics of the sums; write both"
            )

    def of_whole(self, place: str, outputs: Any, targets: Any, said: str) -> dict[str, float]:
        """Return the metrics of a set.

        Args:
            place: The name of the set, such as "test".
            outputs: Of all its examples, joined.
            targets: Of all its examples.
            said: The form of both, for errors.

        Raises:
            ValueError: The metrics fail, or have another form, and were never measured on this set.
        """
        return self._held_to_form(place, "metrics", said, lambda: self._task.metrics(outputs, targets))

    def of_sums(self, place: str, sums: Mapping[str, Any]) -> dict[str, float]:
        """Return the metrics of a set from its sums; arguments and errors are those of `of_whole`."""
        said = f"the sums {', '.join(sums)}"
        return self._held_to_form(place, "metrics_of_sums", said, lambda: self._task.metrics_of_sums(sums))

    def added(self, place: str, sums: Mapping[str, Any], outputs: Any, targets: Any, said: str) -> Mapping[str, Any]:
        """Return sums with those of one more batch; arguments and errors are those of `of_whole`."""
        member = f"metric_sums() of the task {self._task.name!r}"
        try:
            found = self._task.metric_sums(outputs, targets)
        except Exception as error:
            raise ValueError(f"{member} fails on {said} of {place}(): {named_error(error)}") from error
        if not isinstance(found, Mapping) or (sums and set(found) != set(sums)):
            raise ValueError(f"{member} returned {found!r}: give a mapping with the same names for every batch")
        return {name: sums[name] + value if sums else value for name, value in found.items()}

    def _held_to_form(self, place: str, member: str, said: str, call: Callable[[], Any]) -> dict[str, float]:
        try:
            found = _numbers(call(), f"{member}() of the task {self._task.name!r}")
        except Exception as error:
            if place in self._measured:
                warnings.warn(
                    f"{member}() of the task {self._task.name!r} failed on {said} of {place}(), which it had measured "
                    f"before, and counts as NaN ({named_error(error)})",
                    DpcompWarning,
                    stacklevel=2,
                )
                return dict.fromkeys(self._measured[place], float("nan"))
            if isinstance(error, _WrongForm):
                raise
            raise ValueError(
                f"{member}() of the task {self._task.name!r} fails on {said} of {place}(): "
                f"{named_error(error)}. It gets what the model returns, and returns a dict with a number for each name"
            ) from error
        names = self._measured.setdefault(place, list(found))
        if set(found) != set(names):
            warnings.warn(
                f"{member}() of the task {self._task.name!r} returned {', '.join(found) or 'nothing'} for {place}(), "
                f"and {', '.join(names) or 'nothing'} before: a name that is missing counts as NaN, and a new one is "
                "left out. Return the same names for every model",
                DpcompWarning,
                stacklevel=2,
            )
        return {name: found.get(name, float("nan")) for name in names}


class _WrongForm(ValueError):
    """Metrics are not a mapping from names to numbers."""


def _numbers(found: Any, member: str) -> dict[str, float]:
    if not isinstance(found, Mapping):
        raise _WrongForm(f"{member} returned {found!r}: return a dict with a number for each name, {{'auc': …}}")
    numbers: dict[str, float] = {}
    for name, value in found.items():
        if not isinstance(name, str) or not name or name == LOSS:
            raise _WrongForm(
                f"{member} names a metric {name!r}: give a text; 'loss' is taken by the loss of the task itself"
            )
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError) as error:
            raise _WrongForm(f"{member} gives {name} = {repr(value)[:60]}: give one number for each name") from error
    return numbers


def class_axes(outputs: tuple[int, ...], targets: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of outputs that can run over classes, if targets of that shape are class numbers.

    Args:
        outputs: The shape of the outputs: (n, classes), (n, classes, …) as `torch.nn.functional.cross_entropy` has it,
            or (n, …, classes).
        targets: The shape of the targets, (n, …).

    Returns:
        None, one, or two where both fit. An axis of length 1 is none: a single output is no choice among classes.

    Examples:
        >>> from dpcomp.training.metrics import class_axes
        >>> class_axes((32, 10), (32,)), class_axes((32, 5, 8), (32, 8)), class_axes((32, 8, 5), (32, 8))
        ((1,), (1,), (2,))
        >>> class_axes((32, 8, 8), (32, 8)), class_axes((32, 1), (32,)), class_axes((32,), (32,))
        ((1, 2), (), ())
    """
    if len(outputs) != len(targets) + 1 or not targets:
        return ()
    axes = dict.fromkeys((1, len(outputs) - 1))
    return tuple(axis for axis in axes if outputs[axis] > 1 and (*outputs[:axis], *outputs[axis + 1 :]) == targets)

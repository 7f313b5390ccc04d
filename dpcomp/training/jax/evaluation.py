"""Evaluation of a model on the public examples of a task: its loss, and its metrics or accuracy."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Float32

from dpcomp.core.errors import named_error
from dpcomp.training.jax.parameters import Parameters
from dpcomp.training.jax.programs import in_float32
from dpcomp.training.jax.task import JaxTask
from dpcomp.training.metrics import LOSS, OwnMetrics, class_axes

EVALUATED_AT_ONCE = 250  # a layer's output for more examples leaves the processor's cache


class Evaluation:
    """Measures the columns of a task on its public sets of examples, by a compiled program.

    Args:
        task: Gives the model and the loss, and perhaps metrics.
        parameters: The structure of its parameters.
        sets: The inputs and targets on the device, by the name of their set. A set without examples has no columns.

    Raises:
        TypeError: The task has parts of two kinds of metrics.
    """

    def __init__(self, task: JaxTask, parameters: Parameters, sets: Mapping[str, tuple[Any, Any]]):
        self._task, self._parameters, self._sets = task, parameters, sets
        self._own = OwnMetrics(task)
        self._program = jax.jit(in_float32(self._outputs))

    def columns(self, model: Float32[np.ndarray, "d"]) -> dict[str, float]:
        """Return `<set>_<metric>` for each set and metric, and `<set>_loss`, the mean of the examples' losses.

        Args:
            model: The (d,) vector of all parameters.

        Raises:
            ValueError: The model, the loss or the metrics fail on a set.
        """
        found: dict[str, float] = {}
        for name, examples in self._sets.items():
            if len(examples[1]):
                found |= {f"{name}_{column}": value for column, value in self._of_set(name, model, examples).items()}
        return found

    def _of_set(self, place: str, model: Float32[np.ndarray, "d"], examples: tuple[Any, Any]) -> dict[str, float]:
        inputs, targets = examples
        total, right, counted = 0.0, 0, 0
        sums: Mapping[str, Any] = {}
        kept: list[np.ndarray] = []
        accurate = not (self._own.whole or self._own.by_sums)
        for start in range(0, len(targets), EVALUATED_AT_ONCE):
            part = slice(start, start + EVALUATED_AT_ONCE)
            outputs, losses, hits = self._batch(place, model, inputs[part], targets[part])
            total += float(losses)
            accurate = accurate and hits is not None
            if accurate and hits is not None:
                right, counted = right + int(hits[0]), counted + int(hits[1])
            elif self._own.by_sums:
                said = f"outputs {outputs.shape} and targets {targets[part].shape}"
                sums = self._own.added(place, sums, np.asarray(outputs), np.asarray(targets[part]), said)
            elif self._own.whole:
                kept.append(np.asarray(outputs))
        if self._own.whole:
            outputs, truth = np.concatenate(kept), np.asarray(targets)
            metrics = self._own.of_whole(place, outputs, truth, f"outputs {outputs.shape} and targets {truth.shape}")
        elif self._own.by_sums:
            metrics = self._own.of_sums(place, sums)
        else:
            metrics = {"accuracy": right / counted} if accurate and counted else {}
        return {**metrics, LOSS: total / len(targets)}

    def _batch(self, place: str, model: Float32[np.ndarray, "d"], inputs: Any, targets: Any) -> tuple[Any, Any, Any]:
        try:
            return self._program(model, inputs, targets)
        except Exception as error:
            raise ValueError(
                f"apply and loss of the task {self._task.name!r} fail on inputs {inputs.shape} and targets "
                f"{targets.shape} of {place}(): {named_error(error)}. Let {place}() return examples of the form of "
                "train()"
            ) from error

    def _outputs(self, model: Any, inputs: Any, targets: Any) -> tuple[Any, Any, Any]:
        """Return outputs, the sum of the losses, and how many class numbers were right and how many there are."""
        tree = self._parameters.tree(model)
        outputs = jax.vmap(self._task.apply, (None, 0))(tree, inputs)
        losses = jnp.sum(jax.vmap(self._task.loss)(outputs, targets))
        axis = self._class_axis(outputs, targets)
        if axis is None:
            return outputs, losses, None
        return outputs, losses, (jnp.sum(jnp.argmax(outputs, axis=axis) == targets), jnp.sum(targets >= 0))

    @staticmethod
    def _class_axis(outputs: Any, targets: Any) -> int | None:
        """Return the last axis that can run over classes; None where the targets are no class numbers."""
        if not isinstance(outputs, jax.Array) or not jnp.issubdtype(targets.dtype, jnp.integer):
            return None
        return max(class_axes(outputs.shape, targets.shape), default=None)

"""Evaluation of a model on public examples."""

from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Float32

from dpcomp.training.jax.parameters import Parameters
from dpcomp.training.jax.programs import in_float32
from dpcomp.training.jax.task import JaxTask

EVALUATED_AT_ONCE = 250  # a layer's output for more examples leaves the processor's cache


class Evaluation:
    """Measures accuracy and loss of a model on public examples, by a compiled program.

    Args:
        task: Gives the model and the loss.
        parameters: The structure of its parameters.
    """

    def __init__(self, task: JaxTask, parameters: Parameters):
        self._task, self._parameters = task, parameters
        self._program = jax.jit(in_float32(self._sums))

    def accuracy_and_loss(self, model: Float32[np.ndarray, "d"], examples: tuple[Any, Any]) -> tuple[float, float]:
        """Return the share of examples whose largest output is at their class, and the mean loss.

        Args:
            model: The (d,) vector of all parameters.
            examples: The (n, …) inputs and (n,) targets, on the device.
        """
        correct, total = 0, 0.0
        inputs, targets = examples
        for start in range(0, len(targets), EVALUATED_AT_ONCE):
            part = slice(start, start + EVALUATED_AT_ONCE)
            right, losses = self._program(model, inputs[part], targets[part])
            correct, total = correct + int(right), total + float(losses)
        return correct / len(targets), total / len(targets)

    def _sums(self, model: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
        tree = self._parameters.tree(model)
        outputs = jax.vmap(self._task.apply, (None, 0))(tree, inputs)
        losses = jax.vmap(self._task.loss)(outputs, targets)
        return jnp.sum(jnp.argmax(outputs, axis=-1) == targets), jnp.sum(losses)

"""What the compiled programs of both units share: precision, examples on the device, and a loop over clients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, Int32, Shaped

from dpcomp.training.jax.parameters import Parameters


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is traced without float64: in the program around it, numbers of a model stay float32."""

    def traced(*arguments: Any) -> Any:
        with jax.enable_x64(False):
            return function(*arguments)

    return traced


@dataclass(frozen=True, eq=False)
class Model:
    """The loss of one example as a function of the flat vector, and the examples of all clients.

    Args:
        parameters: The structure of the parameters.
        loss: The loss of one example, of parameters, inputs and target.
        chunk: The number of examples in one pass.
    """

    parameters: Parameters
    loss: Callable[..., Float[Array, ""]]
    chunk: int

    def rows(
        self, vector: Float[Array, "d"], inputs: Shaped[Array, "n ..."], targets: Int[Array, "n"]
    ) -> tuple[Float[Array, "n ..."], ...]:
        """Return the gradient of each example, an (n, …) array a layer."""
        rows = in_float32(jax.vmap(jax.grad(self.loss), (None, 0, 0)))
        return tuple(jax.tree_util.tree_leaves(rows(self.parameters.tree(vector), inputs, targets)))

    def gradient_sum(
        self,
        vector: Float[Array, "d"],
        inputs: Shaped[Array, "n ..."],
        targets: Int[Array, "n"],
        present: Shaped[Array, "n"],
    ) -> Float[Array, "d"]:
        """Return the sum of the gradients of the examples that are present."""

        def total(vector: Float[Array, "d"]) -> Float[Array, ""]:
            losses = jax.vmap(self.loss, (None, 0, 0))(self.parameters.tree(vector), inputs, targets)
            return jnp.sum(jnp.where(present, losses, 0.0))

        return jax.grad(total)(vector)

    def part(
        self, number: Any, positions: Int32[Array, "width"], count: Int32[Array, ""], examples: tuple[Any, Any]
    ) -> tuple[Any, Any, Any]:
        """Return the inputs and targets of a chunk of a batch, and which of them are in the batch."""
        start = number * self.chunk
        chosen = lax.dynamic_slice(positions, (start,), (self.chunk,))
        present = start + jnp.arange(self.chunk, dtype=jnp.int32) < count
        return examples[0][chosen], examples[1][chosen], present

    def parts(self, count: Int32[Array, ""]) -> Int32[Array, ""]:
        """Return the number of chunks of a batch."""
        return (count + (self.chunk - 1)) // self.chunk


def for_each(run: Callable[[Any], Any], arguments: Any, clients: Int32[Array, ""]) -> Any:
    """Run a program for each of the first clients, and return the results under a first axis of all.

    It is `lax.map`, but for a number of clients that may differ from call to call without a new compilation.

    Args:
        run: The program of one client.
        arguments: A pytree of arrays, whose first axis runs over the clients.
        clients: How many of them there are; the results of the others are zeros.
    """

    def one(i: Any) -> Any:
        return run(jax.tree.map(lambda array: lax.dynamic_index_in_dim(array, i, keepdims=False), arguments))

    rows = jax.tree.leaves(arguments)[0].shape[0]
    shapes = jax.eval_shape(one, jnp.int32(0))
    zeros = jax.tree.map(lambda shape: jnp.zeros((rows, *shape.shape), shape.dtype), shapes)

    def body(i: Any, results: Any) -> Any:
        return jax.tree.map(
            lambda result, mine: lax.dynamic_update_index_in_dim(result, mine, i, 0), results, one(jnp.int32(i))
        )

    return lax.fori_loop(0, clients, body, zeros)

"""JaxTask: what the JAX trainer asks of a task."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Shaped


@runtime_checkable
class JaxTask(Protocol):
    """A data set, and a model and a loss of one example, which are pure functions of the parameters.

    Any object with these seven members is such a task; it need not inherit from this class:

    | member | what it is |
    |---|---|
    | `name` | the name of the task in progress bars and reports |
    | `population` | the public number of training examples |
    | `train()` | the private (n, …) inputs and (n, …) targets, as arrays of NumPy or JAX |
    | `test()` | public (m, …) inputs and (m, …) targets to evaluate on; there may be none |
    | `parameters(seed)` | the first parameters: a pytree of float32 arrays |
    | `apply(parameters, example)` | the outputs of one example, from its (…) inputs |
    | `loss(outputs, target)` | the loss of one example, as a scalar |

    There is no batch in it: the trainer maps over examples by `jax.vmap`.

    A model of flax.nnx is `nnx.merge(graph, parameters)(example[None])[0]`, where `graph, parameters =
    nnx.split(model)`. One of equinox is `eqx.combine(parameters, static)(example)`, where `parameters, static =
    eqx.partition(model, eqx.is_inexact_array)`.

    A task that also has `validation()` is a `dpcomp.training.HoldsOut`, and is evaluated on these examples too. It may
    say what is measured, as `dpcomp.training.metrics` says: where it does not, and targets are class numbers, that is
    the accuracy. `client_ids()` is the column that `ByClientId()` of `dpcomp.simulation` parts the examples by.

    Examples:
        A task of 60 made-up examples in two classes:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> class Signs:
        ...     name, population = "signs", 60
        ...     def train(self):
        ...         inputs = jnp.linspace(-1, 1, 60)[:, None]
        ...         return inputs, (inputs[:, 0] > 0).astype(int)
        ...     def test(self):
        ...         return self.train()
        ...     def parameters(self, seed):
        ...         weight = 0.1 * jax.random.normal(jax.random.key(seed), (2, 1))
        ...         return {"weight": weight, "bias": jnp.zeros(2)}
        ...     def apply(self, parameters, example):
        ...         return parameters["weight"] @ example + parameters["bias"]
        ...     def loss(self, outputs, target):
        ...         return jax.nn.logsumexp(outputs) - outputs[target]
        >>> isinstance(Signs(), JaxTask)
        True
    """

    @property
    def name(self) -> str:
        """The name of the task in progress bars and reports."""
        ...

    @property
    def population(self) -> int:
        """The number of training examples as a public constant: it is not computed from the private data."""
        ...

    def train(self) -> tuple[Shaped[Any, "n ..."], Shaped[Any, "n ..."]]:
        """Return the private inputs (n, …) and targets (n, …), which are cut among the clients."""
        ...

    def test(self) -> tuple[Shaped[Any, "m ..."], Shaped[Any, "m ..."]] | None:
        """Return public inputs (m, …) and targets (m, …) to evaluate on; arrays of length 0, or None, for none."""
        ...

    def parameters(self, seed: int) -> Any:
        """Return the first parameters, a pytree of float32 arrays; the public seed decides them."""
        ...

    def apply(self, parameters: Any, example: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """Return the outputs of one example, such as (classes,).

        **Privacy:** a pure function of its two arguments. Arrays that it closes over are constants that everybody may
        know; it asks the host nothing.
        """
        ...

    def loss(self, outputs: Float[Array, "..."], target: Shaped[Array, "..."]) -> Float[Array, ""]:
        """Return the loss of one example as a scalar; as pure as `apply`."""
        ...


Examples = tuple[Shaped[np.ndarray, "n ..."], Shaped[np.ndarray, "n ..."]]

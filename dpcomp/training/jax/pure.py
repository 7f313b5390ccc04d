"""Checks of a loss before it is compiled: what could tie examples to each other although each has its own trace.

Why the rows of `vmap(grad(loss))` are isolated by construction: JAX traces the loss for the shapes of one example, so
the program that it finds has no batch in it; `vmap` replaces each operation by the same one with an axis more, along
which nothing is added, sorted or compared; and `grad` of one example's loss is a program of that kind too. Row i is
therefore a function of the parameters and of example i. Four things escape this reasoning, and are refused:

- a call of the host (`pure_callback`, `io_callback`, `jax.debug.print`), which sees all examples and may remember them;
- an operation along a named axis (`psum`, `all_gather`), which crosses examples where the map has that name;
- a batching rule of one's own (`jax.custom_batching.custom_vmap`, or that of `jax.ffi.ffi_call`), which gets all
  examples at once;
- a constant that the loss closes over, if it holds the training examples: an example would then be in all rows.

And one that would be frozen: a random number of the host, which is drawn once while JAX traces.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

from dpcomp.core.errors import NotPrivate

CALLS_OF_THE_HOST = {"pure_callback", "io_callback", "debug_callback", "debug_print", "callback", "python_callback"}
OWN_BATCHING = {"custom_vmap_call", "ffi_call"}
SEVERAL_DEVICES = {"shard_map", "xla_pmap", "pmap"}
ALONG = (
    "which would join examples: leave out psum, all_gather, shard_map and the like. There is no batch in a loss of one "
    "example"
)


def check_pure(loss: Callable[..., Any], parameters: Any, example: tuple[Any, Any], private: tuple[Any, ...]) -> bool:
    """Refuse a loss whose rows could depend on more than their own example.

    Args:
        loss: The loss of one example, of parameters, inputs and target.
        parameters: A pytree of arrays.
        example: The inputs and the target of one example.
        private: The (n, …) arrays of all training examples.

    Returns:
        Whether the loss closes over arrays.

    Raises:
        NotPrivate: The loss calls the host, works along a named axis, has a batching rule of its own, closes over
            training examples, or is another one each time it is traced.
        TypeError: The loss is no scalar.
    """
    try:
        traced = _traced(loss, parameters, example)
    except NameError as error:
        if "axis name" not in str(error):
            raise
        raise NotPrivate(f"the loss works along a named axis ({error}), {ALONG}") from error
    (shape,) = [variable.aval.shape for variable in traced.jaxpr.outvars] or [None]
    if shape != ():
        raise TypeError(f"the loss of one example has shape {shape}: return a scalar, the loss of this example alone")
    constants = _checked(traced, private)
    # A backward rule of one's own is in no program but that of the gradient.
    gradient = _traced(jax.grad(loss), parameters, example)
    constants += _checked(gradient, private)
    again = _traced(loss, parameters, example), _traced(jax.grad(loss), parameters, example)
    if not all(map(_alike, again, (traced, gradient))):
        raise NotPrivate(
            "the loss is another one each time JAX traces it: a random number of the host would be drawn once and stay "
            "the same for ever, and a state outside the loss is not followed. Make it a function of its arguments"
        )
    return any(np.size(constant) > 1 for constant in constants)


def _checked(program: Any, private: tuple[Any, ...]) -> list[Any]:
    """Refuse a program that could see several examples, and return the constants in it."""
    constants: list[Any] = list(program.consts)
    for equation in _equations(program.jaxpr):
        name = equation.primitive.name
        if name in CALLS_OF_THE_HOST or "callback" in name:
            raise NotPrivate(
                f"the loss calls the host ({name}), which sees every example and may remember it: compute in JAX "
                "alone, and take jax.debug.print out"
            )
        if name in OWN_BATCHING:
            raise NotPrivate(
                f"the loss has a batching rule of its own ({name}, as of jax.custom_batching.custom_vmap), which gets "
                "all examples of a batch at once and could mix them: write it without, as a function of one example"
            )
        if name in SEVERAL_DEVICES:
            raise NotPrivate(f"the loss works along a named axis ({name}), {ALONG}")
        constants += [part for value in equation.params.values() for part in _constants(value)]
    if program.effects:
        raise NotPrivate(
            f"the loss has side effects ({', '.join(map(str, program.effects))}): make it a function of the parameters "
            "and the example alone, which changes nothing"
        )
    for constant in constants:
        _refuse_private(constant, private)
    return constants


def _traced(loss: Callable[..., Any], parameters: Any, example: tuple[Any, Any]) -> Any:
    """Return the program of a loss, traced afresh: JAX keeps what it traced of the same function."""
    return jax.make_jaxpr(lambda *arguments: loss(*arguments))(parameters, *example)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Give the equations of a program, and of all programs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(inner, core.ClosedJaxpr):
                    yield from _equations(inner.jaxpr)
                elif isinstance(inner, core.Jaxpr):
                    yield from _equations(inner)


def _constants(value: Any) -> list[Any]:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [constant for inner in values if isinstance(inner, core.ClosedJaxpr) for constant in inner.consts]


def _refuse_private(constant: Any, private: tuple[Any, ...]) -> None:
    """Refuse a constant that holds the training examples or their targets, all of them or one."""
    constant = np.asarray(constant)
    for array in map(np.asarray, private):
        whole = constant.shape == array.shape and np.array_equal(constant, array)
        some = array.ndim > 1 and constant.size > 1 and constant.size % array[0].size == 0
        rows = constant.reshape(-1, array[0].size)[:1] if some else ()
        one = any((array.reshape(len(array), -1) == row).all(axis=1).any() for row in rows if np.any(row))
        if whole or one:
            raise NotPrivate(
                f"the loss closes over an array of shape {constant.shape} that holds training examples, so these would "
                "be in the row of every example, where no clip bounds them: close over public values alone"
            )


def _alike(one: Any, other: Any) -> bool:
    """Return whether two programs are the same, with the same constants."""
    return str(one) == str(other) and all(map(_same, one.consts, other.consts))


def _same(one: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other), equal_nan=np.asarray(one).dtype.kind == "f")

"""What could tie examples of a loss of one example: each is refused when the trainer is made, and rows are isolated."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpcomp as dp
from dpcomp.training.jax.pure import check_pure
from dpcomp.training.jax.trainer import CLOSED_OVER
from tests.training.jax.tasks import JaxLinear, examples
from tests.training.jax.test_trainer import pipeline_of, trainer_of

INPUTS, TARGETS = (jnp.asarray(array) for array in examples(20, (5,), seed=0))
PARAMETERS = {"weight": jnp.ones((3, 5)), "bias": jnp.zeros(3)}
SEEN = []


def plain(parameters, example, target):
    outputs = parameters["weight"] @ example + parameters["bias"]
    return jax.nn.logsumexp(outputs) - outputs[target]


def check(loss):
    return check_pure(loss, PARAMETERS, (INPUTS[0], TARGETS[0]), (INPUTS, TARGETS))


def calls_back(parameters, example, target):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    scale = jax.pure_callback(lambda x: np.float32(np.sum(x)), shape, example, vmap_method="sequential")
    return scale * plain(parameters, example, target)


def calls_back_inside(parameters, example, target):
    return jax.jit(lambda x: lax_cond(x, parameters, example, target))(True)


def lax_cond(choice, *arguments):
    return jax.lax.cond(choice, calls_back, plain, *arguments)


def prints(parameters, example, target):
    jax.debug.print("{}", target)
    return plain(parameters, example, target)


def crosses_a_named_axis(parameters, example, target):
    return plain(parameters, example - jax.lax.pmean(example, "batch"), target)


@jax.custom_batching.custom_vmap
def centred(example):
    return example


@centred.def_vmap
def centred_in_a_batch(size, batched, example):
    return example - jnp.mean(example, axis=0), True


def has_a_batching_rule(parameters, example, target):
    return plain(parameters, centred(example), target)


def with_backward(rule):
    """Return a loss with a backward rule of its own."""

    @jax.custom_vjp
    def same(example):
        return example

    same.defvjp(lambda example: (example, None), lambda _, gradient: (rule(gradient),))
    return lambda parameters, example, target: jnp.sum(same(parameters["weight"] @ example))


def printed(gradient):
    jax.debug.print("{}", gradient)
    return gradient


def knows_all_examples(parameters, example, target):
    return plain(parameters, example - INPUTS.mean(axis=0) + INPUTS[target], target)


MEAN = INPUTS.mean(axis=0)
SOME = INPUTS[7:9]


def knows_some_examples(parameters, example, target):
    return plain(parameters, example + jax.jit(lambda row: SOME[0] * row)(example), target)


def draws_on_the_host(parameters, example, target):
    return random.random() * plain(parameters, example, target)


def remembers(parameters, example, target):
    SEEN.append(0)
    return len(SEEN) * plain(parameters, example, target)


MEMORY = jax.new_ref(jnp.zeros(5)) if hasattr(jax, "new_ref") else None


def writes(parameters, example, target):
    MEMORY[...] = example
    return plain(parameters, example, target)


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (calls_back, "calls the host"),
        (calls_back_inside, "calls the host"),
        (prints, "calls the host"),
        (crosses_a_named_axis, "named axis"),
        (has_a_batching_rule, "batching rule"),
        (with_backward(printed), "calls the host"),
        (with_backward(centred), "batching rule"),
        (with_backward(lambda gradient: gradient * random.random()), "each time JAX traces it"),
        (with_backward(lambda gradient: gradient + jnp.sum(INPUTS)), "holds training examples"),
        (knows_all_examples, "holds training examples"),
        (knows_some_examples, "holds training examples"),
        (draws_on_the_host, "each time JAX traces it"),
        (remembers, "each time JAX traces it"),
        (writes, "side effects"),
    ],
)
def test_a_loss_that_could_tie_examples_is_refused(loss, match):
    with pytest.raises(dp.NotPrivate, match=match):
        check(loss)


def test_a_loss_of_several_values_is_refused():
    with pytest.raises(TypeError, match=r"shape \(3,\)"):
        check(lambda parameters, example, target: parameters["bias"])


def test_an_error_of_the_loss_itself_is_not_taken_for_another():
    with pytest.raises(NameError, match="undefined"):
        check(lambda *arguments: undefined)


def test_a_loss_may_map_and_add_within_its_example():
    def attends(parameters, example, target):
        centred = jax.vmap(lambda x: x - jax.lax.pmean(x, "place"), axis_name="place")(example)
        return plain(parameters, centred, target)

    assert not check(plain)
    assert not check(attends)
    assert not check(with_backward(lambda gradient: 2 * gradient))
    assert not check(lambda parameters, example, target: plain(parameters, jax.nn.relu(example), target))


def test_public_constants_are_allowed_and_stand_in_the_guarantee():
    public = jnp.arange(36.0)

    class Scaled(JaxLinear):
        def apply(self, parameters, example):
            return super().apply(parameters, example.reshape(-1) * public)

    assert CLOSED_OVER in trainer_of(pipeline_of(), task=Scaled()).assumptions
    assert CLOSED_OVER not in trainer_of(pipeline_of(), task=JaxLinear()).assumptions


def test_a_trainer_checks_its_loss():
    class Prints(JaxLinear):
        def loss(self, outputs, target):
            jax.debug.print("{}", target)
            return super().loss(outputs, target)

    with pytest.raises(dp.NotPrivate, match="calls the host"):
        trainer_of(pipeline_of(), task=Prints())


@pytest.mark.parametrize("value", [0.0, 1e30, np.inf, np.nan])
def test_a_row_is_the_same_whatever_the_other_examples_are(value):
    rows = jax.jit(jax.vmap(jax.grad(plain), (None, 0, 0)))
    before = rows(PARAMETERS, INPUTS, TARGETS)
    after = rows(PARAMETERS, INPUTS.at[3].set(value), TARGETS)
    for name in PARAMETERS:
        np.testing.assert_array_equal(np.delete(before[name], 3, axis=0), np.delete(after[name], 3, axis=0))


class Module:
    """A module that holds arrays beside what is not trained, as one of equinox does."""

    def __init__(self, weight, name):
        self.weight, self.name = weight, name

    def __call__(self, example):
        return self.weight @ example.reshape(-1)


jax.tree_util.register_pytree_node(
    Module, lambda module: ((module.weight,), module.name), lambda name, children: Module(*children, name)
)


def test_a_module_that_is_a_pytree_trains():
    class WithModule(JaxLinear):
        def parameters(self, seed):
            return Module(jnp.zeros((3, 36)), "linear")

        def apply(self, parameters, example):
            assert parameters.name == "linear"
            return parameters(example)

    trainer = trainer_of(pipeline_of(), task=WithModule())
    assert trainer.layout.size == 108
    assert trainer.evaluate(trainer.initial_model)["test_loss"] == pytest.approx(np.log(3), rel=1e-5)

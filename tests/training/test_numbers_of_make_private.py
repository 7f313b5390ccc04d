"""The numbers that make_private takes: refused by name where they are none, and kept as Python's where they are."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dpcomp as dp
from dpcomp.training.jax import JAX
from dpcomp.training.pytorch import PyTorch, make_private

DATA = TensorDataset(torch.randn((12, 2), generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2)


def private(**numbers):
    network = nn.Linear(2, 2)
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.5))
    settings = {"expected_batch_size": 6, "steps": 2} | numbers
    inner = torch.optim.SGD(network.parameters(), lr=0.1)
    return make_private(network, inner, DATA, pipeline, loss=nn.functional.cross_entropy, **settings)


@pytest.mark.parametrize("steps", [True, 2.0, "2", np.float64(2), np.array(2)])
def test_steps_that_are_no_whole_number_are_refused(steps):
    with pytest.raises(TypeError, match=r"make_private\(steps\) is .*give a whole number from 1 on"):
        private(steps=steps)


@pytest.mark.parametrize("steps", [0, -1, np.int8(-3)])
def test_steps_below_one_are_refused(steps):
    with pytest.raises(ValueError, match=r"make_private\(steps\) is .*give a whole number from 1 on"):
        private(steps=steps)


@pytest.mark.parametrize("size", [True, "20", None, np.array(20.0), torch.tensor(20.0)])
def test_a_divisor_that_is_no_number_is_refused(size):
    with pytest.raises(TypeError, match=r"expected_batch_size is .*give a finite number above 0"):
        private(expected_batch_size=size)


@pytest.mark.parametrize("size", [0, -1, math.inf, -math.inf, math.nan, np.float32("inf")])
def test_a_divisor_that_is_not_finite_or_not_above_zero_is_refused(size):
    with pytest.raises(ValueError, match=r"expected_batch_size is .*give a finite number above 0"):
        private(expected_batch_size=size)


@pytest.mark.parametrize("trainer", [PyTorch, JAX])
def test_trainers_refuse_a_divisor_that_is_not_finite(trainer):
    for size in (0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"\(expected_batch_size\) is .*give a finite public number above 0"):
            trainer(expected_batch_size=size)
    assert trainer(expected_batch_size=np.float32(2.5)).expected_batch_size == 2.5


@pytest.mark.parametrize("size", [20, 2.5, np.float32(2.5), np.int8(20), Fraction(5, 2), 1e-3])
def test_other_numbers_divide(size):
    _, optimizer, _ = private(expected_batch_size=size)
    assert optimizer.assumptions[0] == f"the divisor {float(size):g} is public"


def test_passes_of_small_integers_count_on():
    """With 128 steps as a uint8, the second pass had none, and the third repeated the places of the first."""
    _, optimizer, loader = private(steps=np.uint8(128))
    memory = optimizer.pipeline.init_client(optimizer.layout, dp.PublicSeed(0), client=0)
    optimizer.begin(memory, dp.Ledger().charge(optimizer.pipeline.cost, memory.address, steps=384))
    places = []
    stream = dp.SecretSeed().stream

    def noted(purpose, *place):
        places.append((purpose, *place))
        return stream(purpose, *place)

    optimizer._secret.stream = noted
    assert [sum(1 for _ in loader) for _ in range(3)] == [128] * 3
    assert len({place for place in places if place[0] == "sample"}) == 384

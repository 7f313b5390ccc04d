"""The models: their sizes, that a seed alone decides their weights, and that Opacus accepts them."""

import math

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import nn

from dpcomp.lab.tasks.classification import as_tensors
from dpcomp.lab.tasks.examples import Examples, Scaling
from dpcomp.lab.tasks.handwritten_digits import digits_mlp
from experiments.data.models import (
    cifar_cnn,
    fashion_cnn,
    logistic_regression,
    resnet18_group_norm,
)


def softmax_regression(*, seed):
    return logistic_regression(inputs=784, classes=10, seed=seed)


CASES = [
    pytest.param(softmax_regression, 7_850, (1, 28, 28), id="logistic_regression"),
    pytest.param(digits_mlp, 12_010, (1, 8, 8), id="digits_mlp"),
    pytest.param(fashion_cnn, 26_010, (1, 28, 28), id="fashion_cnn"),
    pytest.param(cifar_cnn, 550_570, (3, 32, 32), id="cifar_cnn"),
    pytest.param(resnet18_group_norm, 11_173_962, (3, 32, 32), id="resnet18_group_norm"),
]


def images_of(shape, n=2):
    return torch.rand((n, *shape), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("factory", "parameters", "shape"), CASES)
def test_size_and_logits(factory, parameters, shape):
    model = factory(seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert not list(model.buffers())
    logits = model(images_of(shape))
    assert logits.shape == (2, 10) and logits.isfinite().all()


@pytest.mark.parametrize(("factory", "parameters", "shape"), CASES)
def test_the_seed_alone_decides_the_weights(factory, parameters, shape):
    before = torch.random.get_rng_state()
    first = factory(seed=1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    again, other = factory(seed=1).state_dict(), factory(seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if "norm" not in name]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize(("factory", "parameters", "shape"), CASES)
def test_weights_follow_pytorchs_own_rule(factory, parameters, shape):
    for layer in factory(seed=3).modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            # The deviation of a uniform value is its bound over the root of three.
            assert layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        elif isinstance(layer, nn.GroupNorm):
            assert layer.weight.eq(1).all() and layer.bias.eq(0).all()


@pytest.mark.parametrize(("factory", "parameters", "shape"), CASES)
# Opacus' hooks warn where a model's input needs no gradient, which is so in every training.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_opacus_gives_each_example_its_own_gradient(factory, parameters, shape):
    model = factory(seed=0)
    assert ModuleValidator.validate(model, strict=False) == []
    images, labels = images_of(shape), torch.tensor([3, 7])
    loss = nn.CrossEntropyLoss(reduction="sum")
    alone = torch.autograd.grad(loss(model(images[1:]), labels[1:]), list(model.parameters()))
    wrapped = GradSampleModule(model, loss_reduction="sum")
    loss(wrapped(images), labels).backward()
    for gradient, parameter in zip(alone, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad_sample[1], gradient, rtol=1e-3, atol=1e-5)


def test_as_tensors_scales_by_the_public_constants():
    images = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    scaling = Scaling(mean=(0.1, 0.2, 0.3), deviation=(0.5, 1.0, 2.0))
    examples = Examples(images=images, labels=np.array([4, 9]), scaling=scaling)
    pixels, labels = as_tensors(examples)
    assert pixels.shape == (2, 3, 2, 2) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    assert labels.dtype == torch.int64 and labels.tolist() == [4, 9]
    expected = (images[1, 0, 1] / 255 - np.array(scaling.mean)) / np.array(scaling.deviation)
    np.testing.assert_allclose(pixels[1, :, 0, 1].numpy(), expected, rtol=1e-5)


def test_as_tensors_of_grey_images_is_a_copy():
    examples = Examples(images=np.full((1, 8, 8), 16, np.uint8), labels=np.array([0]), scaling=Scaling(largest=16))
    pixels, labels = as_tensors(examples)
    assert pixels.shape == (1, 1, 8, 8) and pixels.eq(1).all()
    labels += 1
    assert examples.labels.tolist() == [0]


def test_as_tensors_refuses_a_scaling_for_other_channels():
    examples = Examples(images=np.zeros((1, 8, 8, 3), np.uint8), labels=np.array([0]))
    with pytest.raises(ValueError, match="3 channels and their scaling has 1"):
        as_tensors(examples)

"""Small tasks in two frameworks, with the same weights, examples and order of the flat vector."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from dpcomp.lab.tasks.seeded import seeded
from dpcomp.training.jax import conv2d, max_pool


def examples(n, shape, seed):
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((n, *shape)).astype(np.float32)
    return inputs, rng.integers(0, 3, n)


class Made:
    """90 images of noise in three classes."""

    name, population, shape = "images", 90, (1, 6, 6)

    def train(self):
        return examples(self.population, self.shape, seed=1)

    def test(self):
        return examples(40, self.shape, seed=2)


class InTorch(Made):
    def train(self):
        inputs, targets = super().train()
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def test(self):
        inputs, targets = super().test()
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)


class InJax(Made):
    def loss(self, outputs, target):
        return jax.nn.logsumexp(outputs) - outputs[target]


class TorchLinear(InTorch):
    """Logistic regression."""

    def model(self, seed):
        return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), seed)


class JaxLinear(InJax):
    def parameters(self, seed):
        return weights_of(TorchLinear().model(seed))

    def apply(self, parameters, example):
        weight, bias = parameters
        return weight @ example.reshape(-1) + bias


class TorchImages(InTorch):
    """A small CNN."""

    def model(self, seed):
        return seeded(
            lambda: nn.Sequential(
                nn.Conv2d(1, 4, kernel_size=4, stride=2, padding=1),
                nn.Tanh(),
                nn.MaxPool2d(kernel_size=2, stride=1),
                nn.Flatten(),
                nn.Linear(16, 3),
            ),
            seed,
        )


class JaxImages(InJax):
    def parameters(self, seed):
        return weights_of(TorchImages().model(seed))

    def apply(self, parameters, example):
        kernel, bias, weight, shift = parameters
        image = conv2d(example.transpose(1, 2, 0), kernel.transpose(2, 3, 1, 0), stride=2, padding=1)
        image = jnp.tanh(max_pool(image + bias, size=2, stride=1))  # the values of the other order
        return weight @ image.transpose(2, 0, 1).reshape(-1) + shift


def weights_of(model):
    return [jnp.asarray(parameter.detach().numpy()) for parameter in model.parameters()]

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


class Images:
    """90 images of noise in three classes, and a CNN."""

    name, population, shape = "images", 90, (1, 10, 10)

    def train(self):
        return examples(self.population, self.shape, seed=1)

    def test(self):
        return examples(40, self.shape, seed=2)


class TorchImages(Images):
    def train(self):
        inputs, targets = super().train()
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def test(self):
        inputs, targets = super().test()
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def model(self, seed):
        return seeded(
            lambda: nn.Sequential(
                nn.Conv2d(1, 4, kernel_size=4, stride=2, padding=1),
                nn.Tanh(),
                nn.MaxPool2d(kernel_size=2, stride=1),
                nn.Flatten(),
                nn.Linear(64, 3),
            ),
            seed,
        )

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)


class JaxImages(Images):
    def parameters(self, seed):
        return [jnp.asarray(parameter.detach().numpy()) for parameter in TorchImages().model(seed).parameters()]

    def apply(self, parameters, example):
        kernel, bias, weight, shift = parameters
        image = conv2d(example.transpose(1, 2, 0), kernel.transpose(2, 3, 1, 0), stride=2, padding=1)
        image = max_pool(jnp.tanh(image + bias), size=2, stride=1)
        return weight @ image.transpose(2, 0, 1).reshape(-1) + shift

    def loss(self, outputs, target):
        return jax.nn.logsumexp(outputs) - outputs[target]

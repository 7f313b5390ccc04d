"""The tasks that experiments train: a data set, a model and a loss."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from dpcomp.lab.tasks.examples import DataSet
from experiments.data import data_sets as data
from experiments.data import models
from experiments.data.augment import augmented


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Cross-entropy on a public data set of known size."""

    name: str
    population: int
    load: Callable[[], DataSet]
    make_model: Callable[..., nn.Module]

    def train(self) -> tuple[Tensor, Tensor]:
        """Images (n, c, h, w), scaled by public constants, and labels (n,)."""
        return models.as_tensors(_loaded(self.load).train)

    def test(self) -> tuple[Tensor, Tensor]:
        """The public test set."""
        return models.as_tensors(_loaded(self.load).test)

    def model(self, seed: int) -> nn.Module:
        """A fresh model with public first weights."""
        return self.make_model(seed=seed)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of (n, classes) logits."""
        return torch.nn.functional.cross_entropy(outputs, targets)


@cache
def _loaded(load: Callable[[], DataSet]) -> DataSet:
    return load()


def digits() -> Classification:
    """scikit-learn's digits with a 12,010-parameter MLP: needs no download."""
    return Classification(name="digits", population=1437, load=data.digits, make_model=models.digits_mlp)


def mnist() -> Classification:
    """MNIST with the 26,010-parameter tanh CNN of Tramèr & Boneh (2011.11660)."""
    return Classification(name="mnist", population=60_000, load=data.mnist, make_model=models.fashion_cnn)


def fashion_mnist() -> Classification:
    """Fashion-MNIST with the 26,010-parameter tanh CNN of Tramèr & Boneh (2011.11660)."""
    return Classification(
        name="fashion_mnist", population=60_000, load=data.fashion_mnist, make_model=models.fashion_cnn
    )


def cifar10() -> Classification:
    """CIFAR-10 with the 550,570-parameter tanh CNN of Tramèr & Boneh (2011.11660)."""
    return Classification(name="cifar10", population=50_000, load=data.cifar10, make_model=models.cifar_cnn)


def cifar10_resnet() -> Classification:
    """CIFAR-10, cropped and flipped at random, with an 11.2-million-parameter ResNet-18 with group norm: for a GPU."""
    return Classification(
        name="cifar10_resnet",
        population=50_000,
        load=data.cifar10,
        make_model=partial(augmented, models.resnet18_group_norm),
    )


TASKS = {task.__name__: task for task in (digits, mnist, fashion_mnist, cifar10, cifar10_resnet)}

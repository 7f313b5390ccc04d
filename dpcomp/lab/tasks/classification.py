"""Classification of images: a data set, a model and the cross-entropy."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from dpcomp.core.checks import whole_number
from dpcomp.core.randomness import PublicSeed
from dpcomp.lab.tasks.examples import DataSet, Examples


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Cross-entropy on a public data set of known size; a `dpcomp.simulation.Task`.

    Attributes:
        name: What reports call it.
        population: The number of training examples that the world knows of, without those held out: a public constant.
        load: Gives the data set. It is called once a process.
        make_model: Called with `seed=`; gives a model from images (n, c, h, w) to logits (n, classes), whose first
            weights are a function of the seed alone.
        held_out: The number of the data set's training examples that are held out of `train`, to choose settings by.
            Which ones is a public draw, the same for every seed.
    """

    name: str
    population: int
    load: Callable[[], DataSet]
    make_model: Callable[..., nn.Module]
    held_out: int = 0

    def holding_out(self, count: int) -> "Classification":
        """Return the task with that many examples of its training set held out, which `population` no longer counts.

        Raises:
            TypeError, ValueError: It is no whole number from 0 on, or no example would be left to train on.
        """
        whole_number(count, "holding_out(count)", least=0, most=self.population - 1)
        return replace(self, population=self.population - count, held_out=self.held_out + count)

    def train(self) -> tuple[Tensor, Tensor]:
        """Return images (n, c, h, w), scaled by public constants, and labels (n,)."""
        return as_tensors(self._part(held_out=False))

    def test(self) -> tuple[Tensor, Tensor]:
        """Return the public test set, as `train` does."""
        return as_tensors(_loaded(self.load).test)

    def validation(self) -> tuple[Tensor, Tensor] | None:
        """Return the examples that are held out, as `train` does; None where none are."""
        return as_tensors(self._part(held_out=True)) if self.held_out else None

    def model(self, seed: int) -> nn.Module:
        """Return a fresh model with public first weights."""
        return self.make_model(seed=seed)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of (n, classes) logits."""
        return torch.nn.functional.cross_entropy(outputs, targets)

    def _part(self, *, held_out: bool) -> Examples:
        """Return the training examples that are held out, or the others, in the order of the data set."""
        examples = _loaded(self.load).train
        if not self.held_out:
            return examples
        drawn = PublicSeed(0).stream("validation").permutation(len(examples))[: self.held_out]
        chosen = np.isin(np.arange(len(examples)), drawn)
        return examples.take(np.flatnonzero(chosen == held_out))


def as_tensors(examples: Examples) -> tuple[Float32[Tensor, "n channels h w"], Int64[Tensor, " n"]]:
    """Return images, scaled by the public constants that the examples carry, and labels, both as copies on the CPU.

    Raises:
        ValueError: The scaling is for another number of channels.
    """
    scaling = examples.scaling
    pixels = torch.tensor(examples.images)
    # Moved as bytes: to move four times as many takes CIFAR-10 seconds.
    pixels = pixels.movedim(-1, 1).contiguous() if pixels.ndim == 4 else pixels.unsqueeze(1)
    images = pixels.to(torch.float32)
    if images.shape[1] != len(scaling.mean):
        raise ValueError(
            f"these images have {images.shape[1]} channels and their scaling has {len(scaling.mean)}; "
            "give Scaling one mean and one deviation a channel"
        )
    mean = torch.tensor(scaling.mean).view(1, -1, 1, 1)
    deviation = torch.tensor(scaling.deviation).view(1, -1, 1, 1)
    # In place: CIFAR-10's training images take 0.6 GB as it is.
    return images.div_(scaling.largest).sub_(mean).div_(deviation), torch.tensor(examples.labels)


@cache
def _loaded(load: Callable[[], DataSet]) -> DataSet:
    return load()

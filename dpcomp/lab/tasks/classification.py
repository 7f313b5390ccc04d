"""Classification of images: a data set, a model and the cross-entropy."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from dpcomp.lab.tasks.examples import DataSet, Examples


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Cross-entropy on a public data set of known size; a `dpcomp.simulation.Task`.

    Attributes:
        name: What reports call it.
        population: The number of training examples that the world knows of: a public constant.
        load: Gives the data set. It is called once a process.
        make_model: Called with `seed=`; gives a model from images (n, c, h, w) to logits (n, classes), whose first
            weights are a function of the seed alone.
    """

    name: str
    population: int
    load: Callable[[], DataSet]
    make_model: Callable[..., nn.Module]

    def train(self) -> tuple[Tensor, Tensor]:
        """Return images (n, c, h, w), scaled by public constants, and labels (n,)."""
        return as_tensors(_loaded(self.load).train)

    def test(self) -> tuple[Tensor, Tensor]:
        """Return the public test set, as `train` does."""
        return as_tensors(_loaded(self.load).test)

    def model(self, seed: int) -> nn.Module:
        """Return a fresh model with public first weights."""
        return self.make_model(seed=seed)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of (n, classes) logits."""
        return torch.nn.functional.cross_entropy(outputs, targets)


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

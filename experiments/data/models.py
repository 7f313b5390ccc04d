"""The models of the experiments, and how they see examples: every factory gives a `torch.nn.Module` that
Opacus can take per-example gradients of.

Weights come from the factory's seed alone, by PyTorch's own rule for linear and convolutional layers (weight
and bias uniform in ±1/√fan_in). Initial weights are public, so a plain seed is enough for them.
"""

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from dpcomp.lab.tasks.examples import Examples


def as_tensors(examples: Examples) -> tuple[Float32[Tensor, "n channels h w"], Int64[Tensor, " n"]]:
    """Give images, scaled by the public constants that the examples carry, and labels, both as copies on the CPU.

    Raises ValueError where the scaling is for another number of channels.
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


def logistic_regression(*, inputs: int, classes: int, seed: int) -> nn.Module:
    """A linear model from (n, ...) images of `inputs` values to (n, classes) logits."""
    return _seeded(
        lambda: nn.Sequential(OrderedDict(flatten=nn.Flatten(), output=nn.Linear(inputs, classes))),
        seed,
    )


def digits_mlp(*, seed: int) -> nn.Module:
    """One hidden layer for the 8 × 8 digits: 12,010 parameters, tanh, (n, 1, 8, 8) -> (n, 10)."""
    return _seeded(
        lambda: nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                hidden=nn.Linear(64, 160),
                tanh=nn.Tanh(),
                output=nn.Linear(160, 10),
            )
        ),
        seed,
    )


def fashion_cnn(*, seed: int) -> nn.Module:
    """The end-to-end CNN for MNIST and Fashion-MNIST: 26,010 parameters, tanh, (n, 1, 28, 28) -> (n, 10).

    Source: Tramèr & Boneh 2020, arXiv 2011.11660, appendix on the models' architectures.
    """
    return _seeded(
        lambda: nn.Sequential(
            OrderedDict(
                convolution_1=nn.Conv2d(1, 16, kernel_size=8, stride=2, padding=2),
                tanh_1=nn.Tanh(),
                pool_1=nn.MaxPool2d(kernel_size=2, stride=1),
                convolution_2=nn.Conv2d(16, 32, kernel_size=4, stride=2),
                tanh_2=nn.Tanh(),
                pool_2=nn.MaxPool2d(kernel_size=2, stride=1),
                flatten=nn.Flatten(),
                hidden=nn.Linear(512, 32),
                tanh_3=nn.Tanh(),
                output=nn.Linear(32, 10),
            )
        ),
        seed,
    )


def cifar_cnn(*, seed: int) -> nn.Module:
    """The end-to-end CNN for CIFAR-10: 550,570 parameters, tanh, (n, 3, 32, 32) -> (n, 10).

    Source: Tramèr & Boneh 2020, arXiv 2011.11660, appendix on the models' architectures.
    """

    def build() -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for number, width in enumerate((32, 32, 64, 64, 128, 128), start=1):
            layers[f"convolution_{number}"] = nn.Conv2d(channels, width, kernel_size=3, padding=1)
            layers[f"tanh_{number}"] = nn.Tanh()
            if number % 2 == 0:
                layers[f"pool_{number // 2}"] = nn.MaxPool2d(kernel_size=2)
            channels = width
        layers["flatten"] = nn.Flatten()
        layers["hidden"] = nn.Linear(channels * 4 * 4, 128)
        layers["tanh_7"] = nn.Tanh()
        layers["output"] = nn.Linear(128, 10)
        return nn.Sequential(layers)

    return _seeded(build, seed)


def resnet18_group_norm(*, seed: int) -> nn.Module:
    """ResNet-18 for CIFAR-10: 11,173,962 parameters, group norm, 3 × 3 stem, (n, 3, 32, 32) -> (n, 10).

    Batch norm would mix the examples of a batch, and so has no per-example gradient; group norm is per example.
    Source: He et al. 2016, arXiv 1512.03385, table 1 with the CIFAR stem of section 4.2;
    Wu & He 2018, arXiv 1803.08494, for the 32 groups.
    """

    def build() -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            stem=nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False),
            norm=_group_norm(64),
            relu=nn.ReLU(),
        )
        channels = 64
        for stage, (width, stride) in enumerate(((64, 1), (128, 2), (256, 2), (512, 2)), start=1):
            layers[f"block_{stage}_1"] = _ResidualBlock(channels, width, stride)
            layers[f"block_{stage}_2"] = _ResidualBlock(width, width, 1)
            channels = width
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["output"] = nn.Linear(channels, 10)
        return nn.Sequential(layers)

    return _seeded(build, seed)


class _ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut: (n, inputs, h, w) -> (n, outputs, h/stride, w/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.convolution_1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm_1 = _group_norm(outputs)
        # Not in place, here and below: Opacus' hooks keep the activations that an in-place ReLU would overwrite.
        self.relu_1 = nn.ReLU()
        self.convolution_2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.norm_2 = _group_norm(outputs)
        self.relu_2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(convolution=projection, norm=_group_norm(outputs)))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.relu_1(self.norm_1(self.convolution_1(images)))
        return self.relu_2(self.norm_2(self.convolution_2(hidden)) + self.shortcut(images))


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(32, channels)


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a model and draw its weights from a generator of its own, layer after layer.

    On the meta device the constructors draw nothing, so the global generator is never touched: no other
    thread can disturb these weights, and they disturb nobody's numbers.
    """
    with torch.device("meta"):
        model = build()
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif isinstance(layer, nn.GroupNorm):
            layer.reset_parameters()
        elif next(layer.parameters(recurse=False), None) is not None:
            raise TypeError(f"{type(layer).__name__} has parameters that _seeded leaves unset; give it a rule there")
    return model

"""The models of the experiments: every factory gives a `torch.nn.Module` that Opacus can take per-example gradients of.

First weights come from the factory's seed alone, as `dpcomp.lab.tasks.seeded` draws them.
"""

from collections import OrderedDict

from torch import Tensor, nn

from dpcomp.lab.tasks.seeded import seeded


def logistic_regression(*, inputs: int, classes: int, seed: int) -> nn.Module:
    """Make a linear model from (n, ...) images of `inputs` values to (n, classes) logits."""
    return seeded(
        lambda: nn.Sequential(OrderedDict(flatten=nn.Flatten(), output=nn.Linear(inputs, classes))),
        seed,
    )


def fashion_cnn(*, seed: int) -> nn.Module:
    """Make the end-to-end CNN for MNIST and Fashion-MNIST: 26,010 parameters, tanh, (n, 1, 28, 28) -> (n, 10).

    Source: Tramèr & Boneh 2020, arXiv 2011.11660, appendix on the models' architectures.
    """
    return seeded(
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
    """Make the end-to-end CNN for CIFAR-10: 550,570 parameters, tanh, (n, 3, 32, 32) -> (n, 10).

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

    return seeded(build, seed)


def small_group_norm_cnn(*, seed: int) -> nn.Module:
    """Make a small CNN for CIFAR-10: 24,346 parameters, group norm, ReLU, (n, 3, 32, 32) -> (n, 10).

    Three convolutions of stride 2 and 16, 32 and 64 channels, each followed by a group norm of eight groups, then the
    mean over places: a model whose private training takes minutes on a core.
    """

    def build() -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for number, width in enumerate((16, 32, 64), start=1):
            layers[f"convolution_{number}"] = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
            layers[f"norm_{number}"] = nn.GroupNorm(8, width)
            layers[f"relu_{number}"] = nn.ReLU()
            channels = width
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["output"] = nn.Linear(channels, 10)
        return nn.Sequential(layers)

    return seeded(build, seed)


def resnet8_group_norm(*, seed: int) -> nn.Module:
    """Make the ResNet-8 for CIFAR-10: 78,042 parameters, group norm, (n, 3, 32, 32) -> (n, 10).

    Source: He et al. 2016, arXiv 1512.03385, section 4.2 with n = 1, with projections as shortcuts; Wu & He 2018, arXiv
    1803.08494, for the norm, here with groups of two channels.
    """
    return seeded(lambda: _resnet((16, 32, 64), blocks=1), seed)


def resnet18_group_norm(*, seed: int) -> nn.Module:
    """Make the ResNet-18 for CIFAR-10: 11,173,962 parameters, group norm, 3 × 3 stem, (n, 3, 32, 32) -> (n, 10).

    Batch norm would mix the examples of a batch, and so has no per-example gradient; group norm is per example.
    Source: He et al. 2016, arXiv 1512.03385, table 1 with the CIFAR stem of section 4.2;
    Wu & He 2018, arXiv 1803.08494, for the 32 groups.
    """
    return seeded(lambda: _resnet((64, 128, 256, 512), blocks=2), seed)


def _resnet(widths: tuple[int, ...], blocks: int) -> nn.Module:
    """Build stages of residual blocks, of which each but the first halves height and width."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Conv2d(3, widths[0], kernel_size=3, padding=1, bias=False),
        norm=_group_norm(widths[0]),
        relu=nn.ReLU(),
    )
    channels = widths[0]
    for stage, width in enumerate(widths, start=1):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            layers[f"block_{stage}_{block}"] = _ResidualBlock(channels, width, stride)
            channels = width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(channels, 10)
    return nn.Sequential(layers)


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
    return nn.GroupNorm(min(32, channels // 2), channels)

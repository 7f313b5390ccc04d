"""Random crops and flips as the first layer of a model: on the device, and drawn from its own lent generator."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from jaxtyping import Float32
from torch import Tensor, nn


class CropAndFlip(nn.Module):
    """In training, moves each image by up to `margin` pixels in each direction, zeros behind it, and flips every other.

    Each example is moved by itself, once a pass, so it stays one unit. Without parameters, and idle in evaluation.
    Source: He et al. 2016, arXiv 1512.03385, section 4.2 (margin 4).
    """

    def __init__(self, margin: int = 4) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, images: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n c h w"]:
        """Return the images, randomly cropped and flipped in training mode, and unchanged otherwise."""
        if not self.training:
            return images
        (n, channels, height, width), device = images.shape, images.device
        padded = nn.functional.pad(images, (self.margin,) * 4)
        down, right = torch.randint(0, 2 * self.margin + 1, (2, n, 1), device=device)
        flipped = torch.randint(0, 2, (n, 1), device=device, dtype=torch.bool)
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        rows = down + rows
        columns = right + torch.where(flipped, columns.flip(0), columns)
        example = torch.arange(n, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[None, :, None, None]
        return padded[example, channel, rows[:, None, :, None], columns[:, None, None, :]]


def augmented(make_model: Callable[..., nn.Module], *, seed: int) -> nn.Sequential:
    """Make a sequential model that crops and flips its inputs at random; its layers keep their names and its layout."""
    return nn.Sequential(OrderedDict([("crop_and_flip", CropAndFlip()), *make_model(seed=seed).named_children()]))

"""First weights that a seed alone decides."""

import math
from collections.abc import Callable

import torch
from torch import nn


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a model, and draw its weights from a generator of its own, layer after layer.

    The weights follow PyTorch's own rule for linear and convolutional layers (weight and bias uniform in ±1/√fan_in).
    First weights are public, so a plain seed is enough for them.

    On the meta device the constructors draw nothing, so the global generator is never touched: no other
    thread can disturb these weights, and they disturb nobody's numbers.

    Args:
        build: Makes the model, of linear, convolutional and group norm layers and of such as have no parameters.
        seed: The seed from which the weights are drawn.

    Returns:
        The model, on the CPU.

    Raises:
        TypeError: A layer with parameters is of another class.
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
            raise TypeError(f"{type(layer).__name__} has parameters that `seeded` leaves unset: give it a rule there")
    return model

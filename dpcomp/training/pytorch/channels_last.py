"""Channels last: the memory layout in which convolutions are fast, for the models that accept it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dpcomp.training.pytorch.rows.passes import floating
from dpcomp.training.pytorch.rows.structures import call_of, count, mapped, rows, tensors


def takes_channels_last(module: nn.Module, inputs: Any) -> bool:
    """Return whether a model has 2-d convolutions, and gives the same outputs with channels last in memory.

    A copy of the model is called. One that takes `view` of a convolution's output fails with channels last. In float64
    there is nothing to gain, and torch's backward pass of a dilated convolution in groups ends the process.

    Args:
        module: The model.
        inputs: A batch of examples as the model gets them.
    """
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    if not convolutions or any(layer.weight.dtype == torch.float64 for layer in convolutions):
        return False
    some = rows(inputs, 0, min(2, count(inputs)))
    devices = list({part.device for part in tensors(some) if part.device.type == "cuda"})
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            found: list[list[Tensor]] = []
            for changed in (False, True):
                subject = copy.deepcopy(module)
                subject.eval()  # which returns what an own train() does
                args, kwargs = call_of(some)
                if changed:
                    set_channels_last(subject)
                    args, kwargs = with_channels_last((args, kwargs))
                found.append(floating(subject(*args, **kwargs)))
    except Exception:  # whatever it is: the usual layout is right
        return False
    usual, other = found
    return len(usual) == len(other) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()), equal_nan=True)
        for a, b in zip(usual, other, strict=True)
        if a.numel()
    )


def set_channels_last(module: nn.Module) -> None:
    """Put the weights of convolutions in memory with channels last; their values stay."""
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def with_channels_last(value: Any) -> Any:
    """Return a structure whose images have channels last in memory."""
    return mapped(lambda part: part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part, value)

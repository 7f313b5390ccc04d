"""A torch module's trainable parameters as one flat vector; buffers are never part of it."""

import numpy as np
import torch
from jaxtyping import Float32

from dpcomp.core.layout import Layout


def trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Name → parameter, of those that require gradients, without Opacus' prefix."""
    named = module.named_parameters()
    return {name.removeprefix("_module."): parameter for name, parameter in named if parameter.requires_grad}


def layout_of(module: torch.nn.Module) -> Layout:
    """The layout of a module's trainable parameters."""
    return Layout.of({name: tuple(parameter.shape) for name, parameter in trainable(module).items()})


def read(module: torch.nn.Module) -> Float32[np.ndarray, "d"]:
    """A copy of the trainable parameters."""
    rows = [parameter.detach().cpu().numpy().reshape(-1) for parameter in trainable(module).values()]
    return np.concatenate(rows).astype(np.float32)


def parts(module: torch.nn.Module, vector: Float32[np.ndarray, "d"]) -> list[torch.Tensor]:
    """The vector cut into fresh tensors of the parameters' shapes.

    Raises:
        ValueError: it is not of shape (d,).
    """
    layout = layout_of(module)
    if vector.shape != (layout.size,):
        raise ValueError(f"a vector of shape {vector.shape} does not fit {layout.size} trainable parameters")
    rows = np.split(vector, layout.edges[1:-1])
    return [torch.tensor(row).reshape(shape) for row, (_, shape) in zip(rows, layout.shapes, strict=True)]


def write(module: torch.nn.Module, vector: Float32[np.ndarray, "d"]) -> None:
    """Set the trainable parameters; raises as `parts`."""
    for parameter, part in zip(trainable(module).values(), parts(module, vector), strict=True):
        with torch.no_grad():
            parameter.copy_(part)

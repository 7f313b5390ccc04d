"""Conversion between a module's trainable parameters and one flat vector. Buffers are never part of the vector."""

import numpy as np
import torch
from jaxtyping import Float32

from dpcomp.core.layout import Layout


def trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that require gradients, by name.

    Opacus wraps a module, which puts the prefix `_module.` before each name; it is removed, so that a wrapped module
    and the module itself have the same names.
    """
    named = module.named_parameters()
    return {name.removeprefix("_module."): parameter for name, parameter in named if parameter.requires_grad}


def layout_of(module: torch.nn.Module) -> Layout:
    """Return the layout of a module's trainable parameters.

    Examples:
        >>> import torch
        >>> from dpcomp.training.pytorch.rows.parameters import layout_of
        >>> layout_of(torch.nn.Linear(3, 2)).shapes
        (('weight', (2, 3)), ('bias', (2,)))
    """
    return Layout.of({name: tuple(parameter.shape) for name, parameter in trainable(module).items()})


def read(module: torch.nn.Module) -> Float32[np.ndarray, "d"]:
    """Return a copy of the trainable parameters as one vector on the host."""
    rows = [parameter.detach().cpu().numpy().reshape(-1) for parameter in trainable(module).values()]
    return np.concatenate(rows).astype(np.float32)


def parts(module: torch.nn.Module, vector: Float32[np.ndarray, "d"]) -> list[torch.Tensor]:
    """Cut a vector into new tensors with the shapes of the trainable parameters.

    Raises:
        ValueError: The vector is not of shape (d,).
    """
    layout = layout_of(module)
    if vector.shape != (layout.size,):
        raise ValueError(
            f"a vector of shape {vector.shape} does not fit {layout.size} trainable parameters: give one of shape "
            f"({layout.size},)"
        )
    rows = layout.split(vector)
    return [torch.tensor(row).reshape(shape) for row, (_, shape) in zip(rows, layout.shapes, strict=True)]


def write(module: torch.nn.Module, vector: Float32[np.ndarray, "d"]) -> None:
    """Set the trainable parameters to the values of a vector.

    Raises:
        ValueError: The vector is not of shape (d,).
    """
    for parameter, part in zip(trainable(module).values(), parts(module, vector), strict=True):
        with torch.no_grad():
            parameter.copy_(part)

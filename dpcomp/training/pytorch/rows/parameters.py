"""Conversion between a module's trainable parameters and one flat vector. Buffers are never part of the vector."""

from collections.abc import Sequence

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


def cut(parameters: Sequence[torch.Tensor], vector: Float32[np.ndarray, "d"]) -> list[torch.Tensor]:
    """Cut a copy of a vector into tensors with the shapes of parameters.

    Raises:
        ValueError: The vector is not of shape (d,).
    """
    sizes = [parameter.numel() for parameter in parameters]
    if vector.shape != (sum(sizes),):
        raise ValueError(
            f"a vector of shape {vector.shape} does not fit {sum(sizes)} trainable parameters: give one of shape "
            f"({sum(sizes)},)"
        )
    rows = torch.split_with_sizes(torch.tensor(vector), sizes)
    return [row.view(parameter.shape) for row, parameter in zip(rows, parameters, strict=True)]


def write(module: torch.nn.Module, vector: Float32[np.ndarray, "d"]) -> None:
    """Set the trainable parameters to the values of a vector.

    Raises:
        ValueError: The vector is not of shape (d,).
    """
    parameters = list(trainable(module).values())
    with torch.no_grad():
        for parameter, part in zip(parameters, cut(parameters, vector), strict=True):
            parameter.copy_(part)

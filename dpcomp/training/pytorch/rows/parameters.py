"""Conversion between a module's trainable parameters and one flat vector. Buffers are never part of the vector."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.func import functional_call

from dpcomp.core.layout import Layout


def trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that require gradients, by name.

    Opacus wraps a module, which puts the prefix `_module.` before each name; it is removed, so that a wrapped module
    and the module itself have the same names.
    """
    named = module.named_parameters()
    return {name.removeprefix("_module."): parameter for name, parameter in named if parameter.requires_grad}


class Places:
    """The places in a module where each parameter and buffer stands, to call the module with other values there.

    `torch.func.functional_call` with `tie_weights=True` leaves the replacements in a layer that the module uses twice,
    since it exchanges them once a name and puts them back in the same order; here a place has one name.

    Args:
        module: The module.

    Examples:
        >>> import torch
        >>> from dpcomp.training.pytorch.rows.parameters import Places
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> twice = torch.nn.Sequential(layer, layer)
        >>> Places(twice).call({"0.weight": torch.full((1, 1), 3.0)}, (torch.ones(1, 1),), {}).item()
        9.0
    """

    def __init__(self, module: torch.nn.Module):
        self._module = module
        names = {id(value): name for name, value in (*module.named_parameters(), *module.named_buffers())}
        self._names = {place: names[id(value)] for place, value in _places(module)}

    def call(self, values: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the module returns with other values, by the names of its parameters and buffers.

        Args:
            values: The values; those of other names stay as they are.
            args: The arguments of the module by position.
            kwargs: The arguments of the module by name.
        """
        at = {place: values[name] for place, name in self._names.items() if name in values}
        return functional_call(self._module, at, args, kwargs, tie_weights=False)


def _places(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each attribute of each layer that holds a parameter or buffer, once, however many names the layer has."""
    for prefix, layer in module.named_modules():
        for name, value in (*layer._parameters.items(), *layer._buffers.items()):
            if value is not None:
                yield f"{prefix}.{name}" if prefix else name, value


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

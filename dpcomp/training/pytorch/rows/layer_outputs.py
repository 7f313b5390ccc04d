"""Outputs of layers: which layer is the first whose output differs between two passes."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from dpcomp.training.pytorch.rows.passes import floating

Record = list[tuple[str, list[Tensor]]]


def recorded(module: nn.Module, call: Callable[[], Any]) -> Record:
    """Return the outputs of all layers in a call, in the order in which they finish."""
    found: Record = []

    def hook_of(place: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(_layer: nn.Module, _inputs: Any, outputs: Any) -> None:
            found.append((place, [part.detach().clone() for part in floating(outputs)]))

        return note

    with ExitStack() as handles, torch.no_grad():
        for name, layer in module.named_modules():
            place = f"layer {name!r} ({type(layer).__name__})" if name else f"the model ({type(layer).__name__})"
            handles.callback(layer.register_forward_hook(hook_of(place)).remove)
        call()
    return found


def first_other(mine: Record, theirs: Record, same: Callable[[Tensor, Tensor], bool]) -> str | None:
    """Return the layer whose outputs are the first that differ; None if none do, or other layers were called.

    Args:
        mine: The outputs in a pass.
        theirs: Those in another one.
        same: Whether two outputs are taken for the same.
    """
    for (place, ours), (other, outputs) in zip(mine, theirs, strict=False):
        if place != other or len(ours) != len(outputs):
            return None
        if not all(map(same, ours, outputs)):
            return place
    return None

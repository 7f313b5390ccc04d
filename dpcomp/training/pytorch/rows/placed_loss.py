"""Placed loss: a declared loss, at the place where it takes the outputs of mixed precision."""

from typing import Any

import torch
from torch import Tensor

from dpcomp.training.pytorch.rows.digits import SHORT
from dpcomp.training.pytorch.rows.engine import Loss
from dpcomp.training.pytorch.rows.isolated import gradients_of
from dpcomp.training.pytorch.rows.passes import floating
from dpcomp.training.pytorch.rows.structures import mapped, tensors


class PlacedLoss:
    """Calls a loss on the outputs of a pass: as they are, or in float32 behind `torch.autocast` where it needs that.

    Losses without a kernel of 16 bits, such as a hinge, are taken on `outputs.float()` by scripts, and so by rows and
    checks. Which these are is tried before training, so that no look at a batch decides it.

    Args:
        loss: The mean loss of a batch.
    """

    def __init__(self, loss: Loss):
        self._loss = loss
        self.behind: frozenset[torch.dtype] = frozenset()  # the types of mixed precision that it does not take

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Return the loss of a batch."""
        if self.behind:
            device = next((part.device.type for part in tensors(outputs)), "cpu")
            if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) in self.behind:
                with torch.autocast(device, enabled=False):
                    return self._loss(_in_float32(outputs), targets)
        return self._loss(outputs, targets)

    def try_mixed_precision(self, outputs: Any, targets: Any) -> None:
        """Try in which types of mixed precision the loss takes outputs as they are, and keep the others.

        Args:
            outputs: Of a pass in full precision.
            targets: Of its examples.
        """
        device = next((part.device.type for part in tensors(outputs)), "cpu")
        for kind in SHORT:
            short = mapped(
                lambda part, to=kind: part.to(to).requires_grad_() if part.is_floating_point() else part, outputs
            )
            try:
                with torch.autocast(device, dtype=kind), torch.enable_grad():
                    gradients_of([self._loss(short, targets)], floating(short), [None])
            except (RuntimeError, TypeError, ValueError, AssertionError, LookupError):  # what losses raise for a type
                self.behind |= {kind}


def _in_float32(outputs: Any) -> Any:
    return mapped(lambda part: part.float() if part.dtype in SHORT else part, outputs)

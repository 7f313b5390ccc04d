"""Evaluation of a model on public examples."""

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from dpcomp.training.pytorch.rows.engine import Loss
from dpcomp.training.pytorch.rows.parameters import write

EVALUATED_AT_ONCE = 128  # a layer's output for more examples leaves the processor's cache


def accuracy_and_loss(
    module: nn.Module, loss: Loss, parameters: Float32[np.ndarray, "d"], inputs: Tensor, targets: Tensor
) -> tuple[float, float]:
    """Return the accuracy and the mean loss of a classifier on public examples.

    Args:
        module: Gets the parameters, moves to the device of the inputs, and is left in evaluation mode.
        loss: Mean loss of (n, classes) outputs and (n,) targets.
        parameters: The (d,) vector of all trainable parameters.
        inputs: (n, …).
        targets: (n,) class numbers, on the same device.

    Returns:
        The share of examples whose largest output is at their class, and the mean loss.
    """
    write(module.to(inputs.device), parameters)
    module.eval()
    correct, total_loss = 0, 0.0
    with torch.no_grad():
        for chunk, truth in zip(inputs.split(EVALUATED_AT_ONCE), targets.split(EVALUATED_AT_ONCE), strict=True):
            outputs = module(chunk)
            correct += int((outputs.argmax(dim=1) == truth).sum())
            total_loss += float(loss(outputs, truth)) * len(truth)
    return correct / len(targets), total_loss / len(targets)

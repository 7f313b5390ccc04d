"""The privacy noise that is in parameters after plain SGD on noisy gradients."""

import math

import torch


def noise_after(optimizer: torch.optim.Optimizer, noise_stddev: float, steps: int) -> float | None:
    """Return the standard deviation of the noise in each parameter after several steps on noisy gradients.

    SGD with momentum μ and learning rate η is linear: the gradient of step t of E enters the parameters with the weight
    η·(1 − μ^(E−t+1))/(1 − μ).

    Args:
        optimizer: The local optimiser, at the start of its momentum.
        noise_stddev: The standard deviation of the independent noise in each coordinate of each gradient.
        steps: E, the number of steps.

    Returns:
        The standard deviation; None if the optimiser is not such an SGD: Adam, Nesterov, dampening, weight decay, or
        several groups of parameters.
    """
    if type(optimizer) is not torch.optim.SGD or len(optimizer.param_groups) != 1:
        return None
    group = optimizer.param_groups[0]
    if group["nesterov"] or group["dampening"] or group["weight_decay"]:
        return None
    momentum, weight, total = group["momentum"], 0.0, 0.0
    for _ in range(steps):
        weight = momentum * weight + 1.0
        total += weight**2
    return group["lr"] * noise_stddev * math.sqrt(total)

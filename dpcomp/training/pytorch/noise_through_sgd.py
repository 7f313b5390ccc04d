"""How much privacy noise there is in what plain SGD makes of noisy gradients."""

import math

import torch


def noise_after(optimizer: torch.optim.Optimizer, noise_stddev: float, steps: int) -> float | None:
    """The standard deviation of the noise in each parameter after `steps` gradients with independent noise.

    SGD with momentum μ is linear: step t of E enters the parameters with weight η·(1 − μ^(E−t+1))/(1 − μ).
    None for what is not linear or has several groups: Adam, Nesterov, dampening.
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

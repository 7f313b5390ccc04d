"""The privacy noise that is in parameters after plain SGD on noisy gradients."""

import math

import torch


class NoiseThroughSgd:
    """Follows the steps of an optimiser, and tells how much noise they left in each parameter.

    SGD with momentum is linear: with learning rate η_t and momentum μ_t in step t, the gradient of step s enters the
    parameters with the weight W_s = η_s + μ_(s+1)·W_(s+1).
    """

    def __init__(self):
        self._steps: list[tuple[float, float]] = []
        self._is_linear = True

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the learning rate and momentum of a step that the optimiser is about to take."""
        group = optimizer.param_groups[0]
        if (
            type(optimizer) is not torch.optim.SGD
            or len(optimizer.param_groups) != 1
            or group["nesterov"]
            or group["dampening"]
            or group["weight_decay"]
        ):
            self._is_linear = False
            return
        self._steps.append((float(group["lr"]), float(group["momentum"])))

    def stddev(self, noise_stddev: float) -> float | None:
        """Return the standard deviation of the noise in each parameter.

        Args:
            noise_stddev: Of the independent noise in each coordinate of each gradient.

        Returns:
            The standard deviation; None if a step was not such an SGD: Adam, Nesterov, dampening, weight decay, or
            several groups of parameters.
        """
        if not self._is_linear or not self._steps:
            return None
        last = self._steps[-1][0]
        if last == 0:
            return None
        weight, total, momentum = 0.0, 0.0, 0.0
        for rate, own_momentum in reversed(self._steps):
            weight = momentum * weight + rate / last
            total += weight**2
            momentum = own_momentum
        return last * noise_stddev * math.sqrt(total)

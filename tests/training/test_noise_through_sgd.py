"""The noise that plain SGD hands on, against SGD itself."""

import numpy as np
import pytest
import torch

from dpcomp.training.pytorch.steps.noise_through_sgd import NoiseThroughSgd


def stddev_after(optimizer, noise_stddev, steps):
    noise = NoiseThroughSgd()
    for _ in range(steps):
        noise.step(optimizer)
    return noise.stddev(noise_stddev)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("gamma", [1.0, 0.1, 3.0])
def test_the_noise_in_the_parameters_is_what_sgd_makes_of_the_noise_in_gradients(momentum, steps, gamma):
    weights, rng = torch.nn.Parameter(torch.zeros(200_000)), np.random.default_rng(0)
    optimizer = torch.optim.SGD([weights], lr=0.3, momentum=momentum)
    schedule, noise = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma), NoiseThroughSgd()
    for _ in range(steps):
        weights.grad = torch.from_numpy(2.0 * rng.standard_normal(200_000).astype(np.float32))
        noise.step(optimizer)
        optimizer.step()
        schedule.step()
    assert noise.stddev(2.0) == pytest.approx(float(weights.detach().std()), rel=0.01)


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.Adam,
        lambda parts: torch.optim.SGD(parts, lr=0.1, momentum=0.9, nesterov=True),
        lambda parts: torch.optim.SGD(parts, lr=0.1, momentum=0.9, dampening=0.5),
        lambda parts: torch.optim.SGD(parts, lr=0.1, weight_decay=0.1),
        lambda parts: torch.optim.SGD([{"params": part} for part in parts], lr=0.1),
    ],
)
def test_of_what_is_not_plain_sgd_nothing_is_said(make):
    parts = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))]
    assert stddev_after(make(parts), 1.0, 3) is None

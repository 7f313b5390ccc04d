"""Local optimisers by a factory, and FedProx: they step as torch does, on releases alone; misfits are refused."""

from functools import partial

import numpy as np
import pytest
import torch

import dpcomp as dp
from dpcomp.simulation import simulate
from dpcomp.training.pytorch import PyTorch
from tests.simulation.test_simulate import Blobs, pipeline, run

pytestmark = pytest.mark.filterwarnings("ignore::dpcomp.DpcompWarning")
TERMS = [("example", "nobody"), ("client", "server")]
ADAM = partial(torch.optim.Adam, betas=(0.5, 0.9))


@pytest.mark.parametrize(("unit", "trust"), TERMS)
def test_a_factory_of_sgd_gives_the_run_of_the_default(unit, trust):
    plain = run(pipeline(unit, trust), trainer=PyTorch(local_steps=2, momentum=0.5))
    made = run(pipeline(unit, trust), trainer=PyTorch(local_steps=2, optimizer=partial(torch.optim.SGD, momentum=0.5)))
    assert made.model.tobytes() == plain.model.tobytes() and made.guarantee == plain.guarantee


@pytest.mark.parametrize(("unit", "trust"), TERMS)
def test_another_optimiser_costs_the_same_and_learns_otherwise(unit, trust):
    plain = run(pipeline(unit, trust), trainer=PyTorch(local_steps=2, learning_rate=0.05))
    adam = run(pipeline(unit, trust), trainer=PyTorch(local_steps=2, learning_rate=0.05, optimizer=ADAM))
    assert adam.model.tobytes() != plain.model.tobytes() and np.isfinite(adam.model).all()
    assert adam.guarantee.epsilon == plain.guarantee.epsilon


def clean(**trainer):
    """The change of one client in a round, without noise and codec, by the trainer; and the task that it trains."""
    chosen = dp.Pipeline(mechanism=(dp.Clip(1e3), dp.Gaussian(1e-9)), unit="client", trust="server")
    config = PyTorch(local_sampling=dp.Poisson(1.0), **trainer)
    return simulate(Blobs(), chosen, clients=1, rounds=1, trainer=config, progress=False).model


@pytest.mark.parametrize("optimizer", [None, ADAM])
def test_fedprox_pulls_each_step_towards_the_model_of_the_round(optimizer):
    """Against torch, with the term in the loss."""
    task, mu = Blobs(), 3.0
    module = task.model(0)
    origin = [parameter.detach().clone() for parameter in module.parameters()]
    factory = torch.optim.SGD if optimizer is None else optimizer
    step = factory(module.parameters(), lr=0.1)
    inputs, targets = task.train()
    for _ in range(4):
        step.zero_grad()
        pull = sum(((w - o) ** 2).sum() for w, o in zip(module.parameters(), origin, strict=True))
        (task.loss(module(inputs), targets) + mu / 2 * pull).backward()
        step.step()
    expected = torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()]).numpy()
    found = clean(local_steps=4, learning_rate=0.1, proximal=mu, optimizer=optimizer)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    without = clean(local_steps=4, learning_rate=0.1, optimizer=optimizer)
    assert np.abs(found - without).max() > 0.02


def test_fedprox_on_releases_keeps_the_guarantee_and_the_clients_near():
    far = run(pipeline(noise=0.1), clients=1, rounds=1, trainer=PyTorch(local_steps=20))
    near = run(pipeline(noise=0.1), clients=1, rounds=1, trainer=PyTorch(local_steps=20, proximal=1.0))
    start = run(pipeline(noise=0.1), clients=1, rounds=1, trainer=PyTorch(learning_rate=0.0)).model
    assert near.guarantee == far.guarantee
    assert np.linalg.norm(near.model - start) < 0.8 * np.linalg.norm(far.model - start)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"optimizer": torch.optim.Adam, "momentum": 0.5}, ValueError, "leave momentum out"),
        ({"proximal": -1.0}, ValueError, "proximal"),
        ({"proximal": "1"}, TypeError, "proximal"),
        ({"optimizer": torch.optim.LBFGS}, ValueError, "closure"),
        ({"optimizer": torch.optim.SparseAdam}, ValueError, "sparse"),
        ({"optimizer": lambda parameters, lr: None}, TypeError, "torch optimiser"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(given, error, said):
    with pytest.raises(error, match=said):
        run(pipeline("client", "server"), trainer=PyTorch(**given))


def test_a_factory_that_takes_no_learning_rate_is_refused_before_the_first_round():
    with pytest.raises(ValueError, match=r"PyTorch\(optimizer=.*lr=0\.5: TypeError.*functools\.partial"):
        run(pipeline(), trainer=PyTorch(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0)))

"""Training where the data lie: the same on every device that this machine has, and a clear no where there is none."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dpcomp as dp
from dpcomp.simulation import Run, simulate
from dpcomp.training.pytorch import PyTorch
from dpcomp.training.pytorch.devices import device_of, to_device

pytestmark = pytest.mark.filterwarnings("ignore::dpcomp.DpcompWarning")  # runs this short learn nothing
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TERMS = [("example", "nobody"), ("client", "nobody"), ("client", "server")]


class Noisy(nn.Module):
    """A layer that has a buffer and draws from the generator of its inputs' device."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.1))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.scale * torch.randn_like(inputs) if self.training else inputs


@dataclass(frozen=True)
class Stripes:
    """Two classes of 8 × 8 pictures, for a small network of convolution and group norm."""

    name: str = "stripes"
    population: int = 40
    noisy: bool = False
    modules: list[nn.Module] = field(default_factory=list)

    def train(self) -> tuple[Tensor, Tensor]:
        targets = torch.arange(40) % 2
        pictures = torch.randn((40, 1, 8, 8), generator=torch.Generator().manual_seed(1))
        pictures[targets == 1, :, ::2] += 1.0
        return pictures, targets

    def test(self) -> tuple[Tensor, Tensor]:
        return self.train()

    def model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            layers = [nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(256, 2)]
        self.modules.append(nn.Sequential(*([Noisy()] if self.noisy else []), *layers))
        return self.modules[-1]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)


def run(unit: str, trust: str, task: Stripes, *, device: str = "cpu", seed: int = 0) -> Run:
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(0.1)), sampling=dp.Poisson(0.9), unit=unit, trust=trust)
    trainer = PyTorch(local_steps=2, device=device)
    return simulate(task, pipeline, clients=2, rounds=2, trainer=trainer, seed=seed, progress=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("unit", "trust"), TERMS)
def test_a_run_is_the_same_wherever_it_trains(unit, trust, device):
    task = Stripes()
    here, there = run(unit, trust, Stripes()), run(unit, trust, task, device=device)
    if device == "cpu":
        assert there.model.tobytes() == here.model.tobytes()
    else:  # its kernels add in another order, and may round the factors of a convolution
        np.testing.assert_allclose(there.model, here.model, atol=0.02 * float(np.abs(here.model).max()))
    assert {tensor.device.type for module in task.modules for tensor in module.state_dict().values()} == {device}
    assert there.guarantee == here.guarantee


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("unit", "trust"), TERMS[1:])
def test_layers_that_draw_follow_the_seed_and_leave_no_trace(unit, trust, device):
    before = torch.get_rng_state()
    one, two, other = (run(unit, trust, Stripes(noisy=True), device=device, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_allclose(one.model, two.model, rtol=0, atol=0 if device == "cpu" else 1e-3)
    assert not np.allclose(one.model, other.model, atol=1e-2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", DEVICES)
def test_data_that_are_there_are_not_copied(name):
    device = device_of(name)
    inputs, targets = torch.ones(3, 2, device=device), torch.ones(3, device=device)
    moved = to_device(device, inputs, targets)
    assert moved[0] is inputs
    assert moved[1] is targets


@pytest.fixture
def rounded_products():
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", DEVICES)
def test_the_clip_holds_where_products_of_matrices_may_be_rounded(name, rounded_products):
    values = torch.randn((64, 5000), generator=torch.Generator().manual_seed(0)).to(name)
    total = dp.Clip(1.0).sum((values,))[0].cpu()
    exact = (values.double() / (values.double().norm(dim=1, keepdim=True) + 1e-6)).sum(dim=0).cpu()
    assert float((total - exact).norm() / exact.norm()) < 1e-5


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99", "", "mps"])
def test_a_device_that_is_not_here_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f'device={name!r}.*"cpu"'):
        device_of(name)


def test_without_a_gpu_the_error_says_what_to_look_at(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a look"))
    with pytest.raises(ValueError, match=r"device='cuda': torch .* finds 0 CUDA devices here. Look at nvidia-smi"):
        simulate(Stripes(), pipeline, clients=1, rounds=1, trainer=PyTorch(device="cuda"))

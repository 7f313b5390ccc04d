"""Training steps: dpcomp's private step, plain SGD in two memory layouts, and Opacus' hooks and ghost clipping.

Each function makes a step of one module, a call without arguments. A call trains on the next of the given batches, and
begins again with the first after the last. All of them compute the mean loss of a batch, and take an SGD step.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dpcomp as dp
from dpcomp.training.pytorch import PyTorch, make_private

Batches = Sequence[tuple[Tensor, Tensor]]
Step = Callable[[], None]

MOST_STEPS = 10**6  # charged at once: a step that is measured opens no round


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What all steps have in common; the rate is small, so that weights stay where they are however many steps come."""

    clip_norm: float = 1.0
    noise_multiplier: float = 1.0
    learning_rate: float = 1e-4


def dpcomp_step(
    module: nn.Module, batches: Batches, settings: StepSettings = StepSettings(), *, noise: bool = True
) -> Step:
    """Make the private step of dpcomp: inspected model, drawn batch, spot check, clip, noise, SGD.

    Args:
        module: The model, from (n, …) inputs to (n, classes) outputs.
        batches: What it trains on.
        settings: Clip norm, noise and rate.
        noise: Whether noise is added; a step without it is private for nobody, and shows what noise costs.
    """
    clip = dp.Clip(settings.clip_norm)
    mechanism = (clip, dp.Gaussian(settings.noise_multiplier)) if noise else dp.unsafe("what noise costs", clip)
    pipeline = dp.Pipeline(mechanism=mechanism)
    model, optimizer, _ = make_private(
        module,
        torch.optim.SGD(module.parameters(), lr=settings.learning_rate),
        TensorDataset(*batches[0]),
        pipeline,
        loss=nn.functional.cross_entropy,
        secret=dp.SecretSeed(),
        expected_batch_size=len(batches[0][0]),
        steps=1,
        engine=PyTorch().engine,  # the one that simulations take
    )
    model.train()
    memory = pipeline.init_client(optimizer.layout, seed=dp.PublicSeed(0), client=0)
    optimizer.begin(memory, dp.Ledger().charge(pipeline.cost, memory.address, steps=MOST_STEPS))
    drawn = iter(optimizer.batches(itertools.cycle(batches)))

    def step() -> None:
        inputs, targets = next(drawn)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return step


def sgd_step(module: nn.Module, batches: Batches, settings: StepSettings = StepSettings()) -> Step:
    """Make a plain SGD step on contiguous batches: images lie in memory channel by channel (NCHW)."""
    optimizer = torch.optim.SGD(module.parameters(), lr=settings.learning_rate)
    turn = itertools.cycle(batches)

    def step() -> None:
        inputs, targets = next(turn)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()

    return step


def channels_last_sgd_step(module: nn.Module, batches: Batches, settings: StepSettings = StepSettings()) -> Step:
    """Make a plain SGD step whose weights and images lie in memory pixel by pixel (NHWC), which CPUs prefer."""
    module = module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    laid = [(inputs.contiguous(memory_format=torch.channels_last), targets) for inputs, targets in batches]
    return sgd_step(module, laid, settings)


def opacus_step(module: nn.Module, batches: Batches, settings: StepSettings = StepSettings()) -> Step:
    """Make the private step of Opacus' hooks, which keep a gradient an example (Yousefpour et al. 2021)."""
    model = GradSampleModule(module)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=settings.learning_rate),
        noise_multiplier=settings.noise_multiplier,
        max_grad_norm=settings.clip_norm,
        expected_batch_size=len(batches[0][0]),
        loss_reduction="mean",
    )
    turn = itertools.cycle(batches)

    def step() -> None:
        inputs, targets = next(turn)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return step


def opacus_ghost_step(module: nn.Module, batches: Batches, settings: StepSettings = StepSettings()) -> Step:
    """Make the private step of Opacus' ghost clipping: norms first, then a second backward pass of weighted losses."""
    norm: Any = settings.clip_norm  # any positive number; Opacus writes int
    model = GradSampleModuleFastGradientClipping(module, max_grad_norm=norm, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters(), lr=settings.learning_rate),
        noise_multiplier=settings.noise_multiplier,
        max_grad_norm=settings.clip_norm,
        expected_batch_size=len(batches[0][0]),
        loss_reduction="mean",
    )
    loss = DPLossFastGradientClipping(model, optimizer, nn.CrossEntropyLoss(), "mean")
    turn = itertools.cycle(batches)

    def step() -> None:
        inputs, targets = next(turn)
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()

    return step

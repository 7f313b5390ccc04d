"""Naive trainers: rows that are not examples, batches that nobody drew, parameters that move without noise.

Each computes the rows of its step itself, so that no check of dpcomp's own trainer stands before them, and then clips
and noises them by the pipeline, at the full charge.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import dpcomp as dp
from dpcomp.audit import AddedExample, ClaimOfReleases, Training
from dpcomp.training.pytorch.rows.parameters import layout_of, read, write
from dpcomp.training.trainer import Federation
from experiments.studies.audit.case import Case
from experiments.studies.audit.shipped import MECHANISM, Signs

Rows = Callable[[nn.Module, Tensor, Tensor], list[Tensor]]  # of a model, inputs and targets: a loss for each row


@dataclass(frozen=True, kw_only=True)
class Naive:
    """Takes one step a round: the rows of all examples, clipped, noised and scaled by a public learning rate.

    Attributes:
        rows: Gives a loss for each row of the step.
        model: Makes the model.
        before: Runs before the step, as a forward pass may.
    """

    rows: Rows
    model: Callable[[], nn.Module]
    before: Callable[[nn.Module, Tensor], None] = lambda model, inputs: None

    def make_trainer(self, federation: Federation) -> "NaiveTrainer":
        """Return the trainer."""
        return NaiveTrainer(self, federation)


class NaiveTrainer:
    """The trainer of a `Naive` step."""

    assumptions = ()

    def __init__(self, config: Naive, federation: Federation):
        self._config, self._pipeline = config, federation.pipeline
        self._module = config.model()
        self._inputs, self._targets = federation.task.train()
        self.layout, self.initial_model = layout_of(self._module), read(self._module)

    def train(self, client: int, start: np.ndarray, memory: dp.ClientMemory, ledger: dp.Ledger) -> dp.Update:
        """Take the step, and return the change of the model."""
        write(self._module, start)
        self._config.before(self._module, self._inputs)
        parameters = list(self._module.parameters())
        losses = self._config.rows(self._module, self._inputs, self._targets)
        gradients = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
        block = tuple(torch.stack(parts) for parts in zip(*gradients, strict=True))
        permit = ledger.charge(self._pipeline.cost, memory.address)
        released = self._pipeline.release([block], memory, dp.SecretSeed(), permit)
        return released.derive(read(self._module) - start - 0.1 * released.dense())

    def evaluate(self, model: np.ndarray) -> dict[str, float]:
        """Return nothing: an audit does not evaluate."""
        return {}


def linear() -> nn.Module:
    """Return the model of the task."""
    return Signs().model(0)


def with_batch_norm() -> nn.Module:
    """Return a model that normalises by the statistics of the batch."""
    return nn.Sequential(nn.BatchNorm1d(3), linear())


def each(model: nn.Module, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """Return the loss of each example, from one forward pass of the batch."""
    return list(functional.cross_entropy(model(inputs), targets, reduction="none"))


def twice(model: nn.Module, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """Return the losses of each example and of its mirrored view."""
    return [*each(model, inputs, targets), *each(model, inputs.flip(1), targets)]


def weighted(model: nn.Module, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """Return each example's part of a mean with class weights, whose divisor is the weights of the whole batch."""
    weights = torch.tensor([1.0, 100.0])[targets]
    losses = functional.cross_entropy(model(inputs), targets, reduction="none")
    return list(len(inputs) * weights * losses / weights.sum())


def contrasted(model: nn.Module, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """Return each example's loss against all others of the batch, as InfoNCE has it."""
    outputs = model(inputs)
    return list(functional.cross_entropy(outputs @ outputs.T, torch.arange(len(inputs)), reduction="none"))


def centre(model: nn.Module, inputs: Tensor) -> None:
    """Move a bias by the mean of the inputs, as data-dependent initialisation and ActNorm do."""
    with torch.no_grad():
        next(model.parameters())[0] += inputs.mean(dim=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rare:
    """Fifteen examples of class 0 near zero: their gradients are small, so that no clip hides what scales them."""

    name, population = "rare class", 16

    def train(self) -> tuple[Tensor, Tensor]:
        """Return the examples."""
        return 0.05 * torch.ones(15, 3), torch.zeros(15, dtype=torch.long)


def trainer_cases() -> Iterator[Case]:
    """Return the cases of naive trainers."""
    clipped = dp.Pipeline(mechanism=MECHANISM)
    drawn = dp.Pipeline(mechanism=MECHANISM, sampling=dp.Poisson(0.1))
    large = {"example": [30.0, -30.0, 30.0], "target": 1}
    tied = {"example": [0.05, 0.05, 0.05], "target": 1}
    yield case("trainer: batch norm", Naive(rows=each, model=with_batch_norm), Signs(), large, clipped)
    yield case("trainer: two backward passes", Naive(rows=twice, model=linear), Signs(), large, clipped)
    yield case("trainer: class weights under the mean", Naive(rows=weighted, model=linear), Rare(), tied, clipped)
    yield case("trainer: contrastive loss", Naive(rows=contrasted, model=with_weights), Signs(), large, clipped)
    moved = Naive(rows=each, model=linear, before=centre)
    yield case("trainer: the forward pass moves a parameter", moved, Signs(), large, clipped)
    yield case(
        "trainer: a loader of its own, charged as Poisson", Naive(rows=each, model=linear), Signs(), large, drawn
    )


def with_weights() -> nn.Module:
    """Return a linear model whose weights are not zero."""
    model = linear()
    with torch.no_grad():
        next(model.parameters())[:] = torch.tensor([[1.0, 0.5, -0.5], [-0.5, 1.0, 0.5]])
    return model


def case(name: str, trainer: Naive, task: object, canary: dict[str, object], pipeline: dp.Pipeline) -> Case:
    """Return the case of a trainer."""
    added = AddedExample(task=task, **canary)
    door = Training(pipeline=pipeline, trainer=trainer, without_canary=task, with_canary=added)
    return Case(name=name, kind="naive", door=door, claim=ClaimOfReleases(cost=pipeline.cost))

"""PyTorch: the configuration of local training with PyTorch, and the trainer that it makes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float32

from dpcomp.core.checks import check_type, real_number, whole_number
from dpcomp.privacy import Poisson
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.training.pytorch.channels_last import set_channels_last, takes_channels_last
from dpcomp.training.pytorch.devices import device_of
from dpcomp.training.pytorch.inspection import check_precision
from dpcomp.training.pytorch.local_training import ClientLevel, ExampleLevel
from dpcomp.training.pytorch.rows.engine import Engine
from dpcomp.training.pytorch.rows.parameters import layout_of, read
from dpcomp.training.pytorch.steps.local_optimizer import OptimizerFactory, local_optimizer
from dpcomp.training.pytorch.tasks.evaluation import Evaluation
from dpcomp.training.pytorch.tasks.examples import Examples, examples_of
from dpcomp.training.pytorch.tasks.fits import check_members, check_task, first_model
from dpcomp.training.pytorch.tasks.supervised import collate_of
from dpcomp.training.schedule import Schedule, public_rate
from dpcomp.training.trainer import Federation, validation_of
from dpcomp.wire.memory import ClientMemory
from dpcomp.wire.update import Update, with_learning_rate


@dataclass(frozen=True, kw_only=True)
class PyTorch:
    """Local training with PyTorch: SGD on each client, example-level with per-example gradients.

    The task must be a `SupervisedTask`. What is charged follows from the pipeline: with `unit="example"` every local
    step is a release, with `unit="client"` the whole update is.

    Args:
        local_steps: The number of SGD steps that a client takes in a round. With `unit="example"` each is charged.
        learning_rate: The learning rate of the local steps: a number from 0 on, or a schedule over the rounds such as
            `Cosine`.
        momentum: The momentum of the local steps, in [0, 1). The momentum buffer starts at zero in every round.
        optimizer: What makes the local optimiser, called as `optimizer(parameters, lr=learning_rate)`, such as
            `torch.optim.Adam` or `functools.partial(torch.optim.AdamW, weight_decay=0.01)`; its state begins anew in
            every round. None: SGD with `momentum`. With `unit="example"` it steps on released gradients alone.
        proximal: μ of FedProx (Li et al. 2020), from 0 on: each local step is pulled towards the model that the round
            starts from, by μ times the distance. 0: not at all.
        expected_batch_size: The public constant that divides the sum of a step's clipped gradients; used with
            `unit="example"` only, and refused with `unit="client"`. None: sampling rate × the task's population ÷
            clients.
        local_sampling: How a client draws the batches of its local steps; used with `unit="client"` only. No privacy
            depends on it. An empty batch is no step: clients with few examples need a larger rate. With
            `unit="example"` the pipeline's own `sampling` draws the batches.
        physical_batch_size: The largest number of examples in one forward pass; used with `unit="example"` only. It
            bounds memory and changes results by rounding alone.
        device: Where models are trained and evaluated: "cpu", "cuda" or "cuda:1". Codec, noise and ledger stay on the
            host. On a GPU, runs repeat up to the order in which its kernels add.
        engine: How per-example gradients are taken, with `unit="example"`. "auto": by `BookKeeping()`, from layer
            inputs and output gradients, if it serves the model, else by `Isolated()`, which takes each example alone.
            `Opacus()` uses Opacus' formulas, and checks rows.

    Raises:
        TypeError, ValueError: A number lies outside its range.

    Examples:
        >>> from dpcomp.training.pytorch import PyTorch
        >>> PyTorch(local_steps=3, learning_rate=0.1).local_steps
        3
    """

    local_steps: int = 1
    learning_rate: float | Schedule = 0.5
    momentum: float = 0.0
    optimizer: OptimizerFactory | None = None
    proximal: float = 0.0
    expected_batch_size: float | None = None
    local_sampling: Poisson = field(default=Poisson(0.1))
    physical_batch_size: int = 512
    device: str = "cpu"
    engine: Engine | Literal["auto"] = "auto"

    def __post_init__(self):
        for name in ("local_steps", "physical_batch_size"):
            object.__setattr__(self, name, whole_number(getattr(self, name), f"PyTorch({name})", least=1))
        allowed = "a number from 0 on, or a schedule"
        if not isinstance(self.learning_rate, Schedule) and not (
            real_number(self.learning_rate, "PyTorch(learning_rate)", allowed) >= 0
        ):
            raise ValueError(f"PyTorch(learning_rate) is {self.learning_rate}: give a number from 0 on, or a schedule")
        if not 0 <= real_number(self.momentum, "PyTorch(momentum)", "a number in [0, 1)") < 1:
            raise ValueError(f"PyTorch(momentum) is {self.momentum}: give a number in [0, 1)")
        if self.momentum and self.optimizer is not None:
            raise ValueError(
                f"PyTorch(momentum={self.momentum:g}) beside optimizer={self.optimizer!r}, which has settings of its "
                "own: leave momentum out, and give it to the factory, as functools.partial(torch.optim.SGD, momentum=…)"
            )
        if not 0 <= real_number(self.proximal, "PyTorch(proximal)", "a finite number from 0 on") < math.inf:
            raise ValueError(f"PyTorch(proximal) is {self.proximal}: give a finite number from 0 on")
        size, allowed = self.expected_batch_size, "a finite number above 0, or None"
        if size is not None and not 0 < real_number(size, "PyTorch(expected_batch_size)", allowed) < math.inf:
            raise ValueError(
                f"PyTorch(expected_batch_size) is {self.expected_batch_size}: it divides sums, so give a finite public "
                "number above 0, or None for the sampling rate × population ÷ clients"
            )
        sampling = self.local_sampling
        check_type(sampling, Poisson, f"PyTorch(local_sampling={sampling!r}): give dp.Poisson(rate)")

    def make_trainer(self, federation: Federation) -> "TorchTrainer":
        """Return the trainer of a federation.

        Raises:
            TypeError: The task lacks members of `SupervisedTask`.
            ValueError: The device is not in this machine, or `expected_batch_size` is given with `unit="client"`.
            NotPrivate: With `unit="example"`, the model or the loss ties examples, or the model remembers them; with
                `unit="client"`, a forward pass writes buffers, which are never sent.
        """
        return TorchTrainer(self, federation)


class TorchTrainer:
    """The clients' examples on their device, a model that trains and a model that is evaluated.

    Args:
        config: How clients train.
        federation: The task, pipeline, clients and seeds.
    """

    def __init__(self, config: PyTorch, federation: Federation):
        task, device = federation.task, device_of(config.device)
        check_members(task)
        collate = collate_of(task)
        everything = examples_of(task.train(), collate, "train()", device)
        evaluated, labels = first_model(task, federation.seed.number).to(device), everything.labels()
        check_precision(evaluated)
        check_task(task, evaluated, everything, labels)
        self._examples = [everything.part(part) for part in federation.split(labels)]
        self._learning_rate = config.learning_rate
        self.layout, self.initial_model = layout_of(evaluated), read(evaluated)
        if config.optimizer is not None:
            _ = local_optimizer(config.optimizer, config.learning_rate, 0.0)(evaluated, 0)  # refuse it now
        given = {"test": task.test(), "validation": validation_of(task)}
        public = {
            name: examples_of(found, collate, f"{name}()", device) for name, found in given.items() if found is not None
        }
        if takes_channels_last(evaluated, everything.batch([0, len(everything) - 1])[0]):
            set_channels_last(evaluated)
            public = {name: found.with_channels_last() for name, found in public.items()}
        self._evaluation = Evaluation(task, evaluated, public)
        if federation.pipeline.trust_model.releases_local_steps:
            divisor = config.expected_batch_size or federation.expected_batch_size
            self._local = _example_level(config, federation, divisor, everything)
            self._local.refuse_ties(everything)
            self.assumptions: tuple[str, ...] = (f"the number of examples, {task.population:,}, is public",)
        else:
            if config.expected_batch_size is not None:
                raise ValueError(
                    f"PyTorch(expected_batch_size={config.expected_batch_size:g}) beside a pipeline with "
                    f"unit={federation.pipeline.unit!r}: it divides the clipped sum of a local step, and only "
                    "unit='example' has such sums. Leave it out"
                )
            self._local = _client_level(config, federation, everything)
            self.assumptions = ()
        trust = federation.pipeline.trust_model
        self.releases = config.local_steps if trust.releases_local_steps else int(not trust.server_sees_clean)
        sampling = federation.pipeline.sampling or Poisson(1.0)
        rate = (sampling if trust.releases_local_steps else config.local_sampling).rate
        self.trained_examples = config.local_steps * rate * task.population / federation.clients
        self.tested_examples = sum(map(len, public.values()))

    def train(self, client: int, start: Float32[np.ndarray, "d"], memory: ClientMemory, ledger: Ledger) -> Update:
        """Train a client for one round on its own examples, and return the change of its model.

        Args, results and errors are those of `Trainer.train`: the ledger is charged for the round before any noise is
        drawn, and the update is released unless the server is trusted.
        """
        update = self._local.train(start, self._examples[client], memory, ledger)
        return with_learning_rate(update, public_rate(self._learning_rate, memory.address.round))

    def evaluate(self, model: Float32[np.ndarray, "d"]) -> Mapping[str, float]:
        """Return `test_loss` (a mean) of a model on the task's test set, and `test_<metric>` for each of its metrics.

        The metrics are the task's own (`dpcomp.training.metrics`), or the accuracy (a share) where targets are class
        numbers. Where the task holds out examples, `validation_…` are those on them.

        Raises:
            ValueError: Model, loss or metrics fail on these examples.
        """
        return self._evaluation.columns(model)


def _example_level(config: PyTorch, federation: Federation, divisor: float, examples: Examples) -> ExampleLevel:
    return ExampleLevel(
        first_model(federation.task, federation.seed.number).to(examples.device),
        federation.task.loss,
        federation.pipeline,
        examples=examples.some(),
        engine=config.engine,
        make_optimizer=local_optimizer(config.optimizer, config.learning_rate, config.momentum),
        secret=federation.secret,
        local_steps=config.local_steps,
        expected_batch_size=divisor,
        physical_batch_size=config.physical_batch_size,
        proximal=config.proximal,
    )


def _client_level(config: PyTorch, federation: Federation, examples: Examples) -> ClientLevel:
    return ClientLevel(
        first_model(federation.task, federation.seed.number).to(examples.device),
        federation.task.loss,
        federation.pipeline,
        examples=examples.some(),
        make_optimizer=local_optimizer(config.optimizer, config.learning_rate, config.momentum),
        secret=federation.secret,
        local_steps=config.local_steps,
        local_sampling=config.local_sampling,
        proximal=config.proximal,
    )

"""JAX: the configuration of local training with JAX, and the trainer that it makes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Float32

from dpcomp.core.checks import check_type, missing_members, real_number, whole_number
from dpcomp.core.errors import named_error
from dpcomp.privacy import Poisson
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.training.jax.batches import Batches
from dpcomp.training.jax.client_level import ClientLevel
from dpcomp.training.jax.evaluation import Evaluation
from dpcomp.training.jax.example_level import ExampleLevel
from dpcomp.training.jax.parameters import Parameters
from dpcomp.training.jax.programs import Model
from dpcomp.training.jax.pure import check_pure
from dpcomp.training.jax.task import JaxTask
from dpcomp.training.schedule import Schedule, public_rate, rate_of
from dpcomp.training.trainer import Federation, LocalWork, validation_of
from dpcomp.wire.memory import ClientMemory
from dpcomp.wire.update import Update, with_learning_rate

CLOSED_OVER = "the arrays that the loss closes over are public"


@dataclass(frozen=True, kw_only=True)
class JAX:
    """Local training with JAX: SGD on all clients of a round as one compiled program, example-level by `vmap(grad)`.

    The task must be a `JaxTask`. What is charged follows from the pipeline: with `unit="example"` every local step is a
    release, with `unit="client"` the whole update is. Batches and noise are those of `PyTorch` with the same seeds. The
    program runs on JAX's default device; it is compiled in the first round, and again only where a batch or a cohort is
    larger than any before.

    Args:
        local_steps: The number of SGD steps that a client takes in a round. With `unit="example"` each is charged.
        learning_rate: The learning rate of the local steps: a number from 0 on, or a schedule over the rounds such as
            `Cosine`.
        momentum: The momentum of the local steps, in [0, 1). The momentum buffer starts at zero in every round.
        expected_batch_size: The public constant that divides the sum of a step's clipped gradients; used with
            `unit="example"` only, and refused with `unit="client"`. None: sampling rate × the task's population ÷
            clients.
        local_sampling: How a client draws the batches of its local steps; used with `unit="client"` only. No privacy
            depends on it. An empty batch is no step: clients with few examples need a larger rate. With
            `unit="example"` the pipeline's own `sampling` draws the batches.
        physical_batch_size: The number of examples in one pass; the last pass of a batch is filled with examples that
            count for nothing. Small passes stay in a processor's cache; give a GPU some hundreds. It changes results by
            rounding alone.

    Raises:
        TypeError, ValueError: A number lies outside its range.

    Examples:
        >>> from dpcomp.training.jax import JAX
        >>> JAX(local_steps=3, learning_rate=0.1).local_steps
        3
    """

    local_steps: int = 1
    learning_rate: float | Schedule = 0.5
    momentum: float = 0.0
    expected_batch_size: float | None = None
    local_sampling: Poisson = field(default=Poisson(0.1))
    physical_batch_size: int = 16

    def __post_init__(self):
        for name in ("local_steps", "physical_batch_size"):
            object.__setattr__(self, name, whole_number(getattr(self, name), f"JAX({name})", least=1))
        allowed = "a number from 0 on, or a schedule"
        if not isinstance(self.learning_rate, Schedule) and not (
            real_number(self.learning_rate, "JAX(learning_rate)", allowed) >= 0
        ):
            raise ValueError(f"JAX(learning_rate) is {self.learning_rate}: give a number from 0 on, or a schedule")
        if not 0 <= real_number(self.momentum, "JAX(momentum)", "a number in [0, 1)") < 1:
            raise ValueError(f"JAX(momentum) is {self.momentum}: give a number in [0, 1)")
        size, allowed = self.expected_batch_size, "a finite number above 0, or None"
        if size is not None and not 0 < real_number(size, "JAX(expected_batch_size)", allowed) < math.inf:
            raise ValueError(
                f"JAX(expected_batch_size) is {self.expected_batch_size}: it divides sums, so give a finite public "
                "number above 0, or None for the sampling rate × population ÷ clients"
            )
        sampling = self.local_sampling
        check_type(sampling, Poisson, f"JAX(local_sampling={sampling!r}): give dp.Poisson(rate)")

    def make_trainer(self, federation: Federation) -> "JaxTrainer":
        """Return the trainer of a federation.

        Raises:
            TypeError: The task lacks members of `JaxTask`, its parameters are not float32 arrays, its loss is no
                scalar, or a stage of the mechanism cannot be compiled.
            ValueError: `expected_batch_size` is given with `unit="client"`, or the simulation has probes.
            NotPrivate: The loss of an example could depend on more than the example (`dpcomp.training.jax.pure`).
        """
        return JaxTrainer(self, federation)


class JaxTrainer:
    """The clients' examples on JAX's default device, and the compiled programs that train and evaluate.

    Args:
        config: How clients train.
        federation: The task, pipeline, clients and seeds.
    """

    def __init__(self, config: JAX, federation: Federation):
        task, pipeline = federation.task, federation.pipeline
        if isinstance(task, type):
            raise TypeError(f"the task is the class {task.__name__}: give an instance of it, {task.__name__}(...)")
        if missing := missing_members(task, JaxTask):
            raise TypeError(
                f"JAX cannot train {task!r}, which has no {' and no '.join(missing)}: give a task with all members of "
                "dpcomp.training.jax.JaxTask"
            )
        if getattr(pipeline, "probes", ()):
            raise ValueError(
                "probes measure the clean values behind each release, which a compiled program hands to nobody: leave "
                "probes= out, or train with PyTorch"
            )
        by_example = pipeline.trust_model.releases_local_steps
        if config.expected_batch_size is not None and not by_example:
            raise ValueError(
                f"JAX(expected_batch_size={config.expected_batch_size:g}) beside a pipeline with "
                f"unit={pipeline.unit!r}: it divides the clipped sum of a local step, and only unit='example' has such "
                "sums. Leave it out"
            )
        self._learning_rate = config.learning_rate
        with jax.enable_x64(False):
            inputs, targets = (np.asarray(array) for array in task.train())
            if len(inputs) != len(targets) or not len(targets):
                raise ValueError(
                    f"train() of the task {task.name!r} returned {len(inputs)} inputs and {len(targets)} targets: give "
                    "as many of each, those of all clients together"
                )
            parts = federation.split(targets)
            parameters = Parameters(task.parameters(federation.seed.number))
            given = {"test": task.test(), "validation": validation_of(task)}
            examples, public = _on_device(inputs, targets), {}
            for name, held_out in given.items():
                if held_out is not None:
                    public[name] = _on_device(*held_out)

            def loss(tree: Any, example: Any, target: Any) -> Any:
                return task.loss(task.apply(tree, example), target)

            first = parameters.tree(jnp.asarray(parameters.first))
            _try(task, loss, first, examples)
            closes_over = check_pure(loss, first, (examples[0][0], examples[1][0]), examples)
        self.layout, self.initial_model = parameters.layout, parameters.first
        model = Model(parameters, loss, config.physical_batch_size)
        sampling = (pipeline.sampling or Poisson(1.0)) if by_example else config.local_sampling
        batches = Batches(sampling, parts, federation.secret, config.physical_batch_size)
        assumptions = [CLOSED_OVER] if closes_over else []
        if by_example:
            pipeline.refuse_untraceable()
            assumptions.append(f"the number of examples, {task.population:,}, is public")
            self._local: ExampleLevel | ClientLevel = ExampleLevel(
                model,
                examples,
                pipeline,
                batches,
                federation.secret,
                config.local_steps,
                config.expected_batch_size or federation.expected_batch_size,
                config.momentum,
            )
        else:
            self._local = ClientLevel(
                model, examples, pipeline, batches, federation.secret, config.local_steps, config.momentum
            )
        self.assumptions: tuple[str, ...] = tuple(assumptions)
        self.trained_examples = config.local_steps * sampling.rate * task.population / federation.clients
        self.tested_examples = sum(len(targets) for _, targets in public.values())
        self._evaluation = Evaluation(task, parameters, public)

    def train(self, client: int, start: Float32[np.ndarray, "d"], memory: ClientMemory, ledger: Ledger) -> Update:
        """Train one client for one round on its own examples, and return the change of its model.

        Args, results and errors are those of `Trainer.train`: the ledger is charged for the round before any noise is
        drawn, and the update is released unless the server is trusted.
        """
        return self.train_cohort([LocalWork(client=client, start=start, memory=memory, ledger=ledger)])[0]

    def train_cohort(self, work: Sequence[LocalWork]) -> Sequence[Update]:
        """Train clients for one round as one program, and return the change of each one's model.

        Args, results and errors are those of `CohortTrainer.train_cohort`. Where a client's charge is refused, no
        client trains, and no noise was drawn; the clients before it stay charged for the round, as a ledger takes
        nothing back.
        """
        if not work:
            return []
        rates = [rate_of(self._learning_rate, each.memory.address.round) for each in work]
        updates = self._local.train(work, rates)
        public = [public_rate(self._learning_rate, each.memory.address.round) for each in work]
        return [with_learning_rate(update, rate) for update, rate in zip(updates, public, strict=True)]

    def evaluate(self, model: Float32[np.ndarray, "d"]) -> Mapping[str, float]:
        """Return `test_loss` (a mean) of a model on the task's test set, and `test_<metric>` for each of its metrics.

        The metrics are the task's own (`dpcomp.training.metrics`), or the accuracy (a share) where targets are class
        numbers. Where the task holds out examples, `validation_…` are those on them.

        Raises:
            ValueError: Model, loss or metrics fail on these examples.
        """
        return self._evaluation.columns(model)


def _try(task: JaxTask, loss: Any, first: Any, examples: tuple[Any, Any]) -> None:
    """Raise where the model and the loss do not take an example.

    Raises:
        ValueError: Naming the shapes.
    """
    inputs, targets = examples
    try:
        jax.eval_shape(loss, first, inputs[0], targets[0])
    except NameError:  # of an axis, which is looked at with what else ties examples
        return
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"apply and loss of the task {task.name!r} fail on an example of train() with inputs {inputs.dtype} "
            f"{inputs.shape[1:]} and target {targets.dtype} {targets.shape[1:]}: {named_error(error)}. Let apply take "
            "the inputs of one example, without a batch axis"
        ) from error


def _on_device(inputs: Any, targets: Any) -> tuple[Any, Any]:
    """Return both arrays on JAX's default device, in its 32-bit types."""
    return jnp.asarray(inputs), jnp.asarray(targets)

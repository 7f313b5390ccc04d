"""Trainer: the seam between a simulated federation and the framework that trains its clients."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from dpcomp.core.layout import Layout
from dpcomp.core.randomness import PublicSeed, SecretSeed
from dpcomp.pipeline import Pipeline
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.wire.memory import ClientMemory
from dpcomp.wire.update import Update

Split = Callable[[Shaped[np.ndarray, "n ..."]], Sequence[Int64[np.ndarray, "_"]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Federation:
    """What a trainer is made for: the task, the pipeline, the clients and the seeds of one simulation.

    Args:
        task: The value that was given to `simulate`. Each trainer says what it asks of a task besides `name` and
            `population`; `PyTorch` asks for the members of `SupervisedTask`.
        pipeline: Clips and releases. With probes it is a pipeline that also shows its releases to them.
        clients: The number of clients; they are numbered from 0.
        split: Cuts the examples: from their (n, …) targets to the positions of each client's, in order of the clients,
            disjoint and complete. Class numbers are integers of shape (n,).
        seed: Public: first weights are drawn from it.
        secret: Where batches, noise and dropout are drawn from.
    """

    task: Any
    pipeline: Pipeline
    clients: int
    split: Split
    seed: PublicSeed
    secret: SecretSeed

    @property
    def expected_batch_size(self) -> float:
        """Sampling rate × public population ÷ clients: a divisor for sums over examples that depends on no data."""
        sampling = self.pipeline.sampling
        return (1.0 if sampling is None else sampling.rate) * self.task.population / self.clients


@runtime_checkable
class Trainer(Protocol):
    """Trains the clients of one federation, one after the other, and evaluates the server's model.

    **Privacy:** a trainer works on the private side. What `train` returns must be a function of the starting model and
    of values that `pipeline.release` (or `clip` and `noise`) gave for a permit of the ledger; batches must be drawn by
    `pipeline.sampling` from streams of `federation.secret`; divisors must be public constants. A client-level update
    under a trusted server is the one exception: it is returned clean, and the server charges, clips and adds the noise.
    """

    @property
    def layout(self) -> Layout:
        """The layers of the model, in the order of the flat vector of d coordinates."""
        ...

    @property
    def initial_model(self) -> Float32[np.ndarray, "d"]:
        """The public first model of server and clients."""
        ...

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the guarantee assumes of this trainer, such as the public divisor of its steps: clauses to print."""
        ...

    def train(self, client: int, start: Float32[np.ndarray, "d"], memory: ClientMemory, ledger: Ledger) -> Update:
        """Train one client for one round, and return the change of its model.

        Args:
            client: Its number, from 0.
            start: The model that it starts from.
            memory: Its memory; the update is made at `memory.address`.
            ledger: Its ledger, which is charged before any noise is drawn.

        Returns:
            The update, on `layout`; released, unless the server is trusted.

        Raises:
            BudgetExhausted: The address was charged before, or the budget does not allow the charge.
        """
        ...

    def evaluate(self, model: Float32[np.ndarray, "d"]) -> Mapping[str, float]:
        """Return columns for the row of a round, such as `test_accuracy`, measured on public data."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalWork:
    """What one client does in a round: the arguments of `Trainer.train`.

    Args:
        client: Its number, from 0.
        start: The model that it starts from, as a (d,) vector.
        memory: Its memory; the update is made at `memory.address`.
        ledger: The ledger that is charged for it before any noise is drawn.
    """

    client: int
    start: Float32[np.ndarray, "d"]
    memory: ClientMemory
    ledger: Ledger


@runtime_checkable
class CohortTrainer(Trainer, Protocol):
    """A trainer that trains all clients of a round as one program; `simulate` then calls this instead of `train`."""

    def train_cohort(self, work: Sequence[LocalWork]) -> Sequence[Update]:
        """Train clients for one round, and return the change of each one's model.

        Every charge is made before any noise is drawn.

        Args:
            work: What each client starts from.

        Returns:
            The updates, in the order of the work; each as `train` would return it.

        Raises:
            BudgetExhausted: An address was charged before, or the budget does not allow a charge.
        """
        ...


@runtime_checkable
class ParallelTrainer(Trainer, Protocol):
    """A trainer whose clients `simulate` may train in other processes: what a client's round costs is known before.

    The process that holds the ledger charges before the work is sent. The trainer of a worker process is made there,
    and the ledger that it gets allows this one charge.
    """

    @property
    def releases(self) -> int:
        """The number of steps of `pipeline.cost` that `train` charges at a client's address; 0 for a clean update."""
        ...


@runtime_checkable
class HoldsOut(Protocol):
    """What a task may have besides: examples that are held out of its training set, to choose settings by.

    `PyTorch` and `JAX` then report `validation_loss` and `validation_<metric>` beside those of the test set.

    **Privacy:** held-out examples are no client's: `train` does not return them, `population` does not count them, and
    no guarantee covers them. They are public, as the test set is.
    """

    def validation(self) -> Any:
        """Return public examples, as `test` does: (v, …) inputs and targets; None where nothing is held out."""
        ...


def validation_of(task: object) -> Any:
    """Return the examples that a task holds out, as its `validation` does; None if it holds out none."""
    return task.validation() if isinstance(task, HoldsOut) else None


@runtime_checkable
class CountsExamples(Protocol):
    """What a trainer may say besides: how much it trains and tests, from which `simulate` chooses when to evaluate."""

    @property
    def trained_examples(self) -> float:
        """The expected number of examples that a client trains on in a round, all steps together; of public numbers."""
        ...

    @property
    def tested_examples(self) -> int:
        """The number of public examples, of test and validation, on which `evaluate` measures."""
        ...


@runtime_checkable
class TrainerConfig(Protocol):
    """The part of a simulation that says how clients train: `simulate(..., trainer=PyTorch(local_steps=3))`."""

    def make_trainer(self, federation: Federation) -> Trainer:
        """Return the trainer of a federation. Called once, before the first round."""
        ...

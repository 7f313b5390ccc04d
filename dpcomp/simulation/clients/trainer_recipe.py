"""TrainerRecipe: what the trainer of a simulation is made of, here or in another process."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Shaped

from dpcomp.core.checks import missing_members
from dpcomp.core.randomness import PublicSeed, SecretSeed
from dpcomp.pipeline import Pipeline
from dpcomp.simulation.partition import ColumnPartition, Partition
from dpcomp.simulation.probes import Watched
from dpcomp.simulation.task import Task
from dpcomp.training.trainer import Federation, Trainer, TrainerConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainerRecipe:
    """What the trainer of a simulation is made of, but for the secret seed, which stays in its process.

    Args:
        trainer: How clients train.
        task: What is learned.
        pipeline: Mechanism and codec, with the probes that watch them.
        clients: The number of clients.
        partition: Cuts the examples among them.
        seed: The public seed.
    """

    trainer: TrainerConfig
    task: Task
    pipeline: Watched
    clients: int
    partition: Partition
    seed: PublicSeed

    def make(self, secret: SecretSeed) -> Trainer:
        """Return the trainer, once its first model fits its layout.

        Args:
            secret: Where batches, noise and dropout are drawn from.

        Raises:
            TypeError, ValueError: The task does not suit the trainer, or the model not the layout.
            NotPrivate: The model mixes examples.
        """
        _check_instance(self.trainer, TrainerConfig, "trainer", "PyTorch(local_steps=1)")
        _check_instance(self.partition, Partition, "partition", "IID() or Dirichlet(0.5)")
        made = self.trainer.make_trainer(
            Federation(
                task=self.task,
                pipeline=self.pipeline,
                clients=self.clients,
                split=self._split,
                seed=self.seed,
                secret=secret,
            )
        )
        model, size = made.initial_model, made.layout.size
        if (model.dtype, model.shape) != (np.float32, (size,)):
            raise ValueError(
                f"{self.trainer} made a first model of {model.dtype} and shape {model.shape}: its layout wants float32 "
                f"and shape ({size},)"
            )
        return made

    def _split(self, labels: Shaped[np.ndarray, "n ..."]) -> list[Int64[np.ndarray, "_"]]:
        n = len(labels)
        if isinstance(self.partition, ColumnPartition):
            labels = self.partition.column(self.task)
            if len(labels) != n:
                raise ValueError(
                    f"the column that {self.partition} parts by has {len(labels)} rows, and train() of the task "
                    f"{self.task.name!r} has {n} examples: give a row for each example"
                )
        parts = [np.asarray(part) for part in self.partition.part(labels, self.clients, self.seed)]
        parts = [part if len(part) else np.empty(0, np.int64) for part in parts]
        _check_form(parts, n, self.clients, self.partition)
        return _disjoint(parts, self.pipeline, self.partition)


def _check_instance(value: object, protocol: type, name: str, example: str) -> None:
    """Refuse a class, and what lacks members of a protocol."""
    if isinstance(value, type):
        raise TypeError(f"simulate({name}) is the class {value.__name__}: give an instance of it, such as {example}")
    if missing := missing_members(value, protocol):
        raise TypeError(f"simulate({name}={value!r}) has no {' and no '.join(missing)}: give one such as {example}")


def _check_form(parts: list[Shaped[np.ndarray, "..."]], n: int, clients: int, partition: Partition) -> None:
    """Refuse a partition of a user's own that gives other clients, or positions beyond the examples."""
    if len(parts) != clients:
        raise ValueError(f"{partition} gave parts for {len(parts)} clients, and the simulation has {clients}")
    for client, part in enumerate(parts):
        if part.dtype.kind != "i" or part.ndim != 1 or (len(part) and not 0 <= part.min() <= part.max() < n):
            raise ValueError(
                f"{partition} gave client {client} {part.dtype} positions of shape {part.shape}: give an ascending "
                f"array of whole numbers from 0 to {n - 1}, as np.flatnonzero does"
            )


def _disjoint(
    parts: list[Int64[np.ndarray, "_"]], pipeline: Pipeline, partition: Partition
) -> list[Int64[np.ndarray, "_"]]:
    """Return the parts of a partition, if the guarantee's unit lies with one client."""
    examples = np.concatenate(parts) if len(parts) else np.empty(0, np.int64)
    if pipeline.unit == "example" and len(np.unique(examples)) < len(examples):
        raise ValueError(
            f"{partition} gives an example to two clients: each pays for it alone, so the ε of the run would be too "
            "small. Give each example to one client"
        )
    return parts

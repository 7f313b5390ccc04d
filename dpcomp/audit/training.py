"""The door of a trainer: a client's local training, on its examples with the canary and without it."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dpcomp.audit.observations import Features, Observations, message_features, stacked
from dpcomp.core.checks import whole_number
from dpcomp.core.randomness import PublicSeed, SecretSeed
from dpcomp.pipeline import Pipeline
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.training.trainer import Federation, Trainer, TrainerConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """Runs of a client that trains, sends, and follows the broadcast, on its own examples with and without a canary.

    It goes through the seam that simulations use: the trainer draws batches, passes them through model and loss, clips,
    and releases. So a model that mixes examples, a loss that ties them, a loader that draws otherwise, and an optimiser
    that steps on clean values are all audited. An observer sees the client's payloads.

    Args:
        pipeline: Clips, releases and sends; the noise is at the client.
        trainer: How clients train, such as `PyTorch(...)`.
        without_canary: The task whose examples the client has.
        with_canary: The same with the canary, such as `AddedExample(task=..., example=..., target=...)`.
        rounds: The rounds of a run.
        seed: The public seed of every run: first weights and masks follow from it.

    Raises:
        ValueError: The server draws the noise: use `Serving`.
        TypeError, ValueError: `rounds` is not a whole number from 1 on.
    """

    pipeline: Pipeline
    trainer: TrainerConfig
    without_canary: Any
    with_canary: Any
    rounds: int = 1
    seed: PublicSeed = field(default_factory=lambda: PublicSeed(0))

    def __post_init__(self):
        object.__setattr__(self, "rounds", whole_number(self.rounds, "Training(rounds)", least=1))
        if self.pipeline.trust_model.noise_at == "server":
            raise ValueError("Training observes a client's payloads, but trust='server' sends them clean: use Serving")

    def __str__(self) -> str:
        name, rounds = type(self.trainer).__name__, self.rounds
        return f"{name} on {self.without_canary.name}, {rounds} round{'s' * (rounds > 1)}"

    def observe(self, present: bool, runs: int) -> Observations:
        """Train, as `Door.observe` says."""
        trainer = self._trainer_with_canary if present else self._trainer_without_canary
        return stacked([self._run(trainer) for _ in range(runs)])

    def _run(self, trainer: Trainer) -> Features:
        client = self.pipeline.init_client(trainer.layout, self.seed, client=0)
        server = self.pipeline.init_server(trainer.layout, self.seed)
        ledger, model = Ledger(), trainer.initial_model
        seen: dict[str, np.ndarray] = {}
        for place in range(self.rounds):
            update = trainer.train(0, model, client, ledger)
            payload, sent = self.pipeline.send(update, client)
            received, server = self.pipeline.receive(payload, server)
            seen |= message_features(self.pipeline.channel, payload, received, client, where=f"round {place}")
            client = sent
            if place + 1 < self.rounds:
                broadcast, server = self.pipeline.broadcast(received, server)
                client = self.pipeline.follow(broadcast, client)
                assert client.step is not None
                model = model + client.step.dense()
        return seen

    @cached_property
    def _trainer_with_canary(self) -> Trainer:
        return self._trainer(self.with_canary)

    @cached_property
    def _trainer_without_canary(self) -> Trainer:
        return self._trainer(self.without_canary)

    def _trainer(self, task: Any) -> Trainer:
        return self.trainer.make_trainer(
            Federation(
                task=task,
                pipeline=self.pipeline,
                clients=1,
                split=lambda labels: [np.arange(len(labels))],
                seed=self.seed,
                secret=SecretSeed(),
            )
        )

"""Federated rounds a second, with all that dpcomp does, beside loops without bytes or ledger.

A round trains 10 of 100 clients, each with 600 images of 28 × 28, by 19 private steps on batches of expected size 32;
dpcomp sends the top 1 % in 4 bits with error feedback and a range coder, and charges a ledger. Of a run the first three
rounds are left out, in which programs are compiled. Each model is evaluated on 10,000 images: dpcomp's when `simulate`
does so by default, those of the peers once a run.
"""

import functools
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

import dpcomp as dp
from benchmarks.harness.rows import Goal, Row, compared
from benchmarks.harness.turns import Effort, measure_in_turns, seconds
from benchmarks.peers.federation import FederationSettings, Images
from benchmarks.peers.rounds_opacus import opacus_rounds
from dpcomp.simulation import Fixed, Task, simulate
from dpcomp.training.pytorch import PyTorch
from dpcomp.training.trainer import TrainerConfig
from experiments.data.models import fashion_cnn

ROUNDS = 10
WARM_ROUNDS = 3
TEST_IMAGES = 10_000
JAX_BY_HAND, OPACUS = "JAX by hand, no bytes", "Opacus in a loop, no bytes"
FLOWER = "Flower, no privacy, float32"
PEERS = (OPACUS, JAX_BY_HAND, FLOWER)
LEAST_ROUNDS = {"PyTorch": 1.5, "JAX": 2.2}  # a second, by trainer


class ImageTask:
    """Ten classes of made-up images: a `SupervisedTask` for the CNN.

    Args:
        images: To train and evaluate on.
    """

    name = "images"

    def __init__(self, images: Images):
        self.images, self.population = images, len(images.labels)

    def train(self) -> tuple[Tensor, Tensor]:
        """Return the images and labels of all clients."""
        return torch.from_numpy(self.images.inputs), torch.from_numpy(self.images.labels)

    def test(self) -> tuple[Tensor, Tensor]:
        """Return the images and labels to evaluate on."""
        return torch.from_numpy(self.images.test_inputs), torch.from_numpy(self.images.test_labels)

    def model(self, seed: int) -> nn.Module:
        """Return the CNN."""
        return fashion_cnn(seed=seed)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return nn.functional.cross_entropy(outputs, targets)


def federated_rounds(effort: Effort) -> list[Row]:
    """Measure rounds a second, by trainer and peer."""
    settings = effort.size(FederationSettings(), FederationSettings(clients=10, together=2, local_steps=2))
    rounds = effort.size(ROUNDS, 2)
    images = Images.drawn(settings.clients * settings.examples, effort.size(TEST_IMAGES, 200))
    trainer = PyTorch(local_steps=settings.local_steps, learning_rate=settings.learning_rate)
    measures: dict[str, Callable[[], float]] = {
        "PyTorch": functools.partial(_simulated, ImageTask(images), trainer, settings, rounds),
        OPACUS: _by_loop(opacus_rounds(fashion_cnn(seed=0), images, settings), rounds),
    }
    if find_spec("jax") is not None:
        from benchmarks.peers.rounds_jax import jax_rounds
        from benchmarks.speed.jax_images import JaxImages
        from dpcomp.training.jax import JAX

        trainer = JAX(local_steps=settings.local_steps, learning_rate=settings.learning_rate)
        measures["JAX"] = functools.partial(_simulated, JaxImages(images), trainer, settings, rounds)
        weights = {name: part.numpy() for name, part in fashion_cnn(seed=0).state_dict().items()}
        measures[JAX_BY_HAND] = _by_loop(jax_rounds(weights, images, settings), rounds)
    if effort.full_size and find_spec("flwr") is not None and find_spec("ray") is not None:  # Ray starts in a minute
        from benchmarks.peers.rounds_flower import flower_rounds_a_second

        tested = len(images.test_labels)
        measures[FLOWER] = functools.partial(flower_rounds_a_second, settings, tested, rounds, WARM_ROUNDS)
    figures = measure_in_turns(measures, effort.turns)
    return [
        compared(
            f"rounds of {settings.together} clients, trainer {ours}",
            "rounds/s",
            figures[ours],
            peer,
            figures[peer],
            goal=Goal(of="figure", least=least) if peer == PEERS[0] else None,
            settings={"trainer": ours},
        )
        for ours, least in LEAST_ROUNDS.items()
        for peer in PEERS
        if ours in figures and peer in figures
    ]


def _simulated(task: Task, trainer: TrainerConfig, settings: FederationSettings, rounds: int) -> float:
    """Simulate, and return rounds a second after the warm ones."""
    pipeline = dp.Pipeline(
        mechanism=(dp.Clip(settings.clip_norm), dp.Gaussian(settings.noise_multiplier)),
        codec=dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4), entropy=dp.RangeCoder()),
        sampling=dp.Poisson(settings.rate),
    )
    with warnings.catch_warnings(action="ignore"):  # that nothing is learned
        run = simulate(
            task,
            pipeline,
            clients=settings.clients,
            rounds=rounds + WARM_ROUNDS,
            trainer=trainer,
            participation=Fixed(settings.together),
            progress=False,
        )
    return rounds / sum(row["seconds"] for row in run.rows[WARM_ROUNDS:])


def _by_loop(play: Callable[[int], object], rounds: int) -> Callable[[], float]:
    """Return what measures rounds a second of a peer, which has played its first round."""
    play(WARM_ROUNDS)
    return lambda: rounds / seconds(lambda: play(rounds))

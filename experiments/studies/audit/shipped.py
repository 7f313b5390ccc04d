"""Pipelines of dpcomp, to be audited: every kind of stage, codec, state, unit and trust."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

import dpcomp as dp
from dpcomp.audit import AddedExample, Blocks, ClaimOfReleases, Serving
from dpcomp.audit.training import Training
from dpcomp.sparsify.top_k_indices import top_k_indices
from dpcomp.training.pytorch import PyTorch
from experiments.studies.audit.case import Case

MECHANISM = (dp.Clip(1.0), dp.Gaussian(1.0))
LOUD = (dp.Clip(1.0), dp.Gaussian(0.4))  # where sampling amplifies: else nothing is seen in a few thousand runs
FOUR_BITS = dp.Uniform(4)


@dataclass(frozen=True)
class MovedMost:
    """Sends the coordinates that past broadcasts moved most: a support from released history."""

    fraction: float

    def initial_history(self, layout: dp.Layout) -> np.ndarray:
        """Return zeros."""
        return np.zeros(layout.size, np.float32)

    def update_history(self, history: np.ndarray, broadcast: np.ndarray, layout: dp.Layout) -> np.ndarray:
        """Return a decaying sum of squares."""
        return np.float32(0.5) * history + broadcast * broadcast

    def public_support(self, context: dp.PublicContext) -> dp.Listed:
        """Return the coordinates with the largest history."""
        assert context.history is not None
        return dp.Listed(top_k_indices(context.history, round(self.fraction * context.layout.size)))

    def select(self, vector: np.ndarray, candidates: object, context: dp.PublicContext) -> dp.Listed:
        """Return the same coordinates."""
        return self.public_support(context)


class Signs:
    """Sixteen examples of three inputs in two classes, and a linear model: a task that trains in a millisecond."""

    name, population = "signs", 16

    def train(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the examples."""
        inputs = torch.linspace(-1, 1, 48).reshape(16, 3)
        return inputs, (inputs[:, 0] > 0).long()

    def test(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the examples."""
        return self.train()

    def model(self, seed: int) -> torch.nn.Module:
        """Return a linear model with first weights of zero."""
        model = torch.nn.Linear(3, 2)
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
        return model

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy."""
        return torch.nn.functional.cross_entropy(outputs, targets)


UPDATE = 100.0 * (np.arange(8) < 2)[None]  # (1, 8) of the canary at a trusted server
OTHER_UPDATES = np.full((1, 2, 8), 0.1)  # of two other clients
CANARY = AddedExample(task=Signs(), example=[30.0, -30.0, 30.0], target=1)


def shipped_cases() -> Iterator[Case]:
    """Return the cases that keep their claims."""
    codecs = {
        "noise, float32": dp.Codec(),
        "noise, top-k, 4 bits": dp.Codec(sparsify=dp.TopK(0.25), quantize=FOUR_BITS),
        "noise, random k, 4 bits": dp.Codec(sparsify=dp.RandomK(0.5), quantize=FOUR_BITS),
        "noise, sign": dp.Codec(quantize=dp.Sign()),
        "noise, rotated": dp.Codec(quantize=dp.Rotated()),
        "noise, ternary": dp.Codec(quantize=dp.Ternary()),
        "noise, 4 bits, nearest": dp.Codec(quantize=dp.Uniform(4, rounding=dp.Nearest())),
        "noise, 4 bits, stochastic": dp.Codec(quantize=dp.Uniform(4, rounding=dp.Stochastic())),
        "noise, 4 bits, dithered": dp.Codec(quantize=dp.Uniform(4, rounding=dp.Dithered())),
        "noise, widths by water-filling": dp.Codec(quantize=dp.Uniform(dp.Waterfill(3)), entropy=dp.FixedWidth()),
    }
    for name, codec in codecs.items():
        yield blocks(name, dp.Pipeline(mechanism=MECHANISM, codec=codec))
    yield blocks("random k, noise, 4 bits", dp.Pipeline(mechanism=(dp.RandomK(0.5), *MECHANISM)))
    yield blocks("Poisson, noise, 4 bits", sampled(dp.Codec(quantize=FOUR_BITS)))
    top_k = dp.Codec(sparsify=dp.TopK(0.25), quantize=FOUR_BITS)
    yield blocks("noise, top-k, feedback, 3 rounds", dp.Pipeline(mechanism=MECHANISM, codec=top_k), rounds=3)
    sign = dp.Codec(quantize=dp.Sign())
    yield blocks("noise, sign, feedback, 3 rounds", dp.Pipeline(mechanism=MECHANISM, codec=sign), rounds=3)
    predicted = dp.Codec(predict=dp.LastBroadcast(), quantize=FOUR_BITS)
    yield blocks("noise, prediction, 3 rounds", dp.Pipeline(mechanism=MECHANISM, codec=predicted), rounds=3)
    history = dp.Pipeline(mechanism=MECHANISM, codec=dp.Codec(sparsify=MovedMost(0.5)), downlink=dp.Codec())
    yield blocks("noise, support of history, 3 rounds", history, rounds=3)
    client = dp.Pipeline(mechanism=MECHANISM, codec=top_k, unit="client")
    yield blocks("client-level, nobody trusted", client)
    yield serving("trusted server, all clients", trusted(None))
    yield serving("trusted server, Poisson cohort", trusted(dp.Poisson(0.5)))
    yield serving("trusted server, Poisson cohort, uninvited canary", trusted(dp.Poisson(0.5)), uninvited=True)
    yield serving("trusted server, errors as noise, Poisson cohort", shared_noise())
    yield training("DP-SGD, Poisson batches", sampled(dp.Codec(quantize=FOUR_BITS)), PyTorch(learning_rate=0.1))
    all_examples = dp.Pipeline(mechanism=MECHANISM, codec=top_k)
    yield training("DP-SGD, all examples", all_examples, PyTorch(learning_rate=0.1))


def sampled(codec: dp.Codec) -> dp.Pipeline:
    """Return an example-level pipeline on Poisson batches."""
    return dp.Pipeline(mechanism=LOUD, codec=codec, sampling=dp.Poisson(0.5))


def trusted(sampling: dp.Poisson | None) -> dp.Pipeline:
    """Return a client-level pipeline with a trusted server."""
    return dp.Pipeline(
        mechanism=MECHANISM if sampling is None else LOUD, sampling=sampling, unit="client", trust="server"
    )


def shared_noise() -> dp.Pipeline:
    """Return a trusted server's pipeline whose noise is the error of the clients' codecs."""
    return replace(
        trusted(dp.Poisson(0.5)),
        codec=dp.Codec(quantize=dp.ExactGaussian(cohort=3)),
        downlink=dp.Codec(),
        feedback=False,
    )


def blocks(name: str, pipeline: dp.Pipeline, rounds: int = 1) -> Case:
    """Return the case of a pipeline at the door of blocks."""
    door = Blocks.with_spikes(pipeline, coordinates=24, rounds=rounds)
    claim = ClaimOfReleases(cost=pipeline.cost, steps=rounds)
    return Case(name=name, kind="shipped", door=door, claim=claim)


def serving(name: str, pipeline: dp.Pipeline, uninvited: bool = False) -> Case:
    """Return the case of a trusted server; each message arrives twice and at once, as after a lost reply."""
    door = Serving(pipeline=pipeline, canaries=UPDATE, others=OTHER_UPDATES, copies=2, threads=4, uninvited=uninvited)
    return Case(name=name, kind="shipped", door=door, claim=ClaimOfReleases(cost=pipeline.cost))


def training(name: str, pipeline: dp.Pipeline, trainer: PyTorch) -> Case:
    """Return the case of a trainer's local step."""
    door = Training(pipeline=pipeline, trainer=trainer, without_canary=Signs(), with_canary=CANARY)
    return Case(name=name, kind="shipped", door=door, claim=ClaimOfReleases(cost=pipeline.cost))

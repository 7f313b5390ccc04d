"""Tasks as users write them, in all forms that examples may have."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import dpcomp as dp
from dpcomp.simulation import simulate
from dpcomp.training.pytorch import PyTorch
from dpcomp.training.trainer import Federation

CLEAN = dp.Pipeline(mechanism=dp.unsafe("tests look at the updates"), unit="client")
PRIVATE = dp.Pipeline(sampling=dp.Poisson(0.5), mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))

_drawn = np.random.default_rng(0)
INPUTS = _drawn.standard_normal((300, 6))
LABELS = (INPUTS[:, 0] + 0.3 * _drawn.standard_normal(300) > 0).astype(np.int64)


@dataclass(kw_only=True)
class Own:
    """A task made of its members; what is None is asked of nobody."""

    examples: Any = field(default_factory=lambda: (INPUTS, LABELS))
    public: Any = field(default_factory=lambda: (INPUTS, LABELS))
    make: Any = lambda: nn.Linear(6, 2)
    compare: Any = field(default_factory=lambda: functional.cross_entropy)
    name: str = "own"
    population: Any = 300

    def train(self):
        return self.examples

    def test(self):
        return self.public

    def model(self, seed):
        return self.make()

    def loss(self, outputs, targets):
        return self.compare(outputs, targets)


def trainer_of(task, pipeline=CLEAN):
    federation = Federation(
        task=task,
        pipeline=pipeline,
        clients=2,
        split=lambda labels: np.array_split(np.arange(len(labels)), 2),
        seed=dp.PublicSeed(0),
        secret=dp.SecretSeed(0),
    )
    return PyTorch(local_steps=2).make_trainer(federation)


def measured(task):
    """Return what the trainer measures of the first model."""
    trainer = trainer_of(task)
    return dict(trainer.evaluate(trainer.initial_model))


def run(task, pipeline=PRIVATE, **arguments):
    return simulate(task, pipeline, **{"clients": 2, "rounds": 1, "delta": 1e-4, "progress": False} | arguments)


class Said(nn.Module):
    """Outputs that a test chose, whatever the weights."""

    def __init__(self, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("outputs", outputs)

    def forward(self, positions):
        return self.outputs[positions.flatten().long()] + self.weight


def saying(outputs, targets, **members):
    """Return a task whose model gives these outputs for its public examples."""
    positions = torch.arange(len(targets))[:, None]
    return Own(examples=(positions, targets), public=(positions, targets), make=lambda: Said(outputs), **members)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(4, 2)

    def forward(self, a, b):
        return self.first(a) + self.second(b)


class Bag(nn.Module):
    """The mean of the embeddings of the tokens; token 0 is padding."""

    def __init__(self, *, masked=True):
        super().__init__()
        self.embedding, self.output, self.masked = nn.Embedding(9, 4), nn.Linear(4, 2), masked

    def forward(self, tokens):
        mask = (tokens > 0).unsqueeze(-1).float() if self.masked else torch.ones(*tokens.shape, 1)
        return self.output((self.embedding(tokens) * mask).sum(1) / mask.sum(1).clamp(min=1))


def sentences(count=60):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [(torch.randint(1, 9, (length,), generator=generator), length % 2) for length in lengths]


@dataclass(kw_only=True)
class Sentences(Own):
    examples: Any = field(default_factory=sentences)
    public: Any = field(default_factory=sentences)
    make: Any = Bag
    population: Any = 60
    width: int = 0  # of a batch; 0: as long as its longest example

    def collate(self, examples):
        tokens = nn.utils.rnn.pad_sequence([tokens for tokens, _ in examples], batch_first=True)
        padded = functional.pad(tokens, (0, max(0, self.width - tokens.shape[1])))
        return padded, torch.tensor([label for _, label in examples])


def single_forms():
    inputs, labels = torch.from_numpy(INPUTS).float(), torch.from_numpy(LABELS)
    return {
        "tensors": (inputs, labels),
        "arrays of 64 bits": (INPUTS, LABELS),
        "a list of two arrays": [INPUTS, LABELS.astype(np.int32)],
        "a Dataset": TensorDataset(inputs, labels),
        "a list of examples": list(zip(inputs, LABELS.tolist(), strict=True)),
        "read-only arrays": (np.broadcast_to(INPUTS, INPUTS.shape), LABELS),
    }


def double_forms():
    inputs, labels = torch.from_numpy(INPUTS).float(), torch.from_numpy(LABELS)
    a, b = inputs[:, :2], inputs[:, 2:]
    return {
        "a tuple": ((a, b), labels),
        "a triple": (a, b, labels),
        "a dict by name": ({"b": b, "a": a}, labels),
        "a dict with labels": {"labels": labels, "a": a, "b": b},
        "a Dataset of dicts": [
            {"a": x, "b": y, "labels": label} for x, y, label in zip(a, b, LABELS.tolist(), strict=True)
        ],
    }

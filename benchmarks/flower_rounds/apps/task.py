"""What all apps have in common: made-up images of a node, the model, and how the server notes when a round ended."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import ArrayRecord, MetricRecord
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.data.models import fashion_cnn

EXAMPLES, BATCH, CLIP_NORM, NOISE_MULTIPLIER, LEARNING_RATE = 2560, 256, 1.0, 1.0, 0.1
CLIENTS, ROUNDS = int(os.environ["ROUNDS_CLIENTS"]), int(os.environ["ROUNDS_ROUNDS"])
STEPS = EXAMPLES // BATCH  # a round is one pass
TERMS = Path(__file__).with_name("federation.toml")
loss_of = nn.CrossEntropyLoss()


def network() -> nn.Module:
    """Make the model: 26,010 parameters, the same first weights at all ends."""
    return fashion_cnn(seed=0)


def data_of(node: int) -> TensorDataset:
    """Make a node's images and labels."""
    stream = torch.Generator().manual_seed(node)
    return TensorDataset(
        torch.rand(EXAMPLES, 1, 28, 28, generator=stream), torch.randint(10, (EXAMPLES,), generator=stream)
    )


def loader_of(node: int) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Return shuffled batches of a node's examples."""
    return DataLoader(data_of(node), batch_size=BATCH, shuffle=True)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of a node."""
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[tuple[torch.Tensor, ...]]) -> None:
    """Train for one pass."""
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        if len(images):
            loss_of(model(images), labels).backward()
        optimizer.step()


def noting(path: Path) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Return an `evaluate_fn` that writes when it was called, after each round."""
    ends: list[float] = []

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        ends.append(time.time())
        path.write_text(json.dumps(ends))
        return MetricRecord({"round": number})

    return evaluate

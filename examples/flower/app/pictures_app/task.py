"""The task of the federation: its data, its model, its training loop, and the terms that all ends agree on."""

import os
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import dpcomp as dp
from dpcomp.lab.tasks import digits
from dpcomp.terms import FederationTerms
from dpcomp.training.pytorch.rows.parameters import layout_of, read

CLIENTS, ROUNDS, STEPS, LEARNING_RATE = 3, int(os.environ.get("ROUNDS", "20")), 5, 2.0
TERMS = Path(__file__).with_name("federation.toml")
if os.environ.get("TASK") == "fashion_mnist":
    from experiments.data.tasks.fashion_mnist import task

    TASK, SAMPLING = task(), 0.0256
else:
    TASK, SAMPLING = digits(), 0.1
EXPECTED_BATCH_SIZE = SAMPLING * TASK.population / CLIENTS  # public: no count of examples leaves a node
loss_of = nn.CrossEntropyLoss()


def network():
    return TASK.model(0)  # the first weights are the same at all ends


def agree():
    """Make the terms, once; the file goes to all nodes with the app."""
    pipeline = dp.Pipeline(
        sampling=dp.Poisson(SAMPLING),
        mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
        codec=dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4)),
    )
    FederationTerms.agree(
        pipeline,
        layout_of(network()),
        read(network()),
        rounds=ROUNDS,
        steps=STEPS,
        clients=CLIENTS,
        learning_rate=LEARNING_RATE,
        least_updates=2,
        round_seconds=120.0,
    ).write(TERMS)


def data_of(node):
    images, labels = TASK.train()
    return TensorDataset(images[node::CLIENTS], labels[node::CLIENTS])


def train(model, optimizer, loader):
    for images, labels in loader:
        optimizer.zero_grad()
        loss_of(model(images), labels).backward()
        optimizer.step()


def accuracy(model):
    images, labels = TASK.test()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())

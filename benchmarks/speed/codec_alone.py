"""The codec alone: bytes and time of `codec.compress` and `codec.decompress`, beside other compressors.

Two real gradients: of the CNN with 26,010 parameters on Fashion-MNIST, and of a ResNet-18 with 11,173,962 on CIFAR-10,
each after a few steps of plain SGD. An error is ‖decoded − gradient‖² ÷ ‖gradient‖², without error feedback.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

import dpcomp as dp
from benchmarks.harness.rows import Row, compared
from benchmarks.harness.turns import Effort, take_turns
from benchmarks.peers.compressors import Compressor, dense_peers, sparse_peers
from dpcomp.core.layout import Layout
from dpcomp.training.pytorch.rows.parameters import layout_of
from experiments.data.models import fashion_cnn, resnet18_group_norm
from experiments.data.tasks.cifar10 import task as cifar10
from experiments.data.tasks.fashion_mnist import task as fashion_mnist

TOP = 0.01
SPARSE = dp.Codec(sparsify=dp.TopK(TOP), quantize=dp.Uniform(4))
DENSE = dp.Codec(quantize=dp.Uniform(8))
STEPS, BATCH, LEARNING_RATE = 5, 32, 0.05

Vector = Float32[np.ndarray, "d"]


def codec_alone(effort: Effort) -> list[Row]:
    """Measure a sparse and a dense codec on both gradients."""
    rows: list[Row] = []
    models = [(fashion_cnn, fashion_mnist)]
    if effort.full_size:
        models.append((resnet18_group_norm, cifar10))
    for make, task in models:
        inputs, targets = task().train()
        layout, gradient = real_gradient(make(seed=0), inputs, targets)
        sparse = _ours("top 1 % in 4 bits", SPARSE, layout, gradient)
        dense = _ours("8 bits", DENSE, layout, gradient)
        rows += _rows(sparse, list(sparse_peers(layout, TOP)), gradient, effort)
        rows += _rows(dense, list(dense_peers()), gradient, effort)
    return rows


def real_gradient(module: torch.nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Layout, Vector]:
    """Take a few steps of plain SGD, and return the layout and the gradient of the next one."""
    optimizer, rng = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE), np.random.default_rng(0)
    for step in range(STEPS + 1):
        batch = torch.from_numpy(rng.choice(len(inputs), BATCH, replace=False))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs[batch]), targets[batch]).backward()
        if step < STEPS:
            optimizer.step()
    parts = [parameter.grad.reshape(-1) for parameter in module.parameters() if parameter.grad is not None]
    return layout_of(module), torch.cat(parts).numpy().copy()


def _ours(name: str, codec: dp.Codec, layout: Layout, gradient: Vector) -> Compressor:
    """Return a codec on the gradient by layer, as a state dict has it; decoded arrays are joined for the error."""
    named = {
        layer: gradient[start:stop].reshape(shape)
        for (layer, shape), (start, stop) in zip(layout.shapes, pairwise(layout.edges.tolist()), strict=True)
    }
    return Compressor(
        name=name,
        compress=lambda _: codec.compress(named),
        decompress=lambda payload: np.concatenate([part.ravel() for part in codec.decompress(payload, named).values()]),
    )


def _rows(ours: Compressor, peers: list[Compressor], gradient: Vector, effort: Effort) -> Iterator[Row]:
    """Give rows of bytes, of compression and of decompression, with a line for each peer."""
    every = (ours, *peers)
    payloads = {one.name: one.compress(gradient) for one in every}
    errors = {one.name: _error(one.decompress(payloads[one.name]), gradient) for one in every}
    titles = {name: f"{name}, error {error:.2g}" if error else name for name, error in errors.items()}
    settings = {"parameters": len(gradient), "errors": errors}
    d = f"{len(gradient):,} values"
    for peer in peers:
        sizes = [float(len(payloads[one.name])) for one in (ours, peer)]
        what = f"bytes of {d}: {titles[ours.name]}"
        yield compared(what, "bytes", sizes[:1], titles[peer.name], sizes[1:], settings=settings)
    compressing = {one.name: lambda one=one: one.compress(gradient) for one in every}
    decompressing = {one.name: lambda one=one: one.decompress(payloads[one.name]) for one in every}
    for verb, works in (("compress", compressing), ("decompress", decompressing)):
        times = {name: [1e3 * each for each in turns] for name, turns in take_turns(works, effort).items()}
        for peer in peers:
            what = f"{verb} {d}: {titles[ours.name]}"
            yield compared(what, "ms", times[ours.name], titles[peer.name], times[peer.name], settings=settings)


def _error(decoded: Vector, gradient: Vector) -> float:
    lost, whole = (np.sum(np.square(part, dtype=np.float64)) for part in (decoded - gradient, gradient))
    return float(f"{lost / whole:.3g}")

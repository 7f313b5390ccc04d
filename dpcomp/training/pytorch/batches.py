"""Poisson batches for a DataLoader: drawn in secret, at a public rate, and sometimes empty."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dpcomp.core.address import Address
from dpcomp.privacy import Poisson
from dpcomp.training.pytorch.private_optimizer import PrivateOptimizer


class PoissonBatches(Sampler[list[int]]):
    """A batch sampler whose batches hold each example with probability `sampling.rate`, independently.

    Each pass draws fresh batches. A pass that begins discards what an unfinished one left in the optimiser. Works under
    Opacus' `BatchMemoryManager`.

    Args:
        n: The number of examples.
        sampling: The public rate.
        steps: The number of batches in a pass.
        optimizer: Its open round places the draws, which come from its secret seed.

    Raises:
        BudgetExhausted: As a pass begins, no round is open.
    """

    def __init__(self, n: int, sampling: Poisson, steps: int, optimizer: PrivateOptimizer):
        self._n, self._sampling, self._steps, self._optimizer = n, sampling, steps, optimizer
        self._address: Address | None = None
        self._passes = 0

    def __iter__(self) -> Iterator[list[int]]:
        self._optimizer.discard()
        place = self._optimizer.address
        self._passes = self._passes + 1 if place == self._address else 0
        self._address = place
        for step in range(self._passes * self._steps, (self._passes + 1) * self._steps):
            stream = self._optimizer.secret.stream("sample", place.run, place.client, place.round, step)
            yield self._sampling.draw(self._n, stream).tolist()

    def __len__(self) -> int:
        return self._steps


def poisson_loader(dataset: Dataset, optimizer: PrivateOptimizer, *, steps: int) -> DataLoader:
    """Return a DataLoader whose batches are drawn as the optimiser's pipeline is charged for.

    Each example is in a batch with probability `pipeline.sampling.rate`, so batches differ in size. An empty batch has
    tensors of length 0 and must be stepped like any other: it releases pure noise.

    Args:
        dataset: A map-style dataset of one client's examples.
        optimizer: Its open round places the draws.
        steps: The number of batches in a pass; as many steps must be charged.

    Returns:
        A loader to iterate over once a round.
    """
    n = len(dataset)  # pyright: ignore[reportArgumentType]
    sampling = optimizer.pipeline.sampling or Poisson(1.0)
    batches = PoissonBatches(n, sampling, steps, optimizer)
    # Without a generator of its own a DataLoader draws from torch's global one.
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate_or_empty(dataset), generator=torch.Generator())


def collate_or_empty(dataset: Dataset) -> Callable[[list[Any]], Any]:
    """Return torch's default collate function, extended to no examples: that gives tensors of length 0."""

    def collate(examples: list[Any]) -> Any:
        return default_collate(examples) if examples else _cut(default_collate([dataset[0]]))

    return collate


def _cut(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch[:0]
    if isinstance(batch, Mapping):
        return {key: _cut(value) for key, value in batch.items()}
    if batch and isinstance(batch[0], (str, bytes)):
        return type(batch)()
    parts = map(_cut, batch)
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)

"""Poisson batches for a DataLoader: secret draws at a public rate, empty ones included."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dpcomp.core.address import Address
from dpcomp.privacy import Poisson
from dpcomp.training.pytorch.private_optimizer import PrivateOptimizer


class PoissonBatches(Sampler[list[int]]):
    """`steps` batches in which each of n examples stands with probability `rate`.

    A new pass discards what a broken-off one left in the optimiser. Works under `BatchMemoryManager`.

    Raises:
        BudgetExhausted: as a pass begins, the optimiser has no round open.
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
    """A DataLoader of `steps` Poisson batches a pass at the pipeline's rate; an empty one has tensors of length 0."""
    n = len(dataset)  # pyright: ignore[reportArgumentType]
    sampling = optimizer.pipeline.sampling or Poisson(1.0)
    batches = PoissonBatches(n, sampling, steps, optimizer)
    # Without a generator of its own a DataLoader draws from torch's global one.
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate_or_empty(dataset), generator=torch.Generator())


def collate_or_empty(dataset: Dataset) -> Callable[[list[Any]], Any]:
    """torch's default collate, which for no examples yields what one example yields, cut to length 0."""

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

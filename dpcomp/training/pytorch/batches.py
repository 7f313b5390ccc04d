"""Poisson batches for a DataLoader: drawn in secret, at a public rate, and sometimes empty."""

import os
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset, default_collate

from dpcomp.core.address import Address
from dpcomp.core.errors import NotPrivate
from dpcomp.core.randomness import SecretSeed
from dpcomp.privacy import Poisson
from dpcomp.training.pytorch.checks.origins import Traced
from dpcomp.training.pytorch.checks.repeated_examples import refuse_repeated_examples
from dpcomp.training.pytorch.collation import Collate, collated
from dpcomp.training.pytorch.draws import Draws, Place, delivered
from dpcomp.training.pytorch.private_optimizer import PrivateOptimizer
from dpcomp.training.pytorch.rows.generators import lent_generators, unseeded_by_data
from dpcomp.training.pytorch.rows.structures import emptied


class PoissonBatches(Sampler[list[int]]):
    """A batch sampler whose batches hold each example with probability `sampling.rate`, independently.

    A batch is a list of tickets, which name the draw and the example. Each pass draws fresh batches. A pass that begins
    discards what an unfinished one left in the optimiser; a batch among it that the script had closes the round. Works
    under Opacus' `BatchMemoryManager`.

    Args:
        dataset: The examples.
        sampling: The public rate.
        steps: The number of batches in a pass.
        optimizer: Its open round places the draws, which come from its secret seed.

    Raises:
        BudgetExhausted: As a pass begins, no round is open.
        NotPrivate: The data set has another length than it had, or an example is behind several of its items; in the
            pass, another example is behind an item than when it began.
    """

    def __init__(self, dataset: "Ticketed", sampling: Poisson, steps: int, optimizer: PrivateOptimizer):
        self._dataset, self._sampling, self._steps, self._optimizer = dataset, sampling, steps, optimizer
        self._address: Address | None = None
        self._passes = 0
        self.tells_deliveries = False  # of the pass that begins next

    def __iter__(self) -> Iterator[list[int]]:
        self._optimizer.discard_all()
        self._dataset.trace()  # its indices may have been written since
        self._optimizer.draws.deliveries_are_told, self.tells_deliveries = self.tells_deliveries, False
        place = self._optimizer.address
        self._passes = self._passes + 1 if place == self._address else 0
        self._address = place
        for step in range(self._passes * self._steps, (self._passes + 1) * self._steps):
            stream = self._optimizer.secret.stream("sample", place.run, place.client, place.round, step)
            self._dataset.refuse_other_length()
            chosen = self._sampling.draw(len(self._dataset), stream).tolist()
            yield self._optimizer.draws.draw(chosen, len(self._dataset))

    def __len__(self) -> int:
        return self._steps


class Ticketed(Dataset):
    """A data set whose examples are asked for by ticket, and come with it.

    **Privacy:** tickets name positions in a data set of fixed length. In one that became shorter, two tickets of a draw
    would name the same example, which would count twice; so would those of a `Subset` whose indices were written in a
    pass. What the data set draws from the global generators of torch, NumPy and Python, as augmentations do, comes from
    the secret: of numbers that are known, those of an example would go by how many examples stand before it.

    Args:
        dataset: A map-style data set.
        number: What `SecretSeed.number_for_workers` returned, since the secret itself stays in its process.
        place: Where the draws of the open round stand.
    """

    def __init__(self, dataset: Dataset, number: int | None, place: Place):
        self.dataset = dataset
        self._n = len(dataset)  # pyright: ignore[reportArgumentType]
        self._number, self._place = number, place
        self._traced: tuple[int, Traced] | None = None  # and in which process

    def __len__(self) -> int:
        return self._n

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_traced": None}

    def trace(self) -> Traced:
        """Refuse repeated examples, and hold later draws in this process to the examples behind the items now."""
        refuse_repeated_examples(self.dataset)
        self._traced = os.getpid(), Traced(self.dataset)
        return self._traced[1]

    def __getitem__(self, ticket: int) -> tuple[int, Any]:
        return self.__getitems__([ticket])[0]

    def __getitems__(self, tickets: list[int]) -> list[tuple[int, Any]]:
        """Return the examples of a micro-batch with their tickets, as torch's loader asks for them.

        Raises:
            NotPrivate: The data set has another length than it had, or seeds a global generator; or another example is
                behind an item than when the pass began.
        """
        if not tickets:
            return []
        traced, positions = self._traced_here(), [ticket % self._n for ticket in tickets]
        if type(self.dataset) is TensorDataset:  # runs no code of the user, so it draws nothing
            examples = [self._example(ticket) for ticket in tickets]
        else:
            draw, position = divmod(tickets[0], self._n)
            lent = lent_generators(SecretSeed(self._number), "examples", *self._place.of(draw), position)
            with lent, unseeded_by_data():
                examples = [self._example(ticket) for ticket in tickets]
        traced.refuse_other(positions)
        return examples

    def _traced_here(self) -> Traced:
        """Return the examples behind the items when the pass began, or when this worker process loads the first."""
        if self._traced is None or self._traced[0] != os.getpid():
            return self.trace()
        return self._traced[1]

    def _example(self, ticket: int) -> tuple[int, Any]:
        self.refuse_other_length()
        return ticket, self.dataset[ticket % self._n]

    def refuse_other_length(self) -> None:
        """Refuse a data set that grew or shrank.

        Raises:
            NotPrivate: It has another length than it had.
        """
        now = len(self.dataset)  # pyright: ignore[reportArgumentType]
        if now != self._n:
            raise NotPrivate(
                f"the data set has {now} examples, and had {self._n} when its loader was made: draws name positions, "
                "so an example could count several times, or never. Call make_private again for the new data set"
            )


class Delivery:
    """A collate function for tickets and examples: it notes what was loaded for which draw.

    **Privacy:** one example of each batch is collated alone, too, as `collated` does it, in whichever process that is.

    Args:
        dataset: The data set, whose first example shows the form of a batch without any.
        collate: Makes a batch of one example or more.
        key: Of the draws.
    """

    def __init__(self, dataset: Dataset, collate: Collate, key: str):
        self._collate, self._empty, self._key = collate, CollateOrEmpty(dataset, collate), key

    def __call__(self, ticketed: list[tuple[int, Any]]) -> Any:
        """Return the batch of some examples, and note that it came."""
        tickets, examples = [ticket for ticket, _ in ticketed], [example for _, example in ticketed]
        if not examples:
            return delivered(self._key, tickets, self._empty([]))
        return delivered(self._key, tickets, *collated(self._collate, examples))


class CollateOrEmpty:
    """A collate function, extended to no examples: that gives a batch of the same form, with tensors of length 0.

    Args:
        dataset: Its first example shows the form.
        collate: Makes a batch of one example or more.
    """

    def __init__(self, dataset: Dataset, collate: Collate):
        self._dataset, self._collate = dataset, collate

    def __call__(self, examples: list[Any]) -> Any:
        """Return the batch of some examples or none."""
        return self._collate(examples) if examples else emptied(self._collate([self._dataset[0]]))


class PoissonLoader(DataLoader):
    """A DataLoader of tickets that says which batches the script has, and did not only prefetch.

    Args:
        dataset: The examples.
        batches: The sampler.
        draws: Those of the optimiser.
        **options: What else a DataLoader takes.
    """

    def __init__(self, dataset: Ticketed, batches: PoissonBatches, draws: Draws, **options: Any):
        super().__init__(dataset, batch_sampler=batches, **options)
        self._batches, self._draws = batches, draws

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._batches.tells_deliveries = True
        for batch in super().__iter__():
            self._draws.deliver()
            yield batch


def poisson_loader(
    dataset: Dataset,
    optimizer: PrivateOptimizer,
    *,
    steps: int,
    collate_fn: Collate | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    multiprocessing_context: str | None = None,
) -> DataLoader:
    """Return a DataLoader whose batches are drawn as the optimiser's pipeline is charged for; `make_private` calls it.

    Each example is in a batch with probability `pipeline.sampling.rate`, so batches differ in size. An empty batch has
    tensors of length 0 and must be stepped like any other: it releases pure noise. A step after a batch that was given
    up is refused.

    Args:
        dataset: A map-style dataset of one client's examples.
        optimizer: Its open round places the draws, and its steps take them.
        steps: The number of batches in a pass; as many steps must be charged.
        collate_fn: Makes a batch of one example or more; None for torch's default.
        num_workers: The processes that load examples; 0 loads in this one.
        pin_memory: Whether batches lie in pinned memory, for copies to a GPU.
        multiprocessing_context: How workers start, such as "spawn"; None for torch's default.

    Returns:
        A loader to iterate over once a round.
    """
    number = optimizer.secret.number_for_workers("examples")
    ticketed = Ticketed(dataset, number, optimizer.draws.place)
    sampling = optimizer.pipeline.sampling or Poisson(1.0)
    return PoissonLoader(
        ticketed,
        PoissonBatches(ticketed, sampling, steps, optimizer),
        optimizer.draws,
        collate_fn=Delivery(dataset, collate_fn or default_collate, optimizer.draws.key),
        num_workers=num_workers,
        pin_memory=pin_memory,
        multiprocessing_context=multiprocessing_context,
        # Each pass draws the seeds of its workers there, which data sets may ask for: get_worker_info().seed.
        generator=optimizer.worker_seeds,
    )

"""Draws: tokens for what the sampler drew, one a step, and the batches that were loaded for them."""

import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dpcomp.core.errors import NotPrivate
from dpcomp.training.pytorch.structures import mapped, tensors

OTHER_LOADER = (
    "a step takes a batch that the sampler drew for it. Iterate over the loader of make_private; where no sampling is "
    "charged, over optimizer.batches(your loader)"
)

# A batch that a worker process loaded arrives by being unpickled, which knows no optimiser: the number of its draws
# finds them.
_IN_THIS_PROCESS: "WeakValueDictionary[str, Draws]" = WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """The part of a drawn batch that one `step()` takes in.

    Args:
        tickets: A ticket an example, in order.
        batch: A copy of what the loader yielded, from when it arrived; None if no example was drawn.
        yielded: The tensors that it yielded, which the script has.
        versions: How often each of them had been written when it arrived.
    """

    tickets: tuple[int, ...]
    batch: Any = None
    yielded: tuple[Tensor, ...] = ()
    versions: tuple[int, ...] = ()

    @property
    def n(self) -> int:
        """The number of examples that were drawn, each with a row of its own."""
        return len(self.tickets)

    def refuse_written(self) -> None:
        """Refuse a batch of which a tensor was written after it was loaded.

        Values are compared too, since a write through `.data` or a NumPy view counts as no new version.

        Raises:
            NotPrivate: A tensor was written, so its rows may be those of other examples.
        """
        same = all(map(same_values, self.yielded, tensors(self.batch)))
        if not same or tuple(part._version for part in self.yielded) != self.versions:
            raise NotPrivate(
                "a tensor of the batch was changed in place after it was loaded, so its rows may no longer be those of "
                "the examples that were drawn. Change examples in the data set, in collate_fn or in the model"
            )


@dataclass(eq=False)
class _Draw:
    waiting: deque[int] = field(default_factory=deque)


class Draws:
    """The draws that wait for their steps: the sampler adds them in order, and each logical step takes one.

    **Privacy:** amplification by sampling holds for batches that the charged sampler drew; a step without a draw, on
    other examples than were drawn, on some of them twice or on some of them not is refused (PRIVACY_RULES hazards 30
    and 33).
    """

    def __init__(self):
        self.key = uuid.uuid4().hex
        self._serial = 0
        self._draws: deque[_Draw] = deque()
        self._arrived: dict[int, MicroBatch] = {}
        _IN_THIS_PROCESS[self.key] = self

    def __reduce__(self):
        raise TypeError("draws stay in the process that made them")

    def draw(self, positions: Iterable[int], population: int) -> list[int]:
        """Add a draw.

        Args:
            positions: Of the examples in the data set.
            population: The length of the data set.

        Returns:
            A ticket an example: a number that tells its draw, whose remainder by the population is its position.
        """
        self._serial += 1
        tickets = [self._serial * population + int(position) for position in positions]
        self._draws.append(_Draw(deque(tickets)))
        return tickets

    def arrive(self, tickets: Sequence[int], batch: Any) -> None:
        """Note the batch that was loaded for some tickets."""
        if tickets:
            yielded = tuple(tensors(batch))
            versions = tuple(part._version for part in yielded)
            self._arrived[tickets[0]] = MicroBatch(tuple(tickets), mapped(Tensor.clone, batch), yielded, versions)

    def peek(self) -> MicroBatch:
        """Return the micro-batch that the next `step()` takes in; it stays in the queue.

        Raises:
            NotPrivate: No draw waits, or its batch was not loaded.
        """
        if not self._draws:
            raise NotPrivate(f"no batch was drawn for this step: {OTHER_LOADER}")
        waiting = self._draws[0].waiting
        if not waiting:
            return MicroBatch(())
        micro_batch = self._arrived.get(waiting[0])
        if micro_batch is None or tuple(waiting)[: micro_batch.n] != micro_batch.tickets:
            raise NotPrivate(f"the batch that was drawn for this step was never loaded: {OTHER_LOADER}")
        return micro_batch

    def take(self, micro_batch: MicroBatch) -> bool:
        """Take a micro-batch out of the queue, and return whether its draw is complete."""
        draw = self._draws[0]
        for ticket in micro_batch.tickets:
            self._arrived.pop(ticket, None)
            draw.waiting.popleft()
        if not draw.waiting:
            self._draws.popleft()
        return not draw.waiting

    def drop(self) -> None:
        """Forget the draw whose step is next."""
        if self._draws:
            for ticket in self._draws.popleft().waiting:
                self._arrived.pop(ticket, None)

    def clear(self) -> None:
        """Forget all draws; their steps can no longer be taken."""
        self._draws.clear()
        self._arrived.clear()


@dataclass(frozen=True, eq=False)
class Parcel:
    """A batch on its way from a worker process; unpickling it gives the batch, and notes its arrival."""

    key: str
    tickets: tuple[int, ...]
    batch: Any

    def __reduce__(self):
        return _arrived, (self.key, self.tickets, self.batch)


def _arrived(key: str, tickets: tuple[int, ...], batch: Any) -> Any:
    if (draws := _IN_THIS_PROCESS.get(key)) is not None:
        draws.arrive(tickets, batch)
    return batch


def delivered(key: str, tickets: Sequence[int], batch: Any) -> Any:
    """Note that a batch was loaded, in whichever process that was, and return what the loader hands on."""
    if get_worker_info() is not None:
        return Parcel(key, tuple(tickets), batch)
    return _arrived(key, tuple(tickets), batch)


def same_values(given: Tensor, drawn: Tensor) -> bool:
    """Return whether a tensor holds the values of a drawn one, example by example, on any device and in any shape."""
    if given.numel() != drawn.numel() or given.shape[:1] != drawn.shape[:1]:
        return False
    drawn = drawn.to(device=given.device, dtype=given.dtype).reshape(given.shape)
    given = given.detach()
    return torch.equal(given, drawn) or bool(((given == drawn) | ((given != given) & (drawn != drawn))).all())

"""Draws: tokens for what the sampler drew, one a step, and the batches that were loaded for them."""

import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor
from torch.utils.data import get_worker_info

from dpcomp.core.address import Address
from dpcomp.core.errors import NotPrivate
from dpcomp.training.pytorch.checks.equal_values import equal_values
from dpcomp.training.pytorch.rows.structures import copied, tensors

OTHER_LOADER = (
    "a step takes a batch that the sampler drew for it. Iterate over the loader of make_private; where no sampling is "
    "charged, over optimizer.batches(your loader)"
)

# A batch that a worker process loaded arrives by being unpickled, which knows no optimiser: the number of its draws
# finds them.
_IN_THIS_PROCESS: "WeakValueDictionary[str, Draws]" = WeakValueDictionary()


Alone = tuple[int, Any]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """The part of a drawn batch that one `step()` takes in.

    Args:
        tickets: A ticket an example, in order.
        batch: A copy of what the loader yielded, from when it arrived; None if no example was drawn.
        yielded: The tensors that it yielded, which the script has.
        versions: How often each of them had been written when it arrived.
        alone: The place of an example among them, and what an own collate function made of it alone; None without one.
    """

    tickets: tuple[int, ...]
    batch: Any = None
    yielded: tuple[Tensor, ...] = ()
    versions: tuple[int, ...] = ()
    alone: "Alone | None" = None

    @property
    def n(self) -> int:
        """The number of examples that were drawn, each with a row of its own."""
        return len(self.tickets)

    @property
    def unwritten(self) -> dict[int, Tensor]:
        """By the identity of a tensor that was yielded, the tensor as it was then: equal once none was written."""
        return {id(given): drawn for given, drawn in zip(self.yielded, tensors(self.batch), strict=True)}

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


@dataclass
class Place:
    """Where the draws of the open round stand; worker processes get a copy.

    Args:
        address: Of the round; None before the first one.
        drawn: The number of draws before the round.
    """

    address: Address | None = None
    drawn: int = 0

    def of(self, draw: int) -> tuple[int, ...]:
        """Return the run, the client and the round, and which of the round's draws one is."""
        at = self.address
        return (draw,) if at is None else (at.run, at.client, at.round, max(0, draw - self.drawn))


@dataclass(eq=False)
class _Draw:
    tickets: range
    waiting: deque[int] = field(default_factory=deque)
    arrived: bool = False  # or a part of it, in this process
    delivered: bool = False


class Draws:
    """The draws that wait for their steps: the sampler adds them in order, and each logical step takes one.

    **Privacy:** amplification by sampling holds for batches that the charged sampler drew; a step without a draw, on
    other examples than were drawn, on some of them twice or on some of them not is refused (PRIVACY_RULES hazards 30
    and 33). A batch that a script saw and gave up is told from one that a worker only prefetched.

    Attributes:
        place: Where the draws of the open round stand.
        deliveries_are_told: Whether the loader says of each batch that the script has it. Of others, all that arrived
            in this process counts as delivered.
    """

    def __init__(self):
        self.key = uuid.uuid4().hex
        self.place = Place()
        self.deliveries_are_told = False
        self._serial = 0
        self._draws: deque[_Draw] = deque()
        self._arrived: dict[int, MicroBatch] = {}
        _IN_THIS_PROCESS[self.key] = self

    def __reduce__(self):
        raise TypeError("draws stay in the process that made them")

    def open_round(self, address: Address) -> None:
        """Place the draws from now on in a round."""
        self.place.address, self.place.drawn = address, self._serial

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
        places = range(self._serial * population, (self._serial + 1) * population)
        self._draws.append(_Draw(places, deque(tickets)))
        return tickets

    def arrive(self, tickets: Sequence[int], batch: Any, alone: Alone | None = None) -> None:
        """Note the batch that was loaded for some tickets; without tickets, for the next draw without examples."""
        waiting = list(self._draws)  # a thread that pins memory calls this, too
        for draw in waiting:
            if tickets[0] in draw.tickets if tickets else not (draw.waiting or draw.arrived):
                draw.arrived = True
                break
        if tickets:
            yielded = tuple(tensors(batch))
            versions = tuple(part._version for part in yielded)
            self._arrived[tickets[0]] = MicroBatch(tuple(tickets), copied(batch), yielded, versions, alone)

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
        draw, tickets = self._draws[0], micro_batch.tickets
        for ticket in self._arrived.keys() & tickets:
            del self._arrived[ticket]
        if len(tickets) == len(draw.waiting):  # as a rule
            draw.waiting.clear()
        else:
            for _ in tickets:
                draw.waiting.popleft()
        if not draw.waiting:
            self._draws.popleft()
        return not draw.waiting

    def deliver(self) -> None:
        """Note that the script has the batch of the next draw."""
        if (draw := next((draw for draw in self._draws if not draw.delivered), None)) is not None:
            draw.delivered = True

    def drop(self) -> bool:
        """Forget the draw whose step is next, and return whether the script had its batch."""
        if not self._draws or (self.deliveries_are_told and not self._draws[0].delivered):
            return False
        draw = self._draws.popleft()
        for ticket in draw.waiting:
            self._arrived.pop(ticket, None)
        return self._had(draw)

    def clear(self) -> bool:
        """Forget all draws, whose steps can no longer be taken, and return whether the script had any of the batches.

        Batches are delivered in order, so the script had one of them if it had the first.
        """
        had = bool(self._draws) and self._had(self._draws[0])
        self._draws.clear()
        self._arrived.clear()
        self.deliveries_are_told = False
        return had

    def _had(self, draw: _Draw) -> bool:
        return draw.delivered if self.deliveries_are_told else draw.arrived


@dataclass(frozen=True, eq=False)
class Parcel:
    """A batch on its way from a worker process; unpickling it gives the batch, and notes its arrival."""

    key: str
    tickets: tuple[int, ...]
    batch: Any
    alone: Alone | None

    def __reduce__(self):
        return _arrived, (self.key, self.tickets, self.batch, self.alone)


def _arrived(key: str, tickets: tuple[int, ...], batch: Any, alone: Alone | None) -> Any:
    if (draws := _IN_THIS_PROCESS.get(key)) is not None:
        draws.arrive(tickets, batch, alone)
    return batch


def delivered(key: str, tickets: Sequence[int], batch: Any, alone: Alone | None = None) -> Any:
    """Note that a batch was loaded, in whichever process that was, and return what the loader hands on."""
    if get_worker_info() is not None:
        return Parcel(key, tuple(tickets), batch, alone)
    return _arrived(key, tuple(tickets), batch, alone)


def same_values(given: Tensor, drawn: Tensor) -> bool:
    """Return whether a tensor holds the values of a drawn one, example by example, on any device and in any shape."""
    if given.numel() != drawn.numel() or given.shape[:1] != drawn.shape[:1]:
        return False
    drawn = drawn.detach().to(device=given.device, dtype=given.dtype).reshape(given.shape)
    given = given.detach()
    return equal_values(given, drawn) or bool(((given == drawn) | ((given != given) & (drawn != drawn))).all())

"""Examples: what `train()`, `test()` and `validation()` of a task return, brought into one form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from dpcomp.training.pytorch.channels_last import with_channels_last
from dpcomp.training.pytorch.checks.repeated_examples import refuse_repeated_examples
from dpcomp.training.pytorch.checks.trial_batches import MOST_EXAMPLES
from dpcomp.training.pytorch.collation import Collate, collated, refuse_collation_that_ties
from dpcomp.training.pytorch.private_model import PrivateModel
from dpcomp.training.pytorch.rows.structures import (
    count,
    inputs_and_targets,
    leaves,
    mapped_leaves,
    picked,
    rows,
    tensors,
    to,
)

FORMS = (
    "return (inputs, targets), where inputs are an array, or several in a tuple or a dict; or one dict of arrays whose "
    '"labels" are the targets; or a Dataset or list of examples'
)


class Examples(Protocol):
    """The examples of a client, or of a public set."""

    @property
    def device(self) -> torch.device:
        """Where batches are put."""
        ...

    @property
    def loads_by_own_code(self) -> bool:
        """Whether a batch is loaded by code of the task, which may draw random numbers."""
        ...

    def __len__(self) -> int: ...

    def part(self, positions: Int64[np.ndarray, "_"]) -> "Examples":
        """Return the examples at some positions."""
        ...

    def batch(self, positions: Sequence[int]) -> tuple[Any, Any]:
        """Return the inputs and targets of some examples, on the device."""
        ...

    def span(self, start: int, stop: int) -> tuple[Any, Any]:
        """Return the inputs and targets of the examples from `start` to before `stop`, on the device."""
        ...

    def drawn(self, positions: Tensor) -> tuple[Any, Any]:
        """Return a batch as a loader would yield it, and what `Draws.arrive` wants of an example alone, or None."""
        ...

    def labels(self) -> Shaped[np.ndarray, "n ..."]:
        """Return the target of each example on the host, for a partition; of dtype object where they are no array."""
        ...

    def some(self) -> tuple[Any, Any]:
        """Return a batch of examples from all over them, to try a model on."""
        ...

    def refuse_ties(self, model: PrivateModel) -> None:
        """Refuse examples of which one is behind several items, and batches in which a row depends on other examples.

        Raises:
            NotPrivate: A data set has such items, or a collate function makes such batches.
        """
        ...

    def with_channels_last(self) -> "Examples":
        """Return the same examples, for a model that is fast with channels last in memory."""
        ...


def spread(n: int) -> list[int]:
    """Return positions from all over n examples, which may be sorted by class: as many as a trial takes."""
    return torch.linspace(0, n - 1, min(n, MOST_EXAMPLES)).long().tolist()


@dataclass(frozen=True, eq=False)
class ArrayExamples:
    """Examples that lie in tensors on a device.

    Args:
        inputs: (n, …) tensors, nested as the model gets them.
        targets: (n, …) tensors, nested as the loss gets them; None without any.
        device: Where they lie.
    """

    inputs: Any
    targets: Any
    device: torch.device

    @property
    def loads_by_own_code(self) -> bool:
        """Return False: rows of arrays are picked."""
        return False

    def __len__(self) -> int:
        return count(self.inputs)

    def part(self, positions: Int64[np.ndarray, "_"]) -> "ArrayExamples":
        """Return the examples at some positions."""
        inputs, targets = picked((self.inputs, self.targets), torch.from_numpy(positions).to(self.device))
        return ArrayExamples(inputs, targets, self.device)

    def batch(self, positions: Sequence[int]) -> tuple[Any, Any]:
        """Return the inputs and targets of some examples."""
        return picked((self.inputs, self.targets), torch.tensor(positions, dtype=torch.int64, device=self.device))

    def span(self, start: int, stop: int) -> tuple[Any, Any]:
        """Return the inputs and targets of the examples from `start` to before `stop`."""
        return rows((self.inputs, self.targets), start, stop)

    def drawn(self, positions: Tensor) -> tuple[Any, Any]:
        """Return a batch, and None: a row of an array is the example alone."""
        return picked((self.inputs, self.targets), positions), None

    def labels(self) -> Shaped[np.ndarray, "n ..."]:
        """Return the targets on the host."""
        if isinstance(self.targets, Tensor):
            return self.targets.cpu().numpy()
        return np.full(len(self), None, dtype=object)

    def some(self) -> tuple[Any, Any]:
        """Return a batch of examples from all over them."""
        return self.batch(spread(len(self)))

    def refuse_ties(self, model: PrivateModel) -> None:
        """Refuse nothing: a row of an array is the example alone."""

    def with_channels_last(self) -> "ArrayExamples":
        """Return the same examples with channels last in memory."""
        return ArrayExamples(with_channels_last(self.inputs), self.targets, self.device)


@dataclass(frozen=True, eq=False)
class CollatedExamples:
    """Examples of a data set, which are loaded and collated when a batch needs them.

    Args:
        dataset: A map-style data set, or a list of examples.
        collate: Makes a batch of a list of examples.
        positions: Of these examples in the data set.
        device: Where batches are put.
    """

    dataset: Any
    collate: Collate
    positions: Int64[np.ndarray, "n"]
    device: torch.device

    @property
    def loads_by_own_code(self) -> bool:
        """Return True: the data set loads its examples itself."""
        return True

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> Any:
        return self.dataset[int(self.positions[number])]

    def part(self, positions: Int64[np.ndarray, "_"]) -> "CollatedExamples":
        """Return the examples at some positions."""
        return CollatedExamples(self.dataset, self.collate, self.positions[positions], self.device)

    def batch(self, positions: Sequence[int]) -> tuple[Any, Any]:
        """Return the inputs and targets of some examples, collated."""
        return to(inputs_and_targets(self.collate([self[number] for number in positions])), device=self.device)

    def span(self, start: int, stop: int) -> tuple[Any, Any]:
        """Return the inputs and targets of the examples from `start` to before `stop`, collated."""
        return self.batch(range(start, min(stop, len(self))))

    def drawn(self, positions: Tensor) -> tuple[Any, Any]:
        """Return a batch as `collate` makes it, and one of its examples with what `collate` makes of it alone."""
        examples = [self[number] for number in positions.tolist()]
        if not examples:
            return None, None
        return collated(self.collate, examples)

    def labels(self) -> Shaped[np.ndarray, "n ..."]:
        """Return the target of each example."""
        found = np.empty(len(self), dtype=object)
        for number in range(len(self)):
            target = inputs_and_targets(self[number])[1]
            found[number] = target.tolist() if isinstance(target, (Tensor, np.ndarray, np.generic)) else target
        whole = all(isinstance(target, int) for target in found)
        return found.astype(np.int64) if whole else found

    def some(self) -> tuple[Any, Any]:
        """Return a batch of examples from all over them."""
        return self.batch(spread(len(self)))

    def refuse_ties(self, model: PrivateModel) -> None:
        """Refuse repeated examples, and a collate function under which a row depends on other examples of its batch."""
        refuse_repeated_examples(self.dataset)
        refuse_collation_that_ties(self, self.collate, model, self.device)  # pyright: ignore[reportArgumentType]

    def with_channels_last(self) -> "CollatedExamples":
        """Return these examples: their batches are made anew each time."""
        return self


@dataclass(frozen=True, eq=False)
class _RowsOfArrays(Dataset):
    """The rows of arrays as a data set, for a task that collates them itself."""

    inputs: Any
    targets: Any

    def __len__(self) -> int:
        return count(self.inputs)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        inputs, targets = mapped_leaves(
            lambda _, part: part[number] if isinstance(part, Tensor) and part.ndim else part,
            (self.inputs, self.targets),
        )
        return inputs, targets


def examples_of(given: Any, collate: Collate | None, place: str, device: torch.device) -> Examples:
    """Return examples in one form.

    Args:
        given: What a member of a task returned. Arrays of NumPy and pandas become tensors, numbers of 64 bits with a
            fraction those of 32.
        collate: The task's own collate function; None for torch's default.
        place: The member, such as "train()", for errors.
        device: Where tensors and batches are put.

    Raises:
        TypeError: It is no such form.
        ValueError: The arrays have different lengths.
    """
    if isinstance(given, (IterableDataset, DataLoader)):
        raise TypeError(
            f"{place} of the task returned {type(given).__name__}, whose examples have no positions to draw: return a "
            "map-style Dataset, with __len__ and __getitem__, as the dataset of a DataLoader is"
        )
    if _is_list_of_examples(given):
        everything = np.arange(len(given), dtype=np.int64)
        return CollatedExamples(given, collate or default_collate, everything, device)
    if not isinstance(given, (tuple, list, Mapping)) or not len(given):
        raise TypeError(f"{place} of the task returned {_described(given)}: {FORMS}")
    inputs, targets = inputs_and_targets(given)
    inputs = mapped_leaves(lambda path, part: _tensor(part, f"inputs{list(path) or ''}", place), inputs)
    if targets is not None:
        targets = mapped_leaves(lambda path, part: _class_numbers(_tensor(part, "targets", place)), targets)
    _check_lengths(inputs, targets, place)
    if collate is not None:
        dataset = _RowsOfArrays(inputs, targets)
        return CollatedExamples(dataset, collate, np.arange(len(dataset), dtype=np.int64), device)
    inputs, targets = to((inputs, targets), device=device)
    return ArrayExamples(inputs, targets, device)


def _is_list_of_examples(given: Any) -> bool:
    if isinstance(given, (Tensor, np.ndarray, tuple, Mapping)):
        return False
    if isinstance(given, list):
        return not given or isinstance(given[0], (tuple, list, Mapping))
    return hasattr(given, "__getitem__") and hasattr(given, "__len__") and not hasattr(given, "__array__")


def _tensor(part: Any, name: str, place: str) -> Tensor:
    if isinstance(part, Tensor):
        return part
    where = f"{place} of the task returned as {name} {_described(part)}"
    if not hasattr(part, "__array__"):
        raise TypeError(f"{where}: {FORMS}")
    array = np.asarray(part)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{where} of dtype {array.dtype}: turn it into numbers")
    if array.dtype == np.float64:
        array = array.astype(np.float32)  # NumPy's default, which nobody chose; the parameters have 32 bits
    elif array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _class_numbers(targets: Tensor) -> Tensor:
    """Return targets, whole numbers as int64: torch's losses take no others."""
    return targets if targets.is_floating_point() or targets.dtype == torch.bool else targets.long()


def _check_lengths(inputs: Any, targets: Any, place: str) -> None:
    if not tensors(inputs):
        raise TypeError(f"{place} of the task returned no inputs: {FORMS}")
    lengths = {
        f"{name}{list(path) or ''}": part.shape[0] if part.ndim else None
        for name, value in (("inputs", inputs), ("targets", targets))
        for path, part in leaves(value).items()
        if isinstance(part, Tensor)
    }
    if len(set(lengths.values())) > 1 or None in lengths.values():
        said = ", ".join(f"{name} {'a single number' if n is None else n}" for name, n in lengths.items())
        raise ValueError(
            f"{place} of the task returned arrays of different lengths ({said}): the first axis of each runs over the "
            "same examples. Return examples of different shapes as a Dataset or list, and give the task collate()"
        )


def _described(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"an array of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:80] if value is None else f"a value of type {type(value).__name__}"

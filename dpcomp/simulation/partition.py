"""Partitions of the training examples among simulated clients."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Shaped

from dpcomp.core.checks import real_number
from dpcomp.core.randomness import PublicSeed


@runtime_checkable
class Partition(Protocol):
    """A rule that gives each example to one client."""

    def part(self, labels: Shaped[np.ndarray, "n ..."], clients: int, seed: PublicSeed) -> list[Int64[np.ndarray, "_"]]:
        """Return the positions of each client's examples.

        Args:
            labels: The (n, …) targets of all examples; of a classification, (n,) class numbers.
            clients: The number of clients.
            seed: Where the partition is drawn from.

        Returns:
            One ascending array of positions for each client; together they hold every position once.
        """
        ...


@runtime_checkable
class ColumnPartition(Partition, Protocol):
    """A partition by a column of the task, which its `part` gets in place of the targets."""

    def column(self, task: Any) -> Shaped[np.ndarray, "n"]:
        """Return the (n,) column of a task.

        Raises:
            TypeError, ValueError: The task has no such column, or it is no column.
        """
        ...


@dataclass(frozen=True)
class IID:
    """Shuffles the examples and cuts them into equal parts, so that all clients have the same distribution."""

    def part(self, labels: Shaped[np.ndarray, "n ..."], clients: int, seed: PublicSeed) -> list[Int64[np.ndarray, "_"]]:
        """Return the positions of each client's examples; the parts differ in size by at most one."""
        order = seed.stream("partition").permutation(len(labels))
        return [np.sort(part) for part in np.array_split(order, clients)]


@dataclass(frozen=True)
class Dirichlet:
    """Divides each class among the clients by shares drawn from a Dirichlet distribution.

    The smaller the concentration, the fewer classes a client has; some clients may get no examples.

    Source: Hsu, Qi & Brown 2019, arXiv 1909.06335, section 3.

    Args:
        concentration: α, above 0. As it grows, all clients get the same distribution.

    Raises:
        ValueError: The concentration is not above 0.

    Examples:
        Two clients share 100 examples of two classes, most of each class with one client:

        >>> import numpy as np
        >>> import dpcomp as dp
        >>> from dpcomp.simulation import Dirichlet
        >>> labels = np.repeat([0, 1], 50)
        >>> parts = Dirichlet(0.1).part(labels, clients=2, seed=dp.PublicSeed(0))
        >>> sum(map(len, parts))
        100
    """

    concentration: float

    def __post_init__(self):
        if not real_number(self.concentration, "Dirichlet(concentration)", "a number above 0") > 0:
            raise ValueError(f"Dirichlet(concentration) is {self.concentration}: give a number above 0")

    def part(self, labels: Shaped[np.ndarray, "n ..."], clients: int, seed: PublicSeed) -> list[Int64[np.ndarray, "_"]]:
        """Return the positions of each client's examples.

        Raises:
            ValueError: The targets are no class numbers.
        """
        if labels.ndim != 1 or labels.dtype.kind not in "iub":
            raise ValueError(
                f"{self} divides each class among the clients, and the targets are {labels.dtype} {labels.shape}, not "
                "(n,) class numbers: use IID(), ByClientId(), or a partition of your own"
            )
        stream = seed.stream("partition")
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            members = stream.permutation(np.flatnonzero(labels == label))
            shares = stream.dirichlet(np.full(clients, self.concentration))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for part, positions in zip(parts, np.split(members, cuts), strict=True):
                part.append(positions)
        return [np.sort(np.concatenate(part)) for part in parts]


@dataclass(frozen=True)
class ByClientId:
    """Gives each client the examples of one id in a column that the task has: its member `client_ids()`.

    The ids may be whole numbers or texts. In ascending order they are the clients 0, 1, …; clients beyond them have no
    examples.

    Examples:
        Three hospitals with four, one and two patients:

        >>> import numpy as np
        >>> import dpcomp as dp
        >>> from dpcomp.simulation import ByClientId
        >>> column = np.array(["b", "a", "a", "c", "a", "c", "a"])
        >>> [part.tolist() for part in ByClientId().part(column, clients=3, seed=dp.PublicSeed(0))]
        [[1, 2, 4, 6], [0], [3, 5]]
    """

    def column(self, task: Any) -> Shaped[np.ndarray, "n"]:
        """Return the ids of the owners of a task's training examples.

        Raises:
            TypeError, ValueError: The task has no `client_ids()`, or returns no column of ids.
        """
        if not hasattr(task, "client_ids"):
            raise TypeError(
                f"ByClientId() needs a column, and the task {task.name!r} has no client_ids(): let it return the (n,) "
                "ids of the clients that own the examples of train(), in the same order"
            )
        ids = np.asarray(task.client_ids())
        if ids.ndim != 1 or ids.dtype.kind not in "iuUO":
            raise ValueError(
                f"client_ids() of the task {task.name!r} returned {ids.dtype} of shape {ids.shape}: return one whole "
                "number or text for each example of train()"
            )
        if ids.dtype.kind == "O":
            for row, value in enumerate(ids):
                if not isinstance(value, type(ids[0])) or not isinstance(value, (str, int, np.integer)):
                    raise ValueError(
                        f"client_ids() of the task {task.name!r} has {value!r} in row {row}, and {ids[0]!r} in row 0: "
                        "return one whole number for each example of train(), or one text for each"
                    )
        return ids

    def part(self, labels: Shaped[np.ndarray, "n ..."], clients: int, seed: PublicSeed) -> list[Int64[np.ndarray, "_"]]:
        """Return the positions of each client's examples, from the column of ids.

        Raises:
            ValueError: There are more ids than clients.
        """
        ids, owners = np.unique(labels, return_inverse=True)
        if len(ids) > clients:
            raise ValueError(
                f"client_ids() has {len(ids)} different ids, and the simulation has {clients} clients: say "
                f"clients={len(ids)}"
            )
        return [np.flatnonzero(owners == client) for client in range(clients)]

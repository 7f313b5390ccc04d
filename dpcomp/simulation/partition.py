"""Partitions of the training examples among simulated clients."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from dpcomp.core.randomness import PublicSeed


@runtime_checkable
class Partition(Protocol):
    """A rule that gives each example to one client."""

    def part(self, labels: Int64[np.ndarray, "n"], clients: int, seed: PublicSeed) -> list[Int64[np.ndarray, "_"]]:
        """Return the positions of each client's examples.

        Args:
            labels: The (n,) class numbers of all examples.
            clients: The number of clients.
            seed: Where the partition is drawn from.

        Returns:
            One ascending array of positions for each client; together they hold every position once.
        """
        ...


@dataclass(frozen=True)
class IID:
    """Shuffles the examples and cuts them into equal parts, so that all clients have the same distribution."""

    def part(self, labels: Int64[np.ndarray, "n"], clients: int, seed: PublicSeed) -> list[Int64[np.ndarray, "_"]]:
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
        if not self.concentration > 0:
            raise ValueError(f"Dirichlet(concentration) is {self.concentration}: give a number above 0")

    def part(self, labels: Int64[np.ndarray, "n"], clients: int, seed: PublicSeed) -> list[Int64[np.ndarray, "_"]]:
        """Return the positions of each client's examples."""
        stream = seed.stream("partition")
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            members = stream.permutation(np.flatnonzero(labels == label))
            shares = stream.dirichlet(np.full(clients, self.concentration))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for part, positions in zip(parts, np.split(members, cuts), strict=True):
                part.append(positions)
        return [np.sort(np.concatenate(part)) for part in parts]

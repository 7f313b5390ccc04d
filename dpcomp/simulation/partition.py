"""How a data set is parted among simulated clients."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from dpcomp.core.randomness import PublicSeed


@runtime_checkable
class Partition(Protocol):
    """Gives each client its examples."""

    def part(self, labels: Int64[np.ndarray, "n"], clients: int, seed: PublicSeed) -> list[Int64[np.ndarray, "_"]]:
        """The positions of each client's examples; disjoint, and all of them."""
        ...


@dataclass(frozen=True)
class IID:
    """A shuffle, cut into equal parts."""

    def part(self, labels: Int64[np.ndarray, "n"], clients: int, seed: PublicSeed) -> list[Int64[np.ndarray, "_"]]:
        """The positions of each client's examples; the parts differ in size by at most one."""
        order = seed.stream("partition").permutation(len(labels))
        return [np.sort(part) for part in np.array_split(order, clients)]


@dataclass(frozen=True)
class Dirichlet:
    """Each class is spread over the clients in shares drawn from Dirichlet(concentration) (Hsu et al. 2019).

    The smaller the concentration, the fewer classes a client sees; some clients may get no examples.
    """

    concentration: float

    def __post_init__(self):
        if not self.concentration > 0:
            raise ValueError(f"{self}: the concentration is a number above 0")

    def part(self, labels: Int64[np.ndarray, "n"], clients: int, seed: PublicSeed) -> list[Int64[np.ndarray, "_"]]:
        """The positions of each client's examples."""
        stream = seed.stream("partition")
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            members = stream.permutation(np.flatnonzero(labels == label))
            shares = stream.dirichlet(np.full(clients, self.concentration))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for mine, some in zip(parts, np.split(members, cuts), strict=True):
                mine.append(some)
        return [np.sort(np.concatenate(mine)) for mine in parts]

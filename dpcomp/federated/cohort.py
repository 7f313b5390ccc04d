"""Cohort: which clients a server asks for an update in a round."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from dpcomp.core.address import SERVER
from dpcomp.core.checks import whole_number
from dpcomp.core.randomness import SecretSeed
from dpcomp.wire.memory import ServerMemory


@runtime_checkable
class Draw(Protocol):
    """A rule by which the clients of a round are drawn: `Poisson` or `Fixed`."""

    def draw(self, n: int, stream: np.random.Generator) -> Int64[np.ndarray, "chosen"]:
        """Draw which of n clients take part; return their positions, ascending."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Draw a fixed number of clients in each round, each set of so many with the same probability.

    **Privacy:** a draw of a fixed number is not the Poisson sampling that a guarantee charges (PRIVACY_RULES 19). So it
    only says whom a server asks that sees who sends, where the draw amplifies nothing (PRIVACY_RULES 21):
    `simulate(participation=Fixed(10))` with `unit="example"`, or `Server(cohort=Cohort(sampling=Fixed(10)))`.

    Args:
        count: The number of clients, 1 or more; of fewer clients, all take part.

    Raises:
        TypeError: `count` is not a whole number.
        ValueError: `count` is below 1.

    Examples:
        >>> import dpcomp as dp
        >>> from dpcomp.federated import Fixed
        >>> len(Fixed(3).draw(100, dp.PublicSeed(0).stream("cohort", 0)))
        3
    """

    count: int

    def __post_init__(self):
        object.__setattr__(self, "count", whole_number(self.count, "Fixed(count)", least=1))

    def draw(self, n: int, stream: np.random.Generator) -> Int64[np.ndarray, "chosen"]:
        """Draw which of n clients take part.

        Args:
            n: The number of clients.
            stream: Where the draw comes from.

        Returns:
            Their numbers, ascending; `count` of them, or all n.
        """
        return np.sort(stream.choice(n, size=min(n, self.count), replace=False))


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Draws the clients of each round: by `Poisson` each with a public probability, or by `Fixed` so many of them.

    The server draws once a round, keeps the draw, and refuses the update of a client that was not drawn.

    **Privacy:** the draw amplifies only where nobody but a trusted server knows it, and where the server takes updates
    of nobody else (PRIVACY_RULES 22, hazards 14 and 35). There it comes from a secret seed. Where the server is not
    trusted, it sees who sends, so the draw may be public, and amplifies nothing (PRIVACY_RULES 21).

    Args:
        sampling: The probability of each client, `Poisson(rate)`; or their number, `Fixed(count)`.
        secret: Where the draw comes from; None draws it from the run's public seed, so that anybody can repeat it.
    """

    sampling: Draw
    secret: SecretSeed | None = None

    def draw(self, clients: int, memory: ServerMemory) -> Int64[np.ndarray, "chosen"]:
        """Draw the clients of the present round.

        Args:
            clients: The number of clients.
            memory: The server's memory, whose address places the draw.

        Returns:
            Their numbers, ascending; sometimes none.
        """
        place = memory.address
        if self.secret is None:
            return self.sampling.draw(clients, memory.seed.stream("cohort", place.round))
        return self.sampling.draw(clients, self.secret.stream("cohort", place.run, SERVER, place.round))

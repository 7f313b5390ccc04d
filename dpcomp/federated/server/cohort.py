"""Cohort: which clients a server asks for an update in a round."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from dpcomp.core.address import SERVER
from dpcomp.core.checks import whole_number
from dpcomp.core.errors import NotPrivate
from dpcomp.core.randomness import SecretSeed
from dpcomp.federated.server.aggregation import Releases, TrustedRelease
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
        most: The most clients of a round, where the noise would show a larger number; then it is drawn again. None for
            any number. `refuse_likely_redraw` sees to it that this hardly ever happens.
    """

    sampling: Draw
    secret: SecretSeed | None = None
    most: int | None = None

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
            stream = memory.seed.stream("cohort", place.round)
        else:
            stream = self.secret.stream("cohort", place.run, SERVER, place.round)
        while True:
            drawn = self.sampling.draw(clients, stream)
            if self.most is None or len(drawn) <= self.most:
                return drawn


LARGEST_TAIL_BITS = 64.0  # a draw is repeated with a probability below 2⁻⁶⁴: the ε and δ of true Poisson draws hold


def refuse_likely_redraw(rate: float, clients: int, most: int) -> None:
    """Refuse a largest cohort that Poisson draws exceed with a probability above 2⁻⁶⁴.

    Drawing anew where more than `most` clients are drawn alters the law of the draw by the probability p of that, in
    total variation. With n clients and a rate q, p ≤ exp(−n·KL(k/n ‖ q)) for k = most + 1 above n·q (Chernoff; Arratia
    & Gordon 1989). So δ grows by at most (1 + e^ε)·p a round, which no accountant's arithmetic shows.

    Args:
        rate: q, the probability of each client; 1 if all take part.
        clients: n, the number of clients.
        most: The most clients of a round.

    Raises:
        ValueError: The probability is not below 2⁻⁶⁴; the message names the least number that serves.
    """
    if clients <= most or _tail_bits(rate, clients, most) > LARGEST_TAIL_BITS:
        return
    low, high = most, clients
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _tail_bits(rate, clients, middle) > LARGEST_TAIL_BITS else (middle, high)
    raise ValueError(
        f"ExactGaussian(cohort={most}): with {clients:,} clients at the rate {rate:g}, more than {most} in a round are "
        f"too likely, and the noise would then tell how many came. Give a cohort of {high} or more"
    )


def _tail_bits(rate: float, clients: int, most: int) -> float:
    """Return −log₂ of Chernoff's bound on the probability of more than `most` clients; 0 where it says nothing."""
    share = (most + 1) / clients
    if share <= rate or rate >= 1:
        return math.inf if most >= clients else 0.0
    if share >= 1:
        return math.inf if most >= clients else -clients * math.log2(rate)
    divergence = share * math.log2(share / rate) + (1 - share) * math.log2((1 - share) / (1 - rate))
    return clients * divergence


def refuse_large_cohorts(pipeline: Releases, clients: int) -> None:
    """Refuse so many clients that a round may well have more of them than the noise of the pipeline hides.

    Args:
        pipeline: The pipeline of a trusted server.
        clients: The number of clients.

    Raises:
        ValueError: As `refuse_likely_redraw` does.
    """
    sampling, most = pipeline.sampling, pipeline.largest_cohort
    if most is not None:
        refuse_likely_redraw(1.0 if sampling is None else sampling.rate, clients, most)


def enforced_cohort(cohort: Cohort | None, release: TrustedRelease | None, clients: int) -> Cohort | None:
    """Return the cohort that a server enforces: that of the pipeline, if the server is trusted."""
    if release is not None:
        if cohort is not None:
            raise NotPrivate(
                f"cohort={cohort} under a trusted server: its pipeline says how clients are drawn, and the guarantee "
                "rests on that. Leave cohort out, and set sampling= in the pipeline"
            )
        pipeline = release.pipeline
        refuse_large_cohorts(pipeline, clients)
        sampling, most = pipeline.sampling, pipeline.largest_cohort
        cohort = None if sampling is None else Cohort(sampling=sampling, secret=release.secret, most=most)
    if cohort is not None and clients == SERVER:
        raise ValueError(f"{cohort} draws among all clients, so their number is needed: give Server(clients=...)")
    return cohort

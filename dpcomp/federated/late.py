"""What a server does with an update that comes after its round."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class LatePolicy(Protocol):
    """A policy."""

    @property
    def max_age(self) -> int:
        """How many rounds late an update may be."""
        ...

    def weight(self, age: int) -> float:
        """What an update that is `age` rounds late counts; 1 for one in time."""
        ...


@dataclass(frozen=True)
class Reject:
    """Refuse it; its sender keeps it in its residual."""

    max_age = 0

    def weight(self, age: int) -> float:
        """1: only what is in time is taken."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Weigh:
    """Take it at (1 + age)^−exponent, up to `max_age` rounds late (Xie et al. 2019, 1903.03934, section 5.2).

    **Privacy:** only where the noise is the client's, so that an update is a release of its own whenever it comes.
    """

    max_age: int
    exponent: float = 0.5

    def __post_init__(self):
        if self.max_age < 1 or self.exponent < 0:
            raise ValueError(f"{self}: max_age is a number of rounds, at least 1, and the exponent is not negative")

    def weight(self, age: int) -> float:
        """(1 + age)^−exponent."""
        return (1.0 + age) ** -self.exponent

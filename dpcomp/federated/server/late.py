"""Late policies: what a server does with an update that arrives after its round was closed."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dpcomp.core.checks import real_number, whole_number

MOST_AGE = 2**32 - 1  # rounds that an address can tell apart


@runtime_checkable
class LatePolicy(Protocol):
    """Decides how late an update may be, and with what weight it enters the mean of the round in which it arrives."""

    @property
    def max_age(self) -> int:
        """The most rounds that an update may be late; 0 refuses each late update."""
        ...

    def weight(self, age: int) -> float:
        """Return the weight of an update that is `age` rounds late, a public constant; 1 for age 0."""
        ...


@dataclass(frozen=True)
class Reject:
    """Refuse late updates; their senders add them to their residuals."""

    max_age = 0

    def weight(self, age: int) -> float:
        """Return 1, since only updates in time are accepted."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Weigh:
    """Accept updates up to `max_age` rounds late, with weight (1 + age)^−exponent.

    Source: Xie, Koyejo & Gupta 2019, "Asynchronous Federated Optimization", arXiv 1903.03934, section 5.2.

    **Privacy:** each client adds the noise to its own update, so an update is a release whenever it arrives. Under a
    trusted server, a late update beside a fresh update of the same client is twice the sensitivity (PRIVACY_RULES 22):
    the server refuses this policy.

    Args:
        max_age: The most rounds that an update may be late, from 1 to 2³² − 1, more than which no
            address has.
        exponent: How fast the weight falls with the age, 0 or more; 0 gives each update weight 1.

    Raises:
        TypeError: `max_age` is not a whole number, or `exponent` not a number.
        ValueError: `max_age` or `exponent` lies outside its range.
    """

    max_age: int
    exponent: float = 0.5

    def __post_init__(self):
        allowed = "Weigh(max_age), the rounds that an update may be late,"
        max_age = whole_number(self.max_age, allowed, least=1, most=MOST_AGE)
        exponent = real_number(self.exponent, "Weigh(exponent)", "a number from 0 on")
        if not exponent >= 0:
            raise ValueError(f"{self}: the exponent is a number from 0 on")
        object.__setattr__(self, "max_age", max_age)
        object.__setattr__(self, "exponent", exponent)

    def weight(self, age: int) -> float:
        """Return (1 + age)^−exponent."""
        return (1.0 + age) ** -self.exponent

"""Guarantee: what was proven, as a value that names everything it depends on."""

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Literal

from dpcomp.privacy.epsilon import check_delta


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """An (ε, δ) with the unit, adjacency, sampling, steps, accountant, trust and assumptions that it holds under.

    Prints as one line, ε rounded up: the printed number is never smaller than the true one.

    Raises:
        TypeError, ValueError: ε is not ≥ 0, δ not in (0, 1), unit or trust unknown, or assumptions a bare string.
    """

    epsilon: float
    delta: float
    unit: Literal["example", "client"]
    adjacency: str
    sampling: str
    steps: int
    accountant: str
    trust: Literal["nobody", "server"]
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.epsilon >= 0:
            raise ValueError(f"Guarantee: epsilon={self.epsilon} is not a number ≥ 0; use math.inf for no guarantee.")
        check_delta(self.delta)
        for name, value, words in (
            ("unit", self.unit, ("example", "client")),
            ("trust", self.trust, ("nobody", "server")),
        ):
            if value not in words:
                raise ValueError(f"Guarantee: {name}={value!r} is unknown; use one of {words}.")
        if isinstance(self.assumptions, str):
            raise TypeError("Guarantee: assumptions is one string; pass a tuple of strings.")

    def __str__(self) -> str:
        bound = "ε = ∞" if math.isinf(self.epsilon) else f"ε ≤ {rounded_up(self.epsilon)}"
        sampling = "unsampled" if self.sampling == "none" else self.sampling
        trust = {"nobody": "trusts nobody", "server": "for the released model; trusts the server and the channel"}[
            self.trust
        ]
        line = [f"{bound} at δ = {self.delta:g}", f"one {self.unit}, {self.adjacency}", f"{sampling} × {self.steps}"]
        line += [self.accountant, trust] + (["; ".join(self.assumptions)] if self.assumptions else [])
        return " ".join(" · ".join(line).split())


def delta_note(delta: float, population: int | None = None) -> str:
    """Says what δ is worth against the number of units N: δ ≥ 1/N allows publishing a unit as it is.

    Raises:
        TypeError, ValueError: δ is no number in (0, 1), or N is below 1.
    """
    check_delta(delta)
    if population is None:
        return f"δ = {delta:g} is meaningful for more than 1/δ = {math.ceil(1 / delta):,} units"
    if population < 1:
        raise ValueError(f"population={population}: there is at least one unit to protect")
    if delta * population < 1:
        return f"δ = {delta:g} is below 1/N = 1/{population:,}"
    return (
        f"δ = {delta:g} is not below 1/N = 1/{population:,}: "
        "a mechanism that publishes one unit at random would pass; choose a smaller δ"
    )


def rounded_up(value: float) -> str:
    """Write an ε so that the printed number is never smaller: two decimals between 1 and a million, else three digits.

    Args:
        value: ε ≥ 0; infinity, where there is no guarantee, is "∞".
    """
    if math.isinf(value):
        return "∞"
    exact = Decimal(value)
    if value == 0 or 1 <= value < 1e6:
        return str(exact.quantize(Decimal("0.01"), ROUND_CEILING))
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), ROUND_CEILING)
    return f"{rounded:f}" if 1e-4 <= value < 1 else f"{rounded:.2e}"

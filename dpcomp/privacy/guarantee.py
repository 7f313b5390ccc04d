"""Guarantee: a proven (ε, δ), with everything that it depends on."""

import math
import warnings
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from dpcomp.core.errors import DpcompWarning
from dpcomp.display import html
from dpcomp.privacy.accounting.epsilon import check_delta
from dpcomp.privacy.trust import Trust, TrustModel, Unit


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """A differential-privacy guarantee: (ε, δ), and the conditions under which it holds.

    `print` gives a single line, with ε rounded up: the printed number is never smaller than the proven number.

    Args:
        epsilon: ε, 0 or more; `math.inf` for no guarantee.
        delta: δ, in (0, 1).
        unit: What one neighbour adds or removes, "example" or "client".
        adjacency: How neighbours differ, "add/remove".
        sampling: How units are sampled, in words; "none" for all units in each step.
        steps: The number of releases.
        accountant: What computed ε: "PLD", "RDP" or "none".
        trust: Who sees values before the noise, "nobody" or "server".
        assumptions: What the proof assumes besides.

    Raises:
        TypeError: `delta` is not a number, or `assumptions` is a string.
        ValueError: `epsilon` or `delta` lies outside its range, or `unit` or `trust` is unknown.

    Examples:
        >>> import dpcomp as dp
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(2.0)), sampling=dp.Poisson(0.1))
        >>> guarantee = pipeline.guarantee(steps=100, delta=1e-5)
        >>> round(guarantee.epsilon, 3)
        2.338
        >>> print(guarantee)  # doctest: +ELLIPSIS
        ε ≤ 2.34 at δ = 1e-05 · one example, add/remove · Poisson 0.1 × 100 · PLD · trusts nobody · ...
    """

    epsilon: float
    delta: float
    unit: Unit
    adjacency: str
    sampling: str
    steps: int
    accountant: str
    trust: Trust
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.epsilon >= 0:
            raise ValueError(f"Guarantee: epsilon={self.epsilon} is not a number ≥ 0; use math.inf for no guarantee")
        check_delta(self.delta)
        _ = self.trust_model  # refuses an unknown unit or trust
        if isinstance(self.assumptions, str):
            raise TypeError("Guarantee: assumptions is a single string; pass a tuple of strings")

    @property
    def trust_model(self) -> TrustModel:
        """The unit and the trust as a `TrustModel`."""
        return TrustModel(unit=self.unit, trust=self.trust)

    def __repr__(self) -> str:
        return f"<Guarantee: {self}>"

    def _repr_html_(self) -> str:
        return html.panel(
            f"{self._bound} at δ = {self.delta:g}",
            html.facts(
                [
                    ("protects", f"one {self.unit}, {self.adjacency}"),
                    ("releases", f"{self.steps:,}, {'unsampled' if self.sampling == 'none' else self.sampling}"),
                    ("accountant", self.accountant),
                    ("trust", self.trust_model.words),
                    *(("assumes" if number == 0 else "", clause) for number, clause in enumerate(self.assumptions)),
                ]
            ),
        )

    @property
    def _bound(self) -> str:
        return "ε = ∞" if math.isinf(self.epsilon) else f"ε ≤ {rounded_up(self.epsilon)}"

    def __str__(self) -> str:
        bound = self._bound
        sampling = "unsampled" if self.sampling == "none" else self.sampling
        line = [f"{bound} at δ = {self.delta:g}", f"one {self.unit}, {self.adjacency}", f"{sampling} × {self.steps}"]
        line += [self.accountant, self.trust_model.words] + (["; ".join(self.assumptions)] if self.assumptions else [])
        return " ".join(" · ".join(line).split())


def delta_note(delta: float, population: int | None = None) -> str:
    """Compare δ with 1 ÷ the number of units N, in words: δ ≥ 1/N allows a mechanism that publishes a whole unit.

    Args:
        delta: δ, in (0, 1).
        population: The public number of units N; None if it is not public.

    Raises:
        TypeError: `delta` is not a number.
        ValueError: `delta` lies outside (0, 1), or `population` is below 1.
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


def warn_of_delta(delta: float, population: int | None) -> None:
    """Warn if δ is not below 1 ÷ the number of units N.

    Args:
        delta: δ, in (0, 1).
        population: The public number of units N; None if it is not public.
    """
    if population is not None and delta * population >= 1:
        warnings.warn(delta_note(delta, population), DpcompWarning, stacklevel=3)


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

"""Cost: the privacy event of a release, with the unit, trust and sampling under which it holds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dp_accounting import (  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types
    ComposedDpEvent,
    DpEvent,
)

from dpcomp.privacy.accounting.epsilon import epsilon
from dpcomp.privacy.accounting.events import composed
from dpcomp.privacy.guarantee import Guarantee, delta_note, warn_of_delta
from dpcomp.privacy.trust import Trust, TrustModel, Unit

IDEALISED = "the Gaussian is idealised as real numbers"
FIXED = "the schedule was fixed in advance"
ADAPTIVE = "events were mixed or not as planned, so an RDP filter is assumed"
SEEDED = "the noise was SEEDED with a number: whoever knows it can take it away; for research alone"
SECRET = "secret seeds stay secret"
NOT_TUNED = "no setting was chosen by results on the protected data"
SAMPLED = "units were drawn afresh for each release, by the sampling that was charged"
ONE_ITEM = "an example is one item of the data, and each item was made from its example alone"
ONE_NUMBER = "a client has one number, and its data lie with no other"
INCOMPLETE = "INCOMPLETE, no guarantee: "  # begins what a ledger notes of releases that it was not charged for
SIZES_SEEN = "cohort sizes and message lengths are seen by the channel, and by readers of a run's rows"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The privacy cost of a single release: its event, and the unit, trust and sampling under which that holds.

    The ledger, budgets, calibration and guarantees take costs. `pipeline.cost` is the cost of a pipeline.

    Args:
        event: The release with its sampling, as a `dp_accounting` event.
        unit: What one neighbour adds or removes, "example" or "client".
        trust: Who sees values before the noise, "nobody" or "server".
        sampling: How units are sampled, in words, as a guarantee prints it.
        why_unsafe: Why there is no guarantee; empty if there is one.
        assumed: What the proof of the event assumes besides, in clauses that a guarantee prints.

    Examples:
        >>> import dpcomp as dp
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(2.0)), sampling=dp.Poisson(0.1))
        >>> print(pipeline.cost.guarantee(steps=100, delta=1e-5))  # doctest: +ELLIPSIS
        ε ≤ 2.34 at δ = 1e-05 · one example, add/remove · Poisson 0.1 × 100 · ...
    """

    event: DpEvent
    unit: Unit
    trust: Trust
    sampling: str
    why_unsafe: str = ""
    assumed: tuple[str, ...] = ()

    @property
    def trust_model(self) -> TrustModel:
        """The unit and the trust as a `TrustModel`."""
        return TrustModel(unit=self.unit, trust=self.trust)

    def guarantee(self, steps: int, delta: float, *, population: int | None = None) -> Guarantee:
        """Return the guarantee of `steps` releases at this cost, on a schedule that was fixed in advance.

        Args:
            steps: The number of releases, 0 or more.
            delta: δ, in (0, 1).
            population: The public number of units N; the guarantee then says whether δ is below 1/N.

        Raises:
            TypeError: `steps` is not a whole number, or `delta` not a number.
            ValueError: `steps`, `delta` or `population` lies outside its range.
        """
        return guarantee_of([(self, steps)], delta, population=population)


@runtime_checkable
class HasCost(Protocol):
    """A mechanism with a privacy cost, such as a `Pipeline`."""

    @property
    def cost(self) -> Cost:
        """The cost of a single release."""
        ...


def guarantee_of(
    charges: Sequence[tuple[Cost, int]],
    delta: float,
    *,
    population: int | None = None,
    planned: bool | None = None,
    seeded: bool = False,
    assumed: Iterable[str] = (),
) -> Guarantee:
    """Return the guarantee of several charges against the same data.

    Charges of a plan compose as a schedule that was fixed in advance, and so do those for a single event where there
    was no plan. All others may have been chosen from released results, so they are accounted by a Rényi filter (Feldman
    & Zrnic 2021, Thm 4.3): charges for different events, and those that departed from a plan, even for one event alone.

    Args:
        charges: (cost, steps) pairs, at least one pair; all have the same unit and trust.
        delta: δ, in (0, 1).
        population: The public number of units N; the guarantee then says whether δ is below 1/N.
        planned: Whether the charges, with their order, were fixed before the first of them: True where they are those
            of a plan, False where they departed from one; None without a plan, where one event alone counts as fixed.
        seeded: Whether noise was drawn from a number, which somebody may know.
        assumed: What else those who released assumed, in clauses to print.

    Returns:
        A guarantee that names each sampling, and each reason why a mechanism is unsafe.

    Raises:
        TypeError: Steps are not a whole number, or `delta` is not a number.
        ValueError: Steps, `delta` or `population` lie outside their range.
    """
    steps_of: dict[DpEvent, int] = {}
    for cost, steps in charges:
        steps_of[cost.event] = steps_of.get(cost.event, 0) + steps
    first, adaptive = charges[0][0], len(steps_of) > 1 if planned is None else not planned
    parts = [composed(event, steps) for event, steps in steps_of.items()]
    value, accountant = epsilon(parts[0] if len(parts) == 1 else ComposedDpEvent(parts), delta, adaptive=adaptive)
    warn_of_delta(delta, population)
    assumptions = [IDEALISED, ADAPTIVE if adaptive else FIXED, delta_note(delta, population), NOT_TUNED]
    if any(cost.sampling != "none" for cost, _ in charges):
        assumptions.append(SAMPLED)
    if not seeded:
        assumptions.append(SECRET)
    if first.trust_model.releases_local_steps and not first.trust_model.server_sees_clean:
        assumptions += ["an example lies with one client, and a client has one number", ONE_ITEM]
    if not first.trust_model.releases_local_steps:
        assumptions.append(ONE_NUMBER)
    if first.trust_model.server_sees_clean:
        assumptions.append(SIZES_SEEN)
    assumptions += [clause for cost, _ in charges for clause in cost.assumed]
    assumptions += assumed
    if reasons := "; ".join(dict.fromkeys(cost.why_unsafe for cost, _ in charges if cost.why_unsafe)):
        assumptions.insert(0, f"UNSAFE, no guarantee: {reasons}")
    if seeded:
        assumptions.insert(0, SEEDED)
    return Guarantee(
        epsilon=value,
        delta=delta,
        unit=first.unit,
        adjacency="add/remove",
        sampling=", then ".join(dict.fromkeys(cost.sampling for cost, _ in charges)),
        steps=sum(steps for _, steps in charges),
        accountant=accountant,
        trust=first.trust,
        assumptions=tuple(dict.fromkeys(assumptions)),
    )

"""Cost: what one release costs, and all that a guarantee says besides its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dp_accounting import ComposedDpEvent, DpEvent

from dpcomp.privacy.epsilon import epsilon
from dpcomp.privacy.events import composed
from dpcomp.privacy.guarantee import Guarantee, delta_note
from dpcomp.privacy.trust import Trust, TrustModel, Unit

IDEALISED = "the Gaussian is idealised as real numbers"
FIXED = "the schedule was fixed in advance"
ADAPTIVE = "events were mixed, so an RDP filter is assumed"
SEEDED = "the noise was SEEDED with a number: whoever knows it can take it away; for research alone"
SEEN = "cohort sizes and message lengths are seen by the channel, and by readers of a run's rows"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The event of one release, sampling included, with the unit, trust and sampling that it holds for.

    Ledger, budget, calibration and guarantee work on costs; `pipeline.cost` gives a pipeline's.

    Args:
        event: What one release costs, as `dp_accounting` names it.
        unit: What one neighbour adds or removes, "example" or "client".
        trust: Who sees values before the noise, "nobody" or "server".
        sampling: How units are sampled, in words.
        why_unsafe: Why there is no guarantee; empty where there is one.

    Example:
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

    @property
    def trust_model(self) -> TrustModel:
        """The unit and the trust as one value, which says what follows from them."""
        return TrustModel(unit=self.unit, trust=self.trust)

    def guarantee(self, steps: int, delta: float, *, population: int | None = None) -> Guarantee:
        """Return the guarantee of `steps` releases at this cost, on a schedule that was fixed in advance.

        Args:
            steps: How many releases, 0 or more.
            delta: δ, in (0, 1).
            population: The public number of units, to hold δ against.

        Raises:
            TypeError, ValueError: `steps` is no whole number from 0 on, or δ none in (0, 1).
        """
        return guarantee_of([(self, steps)], delta, population=population)


@runtime_checkable
class HasCost(Protocol):
    """Whatever costs privacy when it is run: a pipeline."""

    @property
    def cost(self) -> Cost:
        """What one release of it costs."""
        ...


def guarantee_of(
    charges: Sequence[tuple[Cost, int]], delta: float, *, population: int | None = None, seeded: bool = False
) -> Guarantee:
    """Return the guarantee of several charges against the same data.

    Charges for one event compose as planned in advance; charges for different events may have been chosen from released
    results, and are accounted by a Rényi filter (Feldman & Zrnic 2021, Thm 4.3).

    Args:
        charges: (cost, steps) pairs of one unit and trust, at least one.
        delta: δ, in (0, 1).
        population: The public number of units, to hold δ against.
        seeded: Whether noise was drawn from a number that somebody may know.

    Returns:
        One guarantee that names every sampling and every reason for unsafety.

    Raises:
        TypeError, ValueError: The steps are no whole numbers from 0 on, or δ none in (0, 1).
    """
    steps_of: dict[DpEvent, int] = {}
    for cost, steps in charges:
        steps_of[cost.event] = steps_of.get(cost.event, 0) + steps
    first, adaptive = charges[0][0], len(steps_of) > 1
    parts = [composed(event, steps) for event, steps in steps_of.items()]
    value, accountant = epsilon(parts[0] if len(parts) == 1 else ComposedDpEvent(parts), delta, adaptive=adaptive)
    assumptions = [IDEALISED, ADAPTIVE if adaptive else FIXED, delta_note(delta, population)]
    if first.trust_model.releases_local_steps and not first.trust_model.server_sees_clean:
        assumptions.append("an example lies with one client")
    if first.trust_model.server_sees_clean:
        assumptions.append(SEEN)
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
        assumptions=tuple(assumptions),
    )

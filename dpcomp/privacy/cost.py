"""The terms on which a mechanism runs: all that a guarantee says besides its numbers."""

from dataclasses import dataclass, replace
from typing import Literal

from dp_accounting import ComposedDpEvent, DpEvent

from dpcomp.privacy.epsilon import composed, epsilon
from dpcomp.privacy.guarantee import Guarantee, delta_note

IDEALISED = "the Gaussian is idealised as real numbers"
FIXED = "the schedule was fixed in advance"
ADAPTIVE = "events were mixed, so an RDP filter is assumed"
SEEDED = "the noise was SEEDED with a number: whoever knows it can take it away; for research alone"
SEEN = "cohort sizes and message lengths are seen by the channel, and by readers of a run's rows"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Unit, trust and sampling of a pipeline, and, for an unsafe one, why it has no guarantee."""

    unit: Literal["example", "client"]
    trust: Literal["nobody", "server"]
    sampling: str
    unsafe_because: str = ""

    @classmethod
    def joined(cls, several: list["Terms"]) -> "Terms":
        """The terms of charges of one unit and trust, every sampling and every reason named."""
        sampling = ", then ".join(dict.fromkeys(terms.sampling for terms in several))
        because = "; ".join(dict.fromkeys(terms.unsafe_because for terms in several if terms.unsafe_because))
        return replace(several[0], sampling=sampling, unsafe_because=because)

    def guarantee(
        self, parts: tuple[tuple[DpEvent, int], ...], delta: float, *, population: int | None, seeded: bool = False
    ) -> Guarantee:
        """The guarantee of (event, steps) parts on these terms; more than one part is accounted adaptively.

        `population` is the public number of units, to hold δ against; `seeded` says that noise can be repeated.
        """
        adaptive = len(parts) > 1
        whole = composed(*parts[0]) if len(parts) == 1 else ComposedDpEvent([composed(*part) for part in parts])
        value, accountant = epsilon(whole, delta, adaptive=adaptive)
        assumptions = [IDEALISED, ADAPTIVE if adaptive else FIXED, delta_note(delta, population)]
        if self.unit == "example" and self.trust == "nobody":
            assumptions.append("an example lies with one client")
        if self.trust == "server":
            assumptions.append(SEEN)
        if self.unsafe_because:
            assumptions.insert(0, f"UNSAFE, no guarantee: {self.unsafe_because}")
        if seeded:
            assumptions.insert(0, SEEDED)
        return Guarantee(
            epsilon=value,
            delta=delta,
            unit=self.unit,
            adjacency="add/remove",
            sampling=self.sampling,
            steps=sum(steps for _, steps in parts),
            accountant=accountant,
            trust=self.trust,
            assumptions=tuple(assumptions),
        )

"""What is known about a value on its way to the release, and the fold of stages that proves it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from dp_accounting import DpEvent

from dpcomp.core.errors import NotPrivate
from dpcomp.core.public_context import PublicContext


@dataclass(frozen=True, kw_only=True)
class Unbounded:
    """One unit may move the value, or its support, without bound."""

    because: str  # a clause that a refusal begins with
    remedy: str  # a sentence that it ends with, without the full stop
    support_is_public: bool = True


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """Adding or removing one unit moves the value by at most `l2` in Euclidean norm."""

    l2: float
    support_is_public: bool = True


@dataclass(frozen=True, kw_only=True)
class Released:
    """The value is the output of a mechanism that costs `event`; whatever is made of it is free."""

    event: DpEvent
    support_is_public: bool = True


Claim = Unbounded | Bounded | Released

RAW = Unbounded(
    because="the raw gradients are not clipped",
    remedy="Put Clip(norm) before it",
)


@runtime_checkable
class Stage(Protocol):
    """One step of a mechanism: it turns a claim about its input into one about its output."""

    def claim(self, before: Claim, where: str) -> Claim:
        """The claim on the output, given that on the input; `where` names the stage in errors.

        Raises:
            NotPrivate: on that input the stage has nothing to prove anything with.
            ValueError: the stage does not belong at this place.
        """
        ...


@runtime_checkable
class Transform(Stage, Protocol):
    """A stage before the noise."""

    def apply(self, value: Any, context: PublicContext) -> Any:
        """Return what becomes of a `Units` or a `Total` (unit_gradients.py) in the round that the context is about."""
        ...


def carried(stages: Sequence[Stage]) -> Claim:
    """What is known after the stages, in order, of raw gradients."""
    claim: Claim = RAW
    for number, stage in enumerate(stages, start=1):
        claim = stage.claim(claim, f"{type(stage).__name__} (stage {number})")
    return claim


def fold(stages: Sequence[Stage]) -> Released:
    """Carry the claim through the stages to the release.

    Raises:
        NotPrivate: a stage has nothing to stand on, or the last one leaves the value unreleased.
        ValueError: a stage stands where it cannot.
    """
    claim = carried(stages)
    if isinstance(claim, Released) and claim.support_is_public:
        return claim
    chain = ", ".join(type(stage).__name__ for stage in stages) or "nothing"
    raise NotPrivate(
        f"the mechanism ({chain}) ends without noise, so its output has no guarantee. "
        "End it with Clip(norm), Gaussian(noise_multiplier), or, to study it as it is, "
        "wrap it: dp.unsafe(why, *stages)"
    )

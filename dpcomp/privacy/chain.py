"""The steps of a mechanism, and what is known of the values after each."""

from collections.abc import Sequence
from typing import Any

from dpcomp.core.errors import NotPrivate
from dpcomp.core.public_context import HasPublicSupport
from dpcomp.display.html import State, Step
from dpcomp.privacy.claim import Bounded, Released, Stage, claim_after
from dpcomp.privacy.sampling import Poisson
from dpcomp.privacy.trust import TrustModel


def mechanism_steps(
    stages: Sequence[Stage], sampling: Poisson | None, trust: TrustModel, *, stddev: float, unsafe: bool
) -> list[Step]:
    """Return the steps of a mechanism, the sampling first.

    Args:
        stages: The stages in their order.
        sampling: How units are sampled; None for all units.
        trust: The unit, and who adds the noise.
        stddev: The standard deviation of the noise.
        unsafe: Whether the mechanism has no guarantee.
    """
    steps: list[Step] = []
    if sampling is not None:
        known = f"each {trust.unit} with probability {sampling.rate:g}"
        place = "server" if trust.noise_at == "server" else "client"
        steps.append(Step(title=repr(sampling), place=place, known=(known,), state="clean"))
    for number, stage in enumerate(stages, start=1):
        known, released = _known(stages[:number], trust, stddev)
        share: Any = getattr(stage, "fraction", None)
        if isinstance(share, float):
            public = "public" if isinstance(stage, HasPublicSupport) else "the largest"
            known += (f"{100 * share:.3g} % of the coordinates, {public}",)
        place = trust.noise_at if released else "client"
        state: State = "none" if unsafe and (released or number == len(stages)) else "released" if released else "clean"
        steps.append(Step(title=repr(stage), place=place, known=known, state=state))
    return steps


def _known(stages: Sequence[Stage], trust: TrustModel, stddev: float) -> tuple[tuple[str, ...], bool]:
    """Return what is known after some stages, and whether the values are released then."""
    try:
        claim = claim_after(stages)
    except (NotPrivate, ValueError):  # of an unsafe mechanism
        return ("no bound is proven",), False
    if isinstance(claim, Released):
        return (f"noise of standard deviation {stddev:.4g}",) if stddev else (), True
    if isinstance(claim, Bounded):
        return (f"one {trust.unit} moves the sum by at most {claim.l2:.4g}",), False
    return (f"no bound on what one {trust.unit} adds",), False

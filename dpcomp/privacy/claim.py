"""Claims: the sensitivity or release that a mechanism has proven of a value; and how stages carry them to the noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from dp_accounting import DpEvent  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types

from dpcomp.core.errors import NotPrivate
from dpcomp.core.public_context import PublicContext

ROUNDING = 1e-5  # the part of a bound by which floating point may exceed it; noise is charged as if it did


@dataclass(frozen=True, kw_only=True)
class Unbounded:
    """The claim that nothing bounds what one unit adds to the value.

    Args:
        because: Why, as a clause that an error begins with.
        remedy: What to do, as a sentence that the error ends with, without the full stop.
        support_is_public: Whether the value's support is a function of public or released values.
    """

    because: str
    remedy: str
    support_is_public: bool = True


@dataclass(frozen=True, kw_only=True)
class ShareOfNoise(Unbounded):
    """The claim that the value is a client's clipped update with its share of the noise, N(0, stddev²) a coordinate.

    Decoding a client's payload alone proves it, and no value that is computed of the update has it.

    Args:
        clip_norm: The clip norm of the client.
        stddev: The standard deviation of the share.
    """

    clip_norm: float
    stddev: float


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """The claim that adding or removing one unit moves the value by at most `l2` in Euclidean norm.

    In floating point it may be l2·(1 + 10⁻⁵): `Gaussian` charges for that.

    Args:
        l2: The L2 sensitivity of the exact value.
        support_is_public: Whether the value's support is a function of public or released values.
    """

    l2: float
    support_is_public: bool = True


@dataclass(frozen=True, kw_only=True)
class BoundedWithCount(Bounded):
    """The claim that one unit moves the value by at most `l2`, and a count that is released with it by at most ½.

    The noise multiplier behind it is that of the pair: the pipeline gives each of the two its share of the noise.

    Args:
        count_noise: The standard deviation of the noise on the count; None for `AdaptiveClip`'s default.
    """

    count_noise: float | None


@dataclass(frozen=True, kw_only=True)
class Released:
    """The claim that the value is the output of a mechanism; post-processing of it costs no privacy.

    Args:
        event: What the mechanism costs, as a `dp_accounting` event.
        support_is_public: Whether the value's support is a function of public or released values.
    """

    event: DpEvent
    support_is_public: bool = True


Claim = Unbounded | Bounded | Released

RAW = Unbounded(
    because="the raw gradients are not clipped",
    remedy="Put Clip(norm) before it",
)


@runtime_checkable
class Stage(Protocol):
    """A step of a mechanism, which derives a claim on its output from the claim on its input.

    A stage is a frozen dataclass; its docstring has a paragraph **Privacy:** that says why its claim holds.
    """

    def claim(self, before: Claim, where: str) -> Claim:
        """Return the claim on the output.

        Args:
            before: The claim on the input.
            where: What errors call the stage, such as `"Clip (stage 1)"`.

        Raises:
            NotPrivate: No claim on the output follows from the claim on the input.
            ValueError: The stage does not belong at this place.
        """
        ...


@runtime_checkable
class Transform(Stage, Protocol):
    """A stage before the noise: it maps per-unit gradients, or their sum, to new ones."""

    def apply(self, value: Any, context: PublicContext) -> Any:
        """Transform the gradients.

        Args:
            value: `Units` before the clip, a `Total` after it (dpcomp/privacy/units/unit_gradients.py).
            context: What both ends know in this round; a public support depends on nothing else.

        Returns:
            A `Units` or a `Total` of the same layout.
        """
        ...


def claim_after(stages: Sequence[Stage]) -> Claim:
    """Return the claim on the output of the stages, applied in order to raw gradients.

    Raises:
        NotPrivate: A stage can prove nothing of its input.
        ValueError: A stage does not belong at its place.
    """
    claim: Claim = RAW
    for number, stage in enumerate(stages, start=1):
        claim = stage.claim(claim, f"{type(stage).__name__} (stage {number})")
    return claim


def fold(stages: Sequence[Stage]) -> Released:
    """Return the claim on the output of a whole mechanism, which must be a release on a public support.

    Raises:
        NotPrivate: A stage can prove nothing of its input, or no noise is added at the end.
        ValueError: A stage does not belong at its place.
    """
    claim = claim_after(stages)
    if isinstance(claim, Released) and claim.support_is_public:
        return claim
    chain = ", ".join(type(stage).__name__ for stage in stages) or "nothing"
    raise NotPrivate(
        f"the mechanism ({chain}) ends without noise, so its output has no guarantee. "
        "End it with Clip(norm), Gaussian(noise_multiplier), or wrap it, to study it without a guarantee: "
        "dp.unsafe(why, *stages)"
    )

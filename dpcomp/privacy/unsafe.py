"""Unsafe: mechanisms without a guarantee, for study."""

from dataclasses import dataclass

from dpcomp.privacy.claim import Stage


@dataclass(frozen=True, repr=False)
class Unsafe:
    """A mechanism without a guarantee; `dp.unsafe(why, *stages)` makes it.

    Args:
        why: Why no guarantee is needed; it must not be empty.
        stages: The stages in order; their claims are not checked.

    Raises:
        ValueError: `why` is empty or not a string.
    """

    why: str
    stages: tuple[Stage, ...]

    def __post_init__(self):
        _refuse_no_reason(self.why)

    def __repr__(self) -> str:
        return f"unsafe({', '.join(map(repr, (self.why, *self.stages)))})"


def _refuse_no_reason(why: object) -> None:
    if not isinstance(why, str) or not why.strip():
        raise ValueError("unsafe(why, *stages): say in words why no guarantee is needed; the report repeats it")


def unsafe(why: str, *stages: Stage) -> Unsafe:
    """Return a mechanism without a guarantee: its ε is ∞, and each report repeats the reason.

    Args:
        why: Why no guarantee is needed, in words.
        *stages: The stages in order, with or without noise; without any, the mechanism is the plain sum of the units.

    Raises:
        ValueError: `why` is empty or not a string.

    Examples:
        >>> import dpcomp as dp
        >>> pipeline = dp.Pipeline(mechanism=dp.unsafe("a baseline without noise", dp.Clip(1.0)))
        >>> pipeline.guarantee(steps=100, delta=1e-5).epsilon
        inf
    """
    return Unsafe(why, stages)

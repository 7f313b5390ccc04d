"""Mechanisms without a guarantee, for study."""

from dataclasses import dataclass

from dpcomp.privacy.claim import Stage


@dataclass(frozen=True, repr=False)
class Unsafe:
    """Stages that the fold of claims would refuse, and the reason why they are wanted all the same."""

    why: str
    stages: tuple[Stage, ...]

    def __post_init__(self):
        if not isinstance(self.why, str) or not self.why.strip():
            raise ValueError("unsafe(why, *stages): say in words why no guarantee is needed; the report repeats it")

    def __repr__(self) -> str:
        return f"unsafe({', '.join(map(repr, (self.why, *self.stages)))})"


def unsafe(why: str, *stages: Stage) -> Unsafe:
    """A mechanism without any guarantee: ε = ∞, and every report says why.

    Without stages it is the plain sum of the units.

    Raises:
        ValueError: `why` says nothing.
    """
    return Unsafe(why, stages)

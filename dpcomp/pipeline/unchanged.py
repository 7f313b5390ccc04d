"""What a release rests on, and that no part of a pipeline was changed since the pipeline was made."""

from dataclasses import dataclass, is_dataclass
from functools import cached_property
from typing import Any, cast

from dpcomp.privacy.claim import Released
from dpcomp.privacy.cost import Cost


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a release rests on, taken from the parts of a pipeline once instead of at each use.

    Attributes:
        contents: Of all parts.
        claim: On the mechanism's output.
        cost: Of a release.
        l2: The sensitivity that the noise multiplier scales.
        stddev: The noise's standard deviation; with `AdaptiveClip`, in clip norms.
        count_stddev: That of the noise on the count of `AdaptiveClip`; 0 without one.
        clips_by: What identifies the mechanism whose totals the pipeline may release.
    """

    contents: Any
    claim: Released
    cost: Cost
    l2: float
    stddev: float
    count_stddev: float
    clips_by: Any


def state_beside_fields(part: Any) -> list[str]:
    """Return the names of a part's attributes that are no fields; what a `cached_property` keeps is a field's echo."""
    names = vars(part).keys() - part.__dataclass_fields__.keys() if hasattr(part, "__dict__") else ()
    return sorted(name for name in names if not isinstance(getattr(type(part), name, None), cached_property))


def contents(part: Any) -> Any:
    """Return the classes and contents of a part, which are equal to the former ones as long as nothing was changed."""
    if isinstance(part, tuple):
        return tuple(map(contents, cast(tuple[Any, ...], part)))
    if not is_dataclass(part):
        return part
    names = (*part.__dataclass_fields__, *state_beside_fields(part))
    return type(part), tuple((name, contents(getattr(part, name))) for name in names)

"""What a release rests on, and that no part of a pipeline was changed since the pipeline was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from typing import Any, cast

from dpcomp.core.errors import NotPrivate
from dpcomp.core.identity import Composition, Dictionaries, Dictionary
from dpcomp.pipeline.fields import PipelineFields
from dpcomp.pipeline.mechanism import claim_of, cost_of, count_stddev_of, noise_l2_of, noise_stddev_of
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


class HeldObjects:
    """The objects that the fields of a pipeline hold, and those that they are made of.

    While these are the same objects, nothing was changed, which is seen without comparing contents.

    Args:
        held: The attributes of the pipeline.
        names: The names of its fields.
    """

    def __init__(self, held: Mapping[str, Any], names: Sequence[str]):
        self._fields = Dictionaries([Dictionary(held, names, whole=False)])
        self._parts = Composition(held[name] for name in names)

    def same(self) -> bool:
        """Return whether they are the same objects as when this was made: False also where that is not known."""
        return self._fields.same() and self._parts.same()


def facts_of(pipeline: PipelineFields) -> Facts:
    """Return what a release of a pipeline rests on, as its parts are now.

    Raises:
        NotPrivate: The stages have no guarantee.
    """
    mechanism = _contents(pipeline.mechanism)
    others = (pipeline.codec, pipeline.downlink, pipeline.sampling, pipeline.feedback, pipeline.unit, pipeline.trust)
    return Facts(
        contents=(mechanism, _contents(others)),
        claim=claim_of(pipeline),
        cost=cost_of(pipeline),
        l2=noise_l2_of(pipeline),
        stddev=noise_stddev_of(pipeline),
        count_stddev=count_stddev_of(pipeline),
        # A stage that was changed equals itself, so the contents too; and the shares of the noise that units have.
        clips_by=(pipeline.mechanism, mechanism, pipeline.codec.noise_share),
    )


def facts_if_unchanged(pipeline: PipelineFields, at_birth: Facts) -> Facts:
    """Return what a release of a pipeline rests on now, which is what it was when the pipeline was made.

    Args:
        pipeline: The pipeline.
        at_birth: What a release rested on when the pipeline was made.

    Raises:
        NotPrivate: A part was changed since then: what was charged is another mechanism.
    """
    try:
        facts = facts_of(pipeline)
    except (NotPrivate, TypeError, ValueError) as error:
        raise NotPrivate(f"a part was changed after the pipeline was made, and now {error}") from error
    if facts != at_birth:
        raise NotPrivate(
            f"a part was changed after the pipeline was made, which is now {pipeline}, with the claim {facts.claim} "
            f"where {at_birth.claim} was charged: parts are values, so make another pipeline of other parts"
        )
    return facts


def state_beside_fields(part: Any) -> list[str]:
    """Return the names of a part's attributes that are no fields; what a `cached_property` keeps is a field's echo."""
    names = vars(part).keys() - part.__dataclass_fields__.keys() if hasattr(part, "__dict__") else ()
    return sorted(name for name in names if not isinstance(getattr(type(part), name, None), cached_property))


def _contents(part: Any) -> Any:
    """Return the classes and contents of a part, which are equal to the former ones as long as nothing was changed."""
    if isinstance(part, tuple):
        return tuple(map(_contents, cast(tuple[Any, ...], part)))
    if not is_dataclass(part):
        return part
    names = (*part.__dataclass_fields__, *state_beside_fields(part))
    return type(part), tuple((name, _contents(getattr(part, name))) for name in names)

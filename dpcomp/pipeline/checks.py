"""What a pipeline refuses when it is made."""

from dataclasses import fields, is_dataclass
from typing import Any, cast

from dpcomp.codec import LastBroadcast
from dpcomp.codec.codec import Sparsifier
from dpcomp.codec.entropy import EntropyCoder
from dpcomp.codec.quantize import ExactGaussian, Quantizer
from dpcomp.core.checks import missing_members
from dpcomp.pipeline.table import PARTS
from dpcomp.privacy import AdaptiveClip, Clip, Gaussian, Poisson
from dpcomp.privacy.claim import Stage
from dpcomp.sparsify import RandomK


def _refuse_subclass(part: Any) -> None:
    """Refuse a subclass of a part whose proof is in its code: what it overrides would still be charged as before."""
    for proven in (Clip, AdaptiveClip, Gaussian, Poisson, RandomK, ExactGaussian):
        if isinstance(part, proven) and type(part) is not proven:
            raise TypeError(
                f"{part!r} is of {type(part).__name__}, a subclass of {proven.__name__}, whose proof is of that class "
                "alone: write a stage of its own, with the claim that it proves"
            )


def _refuse_taken_names(part: Any) -> None:
    """Refuse an own class with the name of a part of dpcomp, for which a fingerprint or a TOML file would take it."""
    if isinstance(part, tuple):
        for item in cast("tuple[Any, ...]", part):
            _refuse_taken_names(item)
    elif is_dataclass(part):
        name = type(part).__name__
        if PARTS.get(name, type(part)) is not type(part):
            raise ValueError(
                f"{part!r} is of an own class {name}, but dpcomp has a part of that name: rename the class"
            )
        for item in fields(part):
            _refuse_taken_names(getattr(part, item.name))


def _why_no_stage(part: object, number: int) -> str:
    """Return the message of an error: why a part of a mechanism is no stage, and what to do."""
    where = f"mechanism: {part!r} (stage {number})"
    if isinstance(part, type):
        return f"{where} is a class: give an instance of it, such as {part.__name__}(…)"
    if isinstance(part, (Sparsifier, Quantizer, EntropyCoder, LastBroadcast)):
        return f"{where} is no stage, but a part of the codec: give it to {_as_codec(part)}"
    missing = ", ".join(missing_members(part, Stage))
    return f"{where} is no stage; it lacks: {missing}. Give one such as dp.Clip(1.0), or write these methods"


def _as_codec(part: object) -> str:
    """Return the call that makes a codec of a part: what an error says to write."""
    slots = {"sparsify": Sparsifier, "quantize": Quantizer, "entropy": EntropyCoder, "predict": LastBroadcast}
    for slot, protocol in slots.items():
        if isinstance(part, protocol) and not isinstance(part, type):
            return f"dp.Codec({slot}={part!r})"
    return "dp.Codec(quantize=dp.Uniform(4)), or dp.Codec() for float32"

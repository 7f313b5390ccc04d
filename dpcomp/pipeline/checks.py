"""What a pipeline refuses when it is made: parts of a wrong type, and parts that do not work together."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast

from dpcomp.codec import Codec, LastBroadcast
from dpcomp.codec.codec import Sparsifier
from dpcomp.codec.entropy import EntropyCoder
from dpcomp.codec.quantize import ExactGaussian, Quantizer
from dpcomp.core.checks import missing_members
from dpcomp.core.errors import NotPrivate
from dpcomp.core.public_context import HasPublicSupport
from dpcomp.pipeline.fields import PipelineFields
from dpcomp.pipeline.mechanism import shared_noise_of
from dpcomp.pipeline.table import PARTS
from dpcomp.pipeline.unchanged import state_beside_fields
from dpcomp.privacy import AdaptiveClip, Clip, Gaussian, Poisson, Unsafe
from dpcomp.privacy.claim import Stage
from dpcomp.sparsify import RandomK
from dpcomp.wire.feedback import EF21, MomentumCorrection


def check_types(pipeline: PipelineFields) -> None:
    """Refuse a part that has the wrong type for its argument.

    Raises:
        TypeError: A part has another type, or is of a subclass of a part whose proof is in its code.
        ValueError: A part is of an own class with the name of one of dpcomp's.
    """
    for number, stage in enumerate(pipeline.stages, start=1):
        if not isinstance(stage, Stage) or isinstance(stage, type):
            raise TypeError(_why_no_stage(stage, number))
        _refuse_subclass(stage)
    for name in ("codec", "downlink"):
        codec = getattr(pipeline, name)
        if not isinstance(codec, Codec) and (name, codec) != ("downlink", None):
            raise TypeError(f"Pipeline({name}={codec!r}) is no Codec: write {_as_codec(codec)}")
    if pipeline.sampling is not None and not isinstance(pipeline.sampling, Poisson):
        raise TypeError(f"Pipeline(sampling={pipeline.sampling!r}): give dp.Poisson(rate), or None for all units")
    _refuse_subclass(pipeline.sampling)
    if type(pipeline.feedback) not in (bool, MomentumCorrection, EF21):
        raise TypeError(
            f"Pipeline(feedback={pipeline.feedback!r}): give True or False, dp.MomentumCorrection(...) or dp.EF21(...)"
        )
    _refuse_taken_names((pipeline.stages, pipeline.codec, pipeline.downlink, pipeline.sampling))


def check_together(pipeline: PipelineFields) -> None:
    """Refuse parts that do not work together.

    Raises:
        NotPrivate: They have no guarantee together.
        ValueError: One of them makes what another does wrong or useless.
    """
    if not isinstance(pipeline.mechanism, Unsafe) and (refusal := pipeline.trust_model.why_refused):
        raise NotPrivate(refusal)
    _check_supports(pipeline)
    _check_estimates(pipeline)
    _check_feedback(pipeline)
    _check_adaptive_clip(pipeline)
    _check_noise_share(pipeline)
    _check_prediction(pipeline)


def check_state(stages: Sequence[Stage]) -> None:
    """Refuse a stage with state that is no field of it.

    Raises:
        TypeError: A stage has such state.
    """
    for number, stage in enumerate(stages, start=1):
        if hidden := state_beside_fields(stage):
            raise TypeError(
                f"mechanism: {stage!r} (stage {number}) has {', '.join(hidden)} beside its fields, which may "
                "change unseen: make it a field, or compute it where it is used"
            )


def _masks(pipeline: PipelineFields) -> list[Stage]:
    """Return the stages that have a public support."""
    return [stage for stage in pipeline.stages if isinstance(stage, HasPublicSupport)]


def _codecs(pipeline: PipelineFields) -> list[Codec]:
    return [pipeline.codec, *([pipeline.downlink] if pipeline.downlink else [])]


def _check_supports(pipeline: PipelineFields) -> None:
    """Refuse public supports that leave no single one for all, or that tell who took part."""
    masks, downlink = _masks(pipeline), pipeline.downlink
    if len(masks) + any(isinstance(codec.sparsify, HasPublicSupport) for codec in _codecs(pipeline)) > 1:
        raise ValueError(
            "two parts have a public support: a round has one, of the mechanism or of the codec. Leave one out"
        )
    own = next((stage for stage in masks if getattr(stage, "varies_by_client", False)), None)
    if own is not None and pipeline.trust_model.server_sees_clean:
        raise NotPrivate(
            f"{own} gives each client a support of its own, but with trust='server' one noise stands on the sum of "
            "all: on the supports of those who took part it would tell who they are. Give it to the codec, "
            f"dp.Codec(sparsify={own}), so that the noise stands on all coordinates"
        )
    if (
        downlink is not None
        and getattr(downlink.sparsify, "varies_by_client", False)
        and downlink.sparsify != pipeline.codec.sparsify
    ):
        raise ValueError(
            f"downlink={downlink}: a broadcast is for all clients, and stands on the union of the own "
            "supports that they sent; here they have none, so all coordinates would be sent. Give the codec the "
            "same sparsifier, or the downlink another one"
        )


def _check_estimates(pipeline: PipelineFields) -> None:
    """Refuse settings under which the signal estimates of an allocator that uses the noise are wrong."""
    codec = pipeline.codec
    if not codec.averaged_clients:
        return
    at_fault = [f"feedback={pipeline.feedback}"] if pipeline.feedback else []
    at_fault += [repr(codec.sparsify)] if codec.sparsify else []
    at_fault += [repr(stage) for stage in _masks(pipeline)]
    if at_fault:
        raise ValueError(
            f"{codec.quantize} estimates the signal from the variances of whole updates and of the noise, "
            f"which {' and '.join(at_fault)} would change. Set feedback=False and use no sparsifier, or leave out "
            "clients="
        )
    if pipeline.trust_model.server_sees_clean:
        raise ValueError(
            f"{codec.quantize} uses the noise in updates, but with trust='server' they have none: leave out clients="
        )


def _check_feedback(pipeline: PipelineFields) -> None:
    """Refuse a feedback that does not work with the codec or the trust."""
    feedback, codec = pipeline.feedback, pipeline.codec
    if isinstance(feedback, EF21) and pipeline.trust_model.server_sees_clean:
        raise ValueError(
            f"feedback={feedback} with trust='server': the server would clip the differences that clients "
            "send, so that its estimate is not theirs, and would add up the noise of all rounds. Use "
            "feedback=True or dp.MomentumCorrection(...)"
        )
    if isinstance(feedback, MomentumCorrection) and feedback.masking:
        sends_all = codec.sparsify is None and not _masks(pipeline)
        if sends_all or codec.predict:
            raise ValueError(
                f"feedback={feedback} beside {codec}, which sends something of all coordinates: masking "
                "would set the whole momentum to zero in every round. Use masking=False, or a sparsifier and no "
                "predict="
            )


def _check_adaptive_clip(pipeline: PipelineFields) -> None:
    """Refuse a clip norm that adapts where nobody counts what it follows, or where its claim would not hold."""
    stages = pipeline.stages
    places = [number for number, stage in enumerate(stages) if isinstance(stage, AdaptiveClip)]
    if not places:
        return
    stage = stages[places[0]]
    if isinstance(pipeline.mechanism, Unsafe):
        raise ValueError(f"dp.unsafe(...) with {stage}: what it charges is proven for its own place alone. Use Clip")
    if pipeline.trust_model.noise_at != "server":
        raise NotPrivate(
            f"{stage} with unit={pipeline.unit!r} and trust={pipeline.trust!r}: its norm follows a count over all "
            "clients, which a trusted server alone can make and noise. Use unit='client' and trust='server', or "
            "dp.Clip(norm)"
        )
    if pipeline.codec.noise_share is not None:
        raise NotPrivate(
            f"{stage} beside {pipeline.codec.quantize}, whose clients clip to a fixed norm, so that their errors are "
            "the noise: use dp.Clip(norm), or another quantiser"
        )
    if places != [len(stages) - 2] or not isinstance(stages[-1], Gaussian):
        raise ValueError(
            f"{stage} does not stand directly before Gaussian: the two share the noise between a sum and a count. "
            "Write mechanism=(…, dp.AdaptiveClip(…), dp.Gaussian(…)), with a public support before it"
        )


def _check_noise_share(pipeline: PipelineFields) -> None:
    """Refuse a pipeline in which the error of the clients' codec is meant to be noise, and would not hide them."""
    share, downlink = pipeline.codec.noise_share, pipeline.downlink
    if downlink is not None and downlink.noise_share is not None:
        raise NotPrivate(
            f"downlink={downlink}: a broadcast is for all, and the dither of {downlink.quantize} is a "
            "secret of each client: give the downlink another codec, such as dp.Codec()"
        )
    if share is None:
        return
    _refuse_subclass(share)
    # Refuse a mechanism and a trust under which the error would not hide a client.
    shared_noise_of(pipeline)
    if pipeline.feedback is not False:
        raise NotPrivate(
            f"{share} with feedback={pipeline.feedback!r}: the residual would be the noise of this release, and take "
            "it away in the next one. Set feedback=False"
        )
    if downlink is None:
        raise ValueError(
            f"{share} codes the updates of clients; broadcasts need a codec of their own: give downlink=dp.Codec()"
        )


def _check_prediction(pipeline: PipelineFields) -> None:
    """Refuse a prediction of whole updates where parts of them are sent."""
    if any(codec.predict for codec in _codecs(pipeline)) and _masks(pipeline):
        raise ValueError(
            "predict= needs whole updates, but a support in the mechanism sends parts of them: leave one out"
        )


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

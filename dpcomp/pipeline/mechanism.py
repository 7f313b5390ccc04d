"""What the mechanism of a pipeline proves: the claim on its output, the bound that its noise hides, and its cost."""

from collections.abc import Sequence

from dp_accounting import NonPrivateDpEvent

from dpcomp.core.errors import NotPrivate
from dpcomp.pipeline.fields import PipelineFields
from dpcomp.privacy import AdaptiveClip, Clip, Gaussian, Unsafe
from dpcomp.privacy.adaptive_clip import count_stddev, sum_multiplier
from dpcomp.privacy.claim import Bounded, BoundedWithCount, Released, Stage, claim_after, fold
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.shared_noise import SharedNoise


def gaussian_of(stages: Sequence[Stage]) -> Gaussian | None:
    """Return the noise, which is the last stage; None where that is another one."""
    last = stages[-1] if stages else None
    return last if isinstance(last, Gaussian) else None


def adaptive_clip_of(stages: Sequence[Stage]) -> AdaptiveClip | None:
    """Return the clip whose norm adapts, which is the last stage before the noise; None where that is another one."""
    before = stages[:-1] if gaussian_of(stages) else stages
    stage = before[-1] if before else None
    return stage if isinstance(stage, AdaptiveClip) else None


def shared_noise_of(pipeline: PipelineFields) -> SharedNoise | None:
    """Return the noise that the errors of the clients' codec make; None where the pipeline draws all of it.

    Raises:
        NotPrivate: The errors would not hide a client.
    """
    share = pipeline.codec.noise_share
    return None if share is None else SharedNoise.of(share, pipeline.mechanism, pipeline.trust_model)


def claim_of(pipeline: PipelineFields) -> Released:
    """Return the claim on the mechanism's output: released, at the cost of an event.

    Raises:
        NotPrivate: The stages have no guarantee.
    """
    if isinstance(pipeline.mechanism, Unsafe):
        return Released(event=NonPrivateDpEvent())
    stages = pipeline.stages
    claim = fold(stages)
    for number, stage in enumerate(stages, start=1):
        if isinstance(stage, Gaussian) != (number == len(stages)):
            raise NotPrivate(
                f"{type(stage).__name__} (stage {number} of {len(stages)}): a mechanism has a single "
                "Gaussian, which is its last stage. Put other stages before it, or into the codec"
            )
    shared = shared_noise_of(pipeline)
    return claim if shared is None else Released(event=shared.event)


def noise_l2_of(pipeline: PipelineFields) -> float:
    """Return the L2 sensitivity that the noise multiplier scales: the bound that the stages before the noise prove.

    Unsafe stages prove no bound; for them it is the norm of the last clip.

    Raises:
        NotPrivate: Nothing before the noise clips.
    """
    stages, noise = pipeline.stages, gaussian_of(pipeline.stages)
    if noise is None:
        return 0.0
    if not isinstance(pipeline.mechanism, Unsafe):
        before = claim_after(stages[:-1])
        if isinstance(before, BoundedWithCount):
            multiplier = noise.noise_multiplier
            return before.l2 * sum_multiplier(multiplier, before.count_noise) / multiplier
        if isinstance(before, Bounded):
            return before.l2
    norms = [stage.norm for stage in stages if isinstance(stage, Clip)]
    if not norms:
        raise NotPrivate(f"{noise} has no Clip before it, whose norm scales the noise: add one")
    return norms[-1]


def noise_stddev_of(pipeline: PipelineFields) -> float:
    """Return the standard deviation of the noise; with `AdaptiveClip`, in clip norms; 0 without noise.

    Raises:
        NotPrivate: Nothing before the noise clips.
    """
    noise = gaussian_of(pipeline.stages)
    return 0.0 if noise is None else noise.noise_multiplier * noise_l2_of(pipeline)


def count_stddev_of(pipeline: PipelineFields) -> float:
    """Return the standard deviation of the noise on the count of `AdaptiveClip`; 0 without one."""
    noise, adaptive = gaussian_of(pipeline.stages), adaptive_clip_of(pipeline.stages)
    return 0.0 if noise is None or adaptive is None else count_stddev(noise.noise_multiplier, adaptive.count_noise)


def cost_of(pipeline: PipelineFields) -> Cost:
    """Return the cost of a single release; its event includes the sampling if that amplifies.

    Raises:
        NotPrivate: The stages have no guarantee.
    """
    event, sampling = claim_of(pipeline).event, "none"
    if pipeline.sampling is not None:
        sampling = f"Poisson {pipeline.sampling.rate:g}"
        if not pipeline.trust_model.amplified:
            sampling = "no amplification (the server sees who sends)"
        elif not isinstance(pipeline.mechanism, Unsafe):
            event = pipeline.sampling.amplify(event)
    why_unsafe = pipeline.mechanism.why if isinstance(pipeline.mechanism, Unsafe) else ""
    shared = shared_noise_of(pipeline)
    assumed = () if shared is None else shared.assumed(pipeline.sampling)
    if adaptive_clip_of(pipeline.stages) is not None:
        assumed = (*assumed, "the event is that of the sum and of the noisy count that the clip norm follows")
    return Cost(
        event=event,
        unit=pipeline.unit,
        trust=pipeline.trust,
        sampling=sampling,
        why_unsafe=why_unsafe,
        assumed=assumed,
    )

"""Calibration: the least noise that meets a target ε."""

import math
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from dpcomp.core.checks import real_number
from dpcomp.privacy.accounting.epsilon import rdp_epsilon
from dpcomp.privacy.accounting.events import composed
from dpcomp.privacy.cost import HasCost

Pipeline = TypeVar("Pipeline", bound=HasCost)

TOLERANCE = 0.005  # the result's ε is at most this share below the target
SMALLEST_NOISE, LARGEST_NOISE = 1e-3, 1e8  # the noise multipliers that are searched
EVALUATIONS = 24  # at most, of the full rule: a secant takes three or four


def calibrate(make_pipeline: Callable[[float], Pipeline], *, epsilon: float, delta: float, steps: int) -> Pipeline:
    """Return the pipeline with the least noise whose guarantee over `steps` releases has at most the target ε.

    The result's ε is at most the target, and within 0.5 % of it. The search brackets the noise multiplier by Rényi DP,
    which is cheap, and continues with a secant on log ε against log z of the guarantee itself.

    Args:
        make_pipeline: Maps a noise multiplier to the pipeline that uses it. It is called some 50 times.
        epsilon: The target ε, a finite number above 0.
        delta: δ, in (0, 1).
        steps: The number of releases, 1 or more.

    Returns:
        What `make_pipeline` returned for the noise multiplier of the result.

    Raises:
        TypeError: `steps` is not a whole number, or `delta` not a number.
        ValueError: `epsilon`, `delta` or `steps` lies outside its range, or no noise multiplier reaches the target.

    Examples:
        >>> import dpcomp as dp
        >>> def pipeline_with(noise_multiplier):
        ...     mechanism = (dp.Clip(1.0), dp.Gaussian(noise_multiplier))
        ...     return dp.Pipeline(mechanism=mechanism, sampling=dp.Poisson(0.01))
        >>> pipeline = dp.calibrate(pipeline_with, epsilon=2.0, delta=1e-5, steps=1000)
        >>> 1.99 <= pipeline.guarantee(steps=1000, delta=1e-5).epsilon <= 2.0
        True
    """
    largest = check_target(make_pipeline, epsilon=epsilon, delta=delta, steps=steps)

    def by_rdp(noise_multiplier: float) -> float:
        return rdp_epsilon(composed(make_pipeline(noise_multiplier).cost.event, steps), delta)

    @cache
    def excess(log_noise: float) -> float:
        proven = make_pipeline(math.exp(log_noise)).cost.guarantee(steps, delta).epsilon
        return math.log(max(proven, 1e-300) / epsilon)

    # RDP is never below the guarantee, so its answer is safe, and usually a few percent too noisy.
    enough = _least_noise(by_rdp, epsilon, most=largest)
    safe, step = math.log(enough), 0.1
    little = safe - step
    while excess(little) <= 0 and little > math.log(SMALLEST_NOISE):
        safe, little, step = little, little - 2 * step, 2 * step
    for _ in range(EVALUATIONS):
        if -TOLERANCE <= excess(safe) <= 0:
            break
        slope = (excess(little) - excess(safe)) / (safe - little)
        # Aimed a little inside the target, so that the guess itself is safe more often than not.
        guess = safe + (excess(safe) + TOLERANCE / 3) / slope if slope > 0 else little
        width = safe - little
        guess = min(max(guess, little + 0.02 * width), safe - 0.02 * width)
        safe, little = (guess, little) if excess(guess) <= 0 else (safe, guess)
    return make_pipeline(math.exp(safe))


def check_target(make_pipeline: Callable[[float], HasCost], *, epsilon: float, delta: float, steps: int) -> float:
    """Refuse a target that `calibrate` could not reach; this takes milliseconds.

    Args:
        make_pipeline: Maps a noise multiplier to the pipeline that uses it.
        epsilon: The target ε.
        delta: δ, in (0, 1).
        steps: The number of releases.

    Returns:
        The largest noise multiplier that is searched: LARGEST_NOISE, or where `make_pipeline` begins to refuse.

    Raises:
        TypeError: `epsilon` or `delta` is not a number, or `steps` not a whole number.
        ValueError: One of them lies outside its range, or no noise multiplier reaches the target.
    """
    if not callable(make_pipeline):
        raise TypeError(
            f"calibrate(make_pipeline) is a {type(make_pipeline).__name__}: give a function from the noise multiplier "
            "to the pipeline, such as lambda z: dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(z)))"
        )
    epsilon = real_number(epsilon, "calibrate(epsilon)", "a finite number above 0")
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"calibrate(epsilon={epsilon!r}): the target is a finite number above 0")
    if steps == 0:
        raise ValueError("calibrate(steps=0): nothing is released, so nothing needs noise")
    largest, refusal = _largest_noise(make_pipeline)
    least = rdp_epsilon(composed(make_pipeline(largest).cost.event, steps), delta)
    if least > epsilon:
        raise ValueError(
            f"calibrate: no noise multiplier up to {largest:g} reaches ε = {epsilon:g}; the least ε is {least:.2g}. "
            + (
                "Does make_pipeline pass its argument to Gaussian, and is the mechanism not unsafe?"
                if refusal is None
                else f"make_pipeline refuses more: {refusal}"
            )
        ) from refusal
    return largest


def _largest_noise(make_pipeline: Callable[[float], HasCost]) -> tuple[float, ValueError | None]:
    """Return the largest noise multiplier that `make_pipeline` takes, to 0.1 %, and how it refuses more.

    Other parts of a mechanism may bound the noise, as `AdaptiveClip(count_noise=...)` does.

    Raises:
        ValueError: That of LARGEST_NOISE, if `make_pipeline` takes no multiplier.
    """
    refusal = _refusal_of(make_pipeline, LARGEST_NOISE)
    if refusal is None:
        return LARGEST_NOISE, None
    low, high = LARGEST_NOISE, LARGEST_NOISE
    while _refusal_of(make_pipeline, low) is not None:
        if low <= SMALLEST_NOISE:
            raise refusal
        low, high = max(low / 4, SMALLEST_NOISE), low
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        refused = _refusal_of(make_pipeline, middle)
        low, high, refusal = (middle, high, refusal) if refused is None else (low, middle, refused)
    return low, refusal


def _refusal_of(make_pipeline: Callable[[float], HasCost], noise_multiplier: float) -> ValueError | None:
    try:
        make_pipeline(noise_multiplier)
    except ValueError as error:
        return error
    return None


def _least_noise(by_rdp: Callable[[float], float], epsilon: float, *, most: float) -> float:
    """Return the least noise multiplier, to 0.1 %, at which ε by RDP is at most the target."""
    low, high = SMALLEST_NOISE, min(1.0, most)
    while by_rdp(high) > epsilon:
        low, high = high, min(4 * high, most)
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if by_rdp(middle) <= epsilon else (middle, high)
    return high

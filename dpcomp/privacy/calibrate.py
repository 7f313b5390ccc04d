"""The noise that a budget asks for."""

import math
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from dpcomp.privacy.cost import HasCost
from dpcomp.privacy.epsilon import rdp_epsilon
from dpcomp.privacy.events import composed

Pipeline = TypeVar("Pipeline", bound=HasCost)

CLOSE = 0.005  # ε ends at most this share below the target
LEAST, MOST = 1e-3, 1e8  # noise multipliers that are looked at
EVALUATIONS = 24  # of the full rule: a secant takes three or four


def calibrate(make_pipeline: Callable[[float], Pipeline], *, epsilon: float, delta: float, steps: int) -> Pipeline:
    """The pipeline with the least noise found whose guarantee over `steps` releases is at most `epsilon`.

    `make_pipeline` maps a noise multiplier to a pipeline. RDP brackets the answer cheaply; then a secant on
    log ε against log z, of the guarantee itself, ends on the safe side, within 0.5 % of the target.

    Raises:
        ValueError: epsilon is not a finite number above 0, delta not in (0, 1), steps 0 or below, or no noise
            multiplier reaches epsilon.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"calibrate(epsilon={epsilon!r}): the target is a finite number above 0")
    if steps == 0:
        raise ValueError("calibrate(steps=0): nothing is released, so nothing needs noise")

    def bracketing(noise_multiplier: float) -> float:
        return rdp_epsilon(composed(make_pipeline(noise_multiplier).cost.event, steps), delta)

    @cache
    def excess(log_noise: float) -> float:
        found = make_pipeline(math.exp(log_noise)).cost.guarantee(steps, delta).epsilon
        return math.log(max(found, 1e-300) / epsilon)

    # RDP is never below the guarantee, so its answer is safe, and usually a few percent too noisy.
    enough = _least(bracketing, epsilon)
    safe, step = math.log(enough), 0.1
    little = safe - step
    while excess(little) <= 0 and little > math.log(LEAST):
        safe, little, step = little, little - 2 * step, 2 * step
    for _ in range(EVALUATIONS):
        if -CLOSE <= excess(safe) <= 0:
            break
        slope = (excess(little) - excess(safe)) / (safe - little)
        # Aimed a little inside the target, so that the guess itself is safe more often than not.
        guess = safe + (excess(safe) + CLOSE / 3) / slope if slope > 0 else little
        width = safe - little
        guess = min(max(guess, little + 0.02 * width), safe - 0.02 * width)
        safe, little = (guess, little) if excess(guess) <= 0 else (safe, guess)
    return make_pipeline(math.exp(safe))


def _least(bracketing: Callable[[float], float], epsilon: float) -> float:
    """A noise multiplier at which the cheap bound just reaches epsilon."""
    low, high = LEAST, 1.0
    while bracketing(high) > epsilon:
        low, high = high, 4 * high
        if high > MOST:
            raise ValueError(
                f"calibrate: no noise multiplier up to {MOST:g} reaches ε = {epsilon:g}. Does make_pipeline give its "
                "argument to Gaussian, and is the mechanism not unsafe?"
            )
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if bracketing(middle) <= epsilon else (middle, high)
    return high

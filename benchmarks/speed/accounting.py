"""Accounting: ε of many steps, and the noise for a target ε, beside dp_accounting's privacy loss distributions.

Every turn takes another noise multiplier or target, so that nothing was computed before. To calibrate, dp_accounting is
given a bracket of a factor of four around dpcomp's answer: without one it may try noise that takes it minutes.
"""

import itertools
import time
from collections.abc import Callable, Iterator

import dp_accounting
import numpy as np
from dp_accounting.pld import PLDAccountant

import dpcomp as dp
from benchmarks.harness.rows import Goal, Row, compared
from benchmarks.harness.turns import Effort, measure_in_turns, seconds

PLD = "dp_accounting, PLD"
STEPS, RATE, DELTA = 10_000, 0.01, 1e-5
RANDOM_CALIBRATIONS = 20
TOLERANCE = 1e-3  # of the noise multiplier, for the peer


def accounting(effort: Effort) -> list[Row]:
    """Measure the seconds of a guarantee, of a calibration, and of the slowest of 20 random calibrations."""
    steps = effort.size(STEPS, 200)
    noises = itertools.count(1.0, 0.01)
    one = measure_in_turns(
        {
            "dpcomp": lambda: seconds(_guarantee(next(noises), steps)),
            PLD: lambda: seconds(_peer_epsilon(next(noises), steps)),
        },
        effort.turns,
    )
    ours, theirs = [], []
    for number in range(effort.turns):
        for figures, spent in zip((ours, theirs), _calibrated(2.0 + 0.01 * number, DELTA, RATE, steps), strict=True):
            figures.append(spent)
    return [
        compared(
            f"ε of {steps:,} steps (rate {RATE:g}, δ = {DELTA:g})",
            "s",
            one["dpcomp"],
            PLD,
            one[PLD],
            goal=Goal(of="figure", most=0.07),
        ),
        compared(
            f"calibrate: {steps:,} steps to ε = 2",
            "s",
            ours,
            PLD,
            theirs,
            goal=Goal(of="figure", most=0.3),
        ),
        _slowest_of_random(effort),
    ]


def _slowest_of_random(effort: Effort) -> Row:
    """Measure random calibrations: rates from 10⁻⁴ to 0.3, 10 to 10⁵ steps, ε from 0.3 to 10, δ from 10⁻⁸ to 10⁻⁴."""
    number = effort.size(RANDOM_CALIBRATIONS, 2)
    ours, theirs = zip(*(_calibrated(*setting) for setting in _random_settings(number)), strict=True)
    return compared(
        f"calibrate: the slowest of {number} random ones",
        "s",
        [max(ours)],
        PLD,
        [max(theirs)],
        goal=Goal(of="figure", most=1.0),
        note=f"each once; all {number} together: {sum(ours):.1f} s, {PLD} {sum(theirs):.1f} s",
    )


def _random_settings(number: int) -> Iterator[tuple[float, float, float, int]]:
    rng = np.random.default_rng(0)
    for _ in range(number):
        epsilon, delta, rate, steps = np.exp(rng.uniform(np.log([0.3, 1e-8, 1e-4, 10]), np.log([10, 1e-4, 0.3, 1e5])))
        yield float(epsilon), float(delta), float(rate), round(steps)


def _pipeline(noise_multiplier: float, rate: float = RATE) -> dp.Pipeline:
    return dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(noise_multiplier)), sampling=dp.Poisson(rate))


def _guarantee(noise_multiplier: float, steps: int) -> Callable[[], object]:
    pipeline = _pipeline(noise_multiplier)
    return lambda: pipeline.guarantee(steps=steps, delta=DELTA)


def _calibrated(epsilon: float, delta: float, rate: float, steps: int) -> tuple[float, float]:
    """Calibrate by dpcomp and by dp_accounting, and return the seconds of each."""
    start = time.perf_counter()
    pipeline = dp.calibrate(lambda noise: _pipeline(noise, rate), epsilon=epsilon, delta=delta, steps=steps)
    ours = time.perf_counter() - start
    (noise,) = (stage.noise_multiplier for stage in pipeline.stages if isinstance(stage, dp.Gaussian))

    def calibrate() -> object:
        return dp_accounting.calibrate_dp_mechanism(
            PLDAccountant,
            lambda noise: _event(noise, rate, steps),
            epsilon,
            delta,
            bracket_interval=dp_accounting.ExplicitBracketInterval(noise / 2, 2 * noise),
            tol=TOLERANCE * noise,
        )

    return ours, seconds(calibrate)


def _event(noise_multiplier: float, rate: float, steps: int) -> dp_accounting.DpEvent:
    sampled = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise_multiplier))
    return dp_accounting.SelfComposedDpEvent(sampled, steps)


def _peer_epsilon(noise_multiplier: float, steps: int) -> Callable[[], object]:
    return lambda: PLDAccountant().compose(_event(noise_multiplier, RATE, steps)).get_epsilon(DELTA)

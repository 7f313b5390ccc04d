"""Events: compose dp_accounting's events, list the Gaussians in them, and write them as text."""

import json
from collections import Counter
from functools import lru_cache

from dp_accounting import dp_event  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types

from dpcomp.core.checks import real_number, whole_number
from dpcomp.core.errors import NotPrivate

MOST_STEPS = 10**12  # of an event: with more, sums overflow a database's integers
SMALLEST_NOISE, LARGEST_NOISE = 1e-10, 1e10  # multipliers; beyond, no accountant's arithmetic is sound


def composed(event: dp_event.DpEvent, steps: int) -> dp_event.DpEvent:
    """Return the event repeated `steps` times; for zero steps, `NoOpDpEvent`.

    Raises:
        TypeError: `steps` is not a whole number.
        ValueError: `steps` is below 0.
    """
    steps = whole_number(steps, "steps, the number of releases,", least=0)
    return dp_event.SelfComposedDpEvent(event, steps) if steps else dp_event.NoOpDpEvent()


def gaussians_in(event: dp_event.DpEvent) -> Counter[tuple[float, float]]:
    """Count the Gaussian releases in an event, by (sampling rate, noise multiplier).

    A non-private release counts as a Gaussian with noise multiplier 0.

    Raises:
        NotPrivate: The event holds anything but Gaussians, on all units or on a Poisson sample.
        TypeError: A number in it has another type.
        ValueError: A noise multiplier, rate or number of repeats lies outside its range, or is not a number.
    """
    match event:
        case dp_event.NoOpDpEvent():
            return Counter()
        case dp_event.NonPrivateDpEvent():
            return Counter({(1.0, 0.0): 1})
        case dp_event.GaussianDpEvent(noise_multiplier=noise):
            return Counter({_part(1.0, noise): 1})
        case dp_event.PoissonSampledDpEvent(event=dp_event.GaussianDpEvent(noise_multiplier=noise)):
            return Counter({_part(event.sampling_probability, noise): 1})
        case dp_event.SelfComposedDpEvent():
            repeats = whole_number(event.count, "the number of repeats of an event", least=0)
            return Counter({part: count * repeats for part, count in gaussians_in(event.event).items() if repeats})
        case dp_event.ComposedDpEvent():
            total = Counter[tuple[float, float]]()
            for inner in event.events:
                total.update(gaussians_in(inner))
            return total
        case _:
            raise NotPrivate(
                f"{event} is not accounted for: dpcomp releases Gaussians, on all units or on a Poisson sample"
            )


def _part(rate: object, noise: object) -> tuple[float, float]:
    """Return the sampling rate and the noise multiplier of a Gaussian, or refuse what no accountant can account for."""
    rate = real_number(rate, "the sampling rate of an event", "a probability above 0, up to 1")
    noise = real_number(noise, "the noise multiplier of an event", "0, or a number above 0")
    if not 0 < rate <= 1:
        raise ValueError(f"an event has sampling rate {rate}, which gives no ε: it lies in (0, 1]")
    if not (noise == 0 or SMALLEST_NOISE <= noise <= LARGEST_NOISE):
        raise ValueError(
            f"an event has noise multiplier {noise}, which gives no ε: it is 0, or lies between {SMALLEST_NOISE:g} and "
            f"{LARGEST_NOISE:g}"
        )
    return rate, noise


def write_event(event: dp_event.DpEvent) -> str:
    """Write the event of a single release as JSON, floats by their shortest exact form.

    Raises:
        TypeError: A number in it has another type.
        ValueError: The event is not a Gaussian, a Poisson-sampled Gaussian or a non-private event; or a number in it
            lies outside its range.
    """
    match event:
        case dp_event.GaussianDpEvent():
            _, noise = _part(1.0, event.noise_multiplier)
            return json.dumps({"gaussian": noise})
        case dp_event.PoissonSampledDpEvent(event=dp_event.GaussianDpEvent() as inner):
            rate, noise = _part(event.sampling_probability, inner.noise_multiplier)
            return json.dumps({"gaussian": noise, "poisson": rate})
        case dp_event.NonPrivateDpEvent():
            return json.dumps({"non_private": True})
        case _:
            raise ValueError(
                f"the ledger cannot record {event}: it holds Gaussian, Poisson-sampled Gaussian and non-private events"
            )


@lru_cache(maxsize=1024)
def read_event(text: str) -> dp_event.DpEvent:
    """Read an event that `write_event` wrote."""
    values = json.loads(text)
    if "non_private" in values:
        return dp_event.NonPrivateDpEvent()
    inner = dp_event.GaussianDpEvent(values["gaussian"])
    return dp_event.PoissonSampledDpEvent(values["poisson"], inner) if "poisson" in values else inner

"""Events: compose dp_accounting's events, list the Gaussians in them, and write them as text."""

import json
from collections import Counter
from functools import lru_cache

from dp_accounting import dp_event  # pyright: ignore[reportMissingTypeStubs]  # the package ships no types

from dpcomp.core.checks import whole_number
from dpcomp.core.errors import NotPrivate

MOST_STEPS = 10**12  # of an event: with more, sums overflow a database's integers


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
    """
    match event:
        case dp_event.NoOpDpEvent():
            return Counter()
        case dp_event.NonPrivateDpEvent():
            return Counter({(1.0, 0.0): 1})
        case dp_event.GaussianDpEvent(noise_multiplier=noise):
            return Counter({(1.0, float(noise)): 1})
        case dp_event.PoissonSampledDpEvent(event=dp_event.GaussianDpEvent(noise_multiplier=noise)):
            return Counter({(float(event.sampling_probability), float(noise)): 1})
        case dp_event.SelfComposedDpEvent():
            return Counter({part: count * int(event.count) for part, count in gaussians_in(event.event).items()})
        case dp_event.ComposedDpEvent():
            total = Counter[tuple[float, float]]()
            for inner in event.events:
                total.update(gaussians_in(inner))
            return total
        case _:
            raise NotPrivate(
                f"{event} is not accounted for: dpcomp releases Gaussians, on all units or on a Poisson sample"
            )


def write_event(event: dp_event.DpEvent) -> str:
    """Write the event of a single release as JSON, floats by their shortest exact form.

    Raises:
        ValueError: The event is not a Gaussian, a Poisson-sampled Gaussian or a non-private event.
    """
    match event:
        case dp_event.GaussianDpEvent():
            return json.dumps({"gaussian": event.noise_multiplier})
        case dp_event.PoissonSampledDpEvent(event=dp_event.GaussianDpEvent() as inner):
            return json.dumps({"gaussian": inner.noise_multiplier, "poisson": event.sampling_probability})
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

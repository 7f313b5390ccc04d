"""Events: what releases cost, as dp_accounting's own values; composed, taken apart, and written as text."""

import json
from collections import Counter
from functools import lru_cache

from dp_accounting import dp_event

from dpcomp.core.checks import whole_number
from dpcomp.core.errors import NotPrivate

MOST_STEPS = 10**12  # of one event: beyond, sums overflow a database's integers


def composed(event: dp_event.DpEvent, steps: int) -> dp_event.DpEvent:
    """Return the event repeated `steps` times; for zero steps the event that costs nothing.

    Raises:
        TypeError, ValueError: `steps` is no whole number from 0 on.
    """
    steps = whole_number(steps, "steps, the number of releases,", least=0)
    return dp_event.SelfComposedDpEvent(event, steps) if steps else dp_event.NoOpDpEvent()


def gaussians_in(event: dp_event.DpEvent) -> Counter[tuple[float, float]]:
    """Count the Gaussian releases that an event is made of, by (sampling rate, noise multiplier).

    A release without any privacy counts as one with noise multiplier 0.

    Raises:
        NotPrivate: The event is made of anything but Gaussians, on all units or on a Poisson sample.
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
            return sum((gaussians_in(inner) for inner in event.events), Counter())
    raise NotPrivate(f"{event} is not accounted for: dpcomp releases Gaussians, on all units or a Poisson sample")


def write_event(event: dp_event.DpEvent) -> str:
    """Write the event of one release as JSON, floats by their shortest exact form.

    Raises:
        ValueError: The event is no Gaussian, sampled Gaussian or non-private event.
    """
    match event:
        case dp_event.GaussianDpEvent():
            return json.dumps({"gaussian": event.noise_multiplier})
        case dp_event.PoissonSampledDpEvent(event=dp_event.GaussianDpEvent() as inner):
            return json.dumps({"gaussian": inner.noise_multiplier, "poisson": event.sampling_probability})
        case dp_event.NonPrivateDpEvent():
            return json.dumps({"non_private": True})
    raise ValueError(f"the ledger cannot record {event}: it knows Gaussian, Poisson-sampled and non-private events")


@lru_cache(maxsize=1024)
def read_event(text: str) -> dp_event.DpEvent:
    """Read an event that `write_event` wrote."""
    facts = json.loads(text)
    if "non_private" in facts:
        return dp_event.NonPrivateDpEvent()
    inner = dp_event.GaussianDpEvent(facts["gaussian"])
    return dp_event.PoissonSampledDpEvent(facts["poisson"], inner) if "poisson" in facts else inner

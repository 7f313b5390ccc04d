"""Naive mechanisms written by hand, beside a pipeline: what leaves with the release, or is released again."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

import dpcomp as dp
from dpcomp.audit import Blocks, ClaimOfReleases, Observations
from experiments.studies.audit.case import Case

Gradients = np.ndarray  # (n, d) of a round, the canary's last where it is present
D = 16
SPIKE = np.eye(1, D, 3)[0] * 100.0
OTHERS = np.tile(np.linspace(-0.2, 0.2, D), (3, 1))
SIMPLE = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
SAMPLED = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.25))


@dataclass(frozen=True, kw_only=True, eq=False)
class ByHand:
    """A door to a function that makes one run's observations of the units' gradients.

    Attributes:
        run: Maps (n, d) gradients and a generator of secret noise to (m,) features by name.
        canary: (d,) the canary's gradient.
        others: (n, d) the others'.
    """

    run: Callable[[Gradients, np.random.Generator], dict[str, np.ndarray]]
    canary: np.ndarray
    others: np.ndarray

    def observe(self, present: bool, runs: int) -> Observations:
        """Run the function, as `Door.observe` says."""
        units = np.concatenate([self.others, self.canary[None]]) if present else self.others
        stream = dp.SecretSeed().stream("audit of a naive mechanism")
        seen = [self.run(units, stream) for _ in range(runs)]
        return {name: np.stack([features[name] for features in seen]) for name in seen[0]}

    def __str__(self) -> str:
        return f"{self.run.__name__.replace('_', ' ')}, by hand"


def clipped_sum(units: Gradients) -> np.ndarray:
    """Return the sum of units clipped to norm 1."""
    return dp.Clip(1.0).sum((units,))[0]


def noised(vector: np.ndarray, stream: np.random.Generator, noise: float = 1.0) -> np.ndarray:
    """Return the vector with Gaussian noise."""
    return vector + noise * stream.standard_normal(len(vector))


def scale_of_clean_values(units: Gradients, stream: np.random.Generator) -> dict[str, np.ndarray]:
    """Send the noised values, and the quantiser's scale of the clean ones."""
    total = clipped_sum(units)
    return {"value": noised(total, stream), "scale": np.array([np.abs(total).max()])}


def widths_of_clean_variances(units: Gradients, stream: np.random.Generator) -> dict[str, np.ndarray]:
    """Send the noised values, each half in as many bits as its clean variance asks for."""
    total = clipped_sum(units)
    widths = [np.ceil(4 + np.log2(half.std() + 1e-9)) for half in np.split(total, 2)]
    return {"value": noised(total, stream), "widths": np.array(widths)}


def length_of_a_clean_message(units: Gradients, stream: np.random.Generator) -> dict[str, np.ndarray]:
    """Send the noised values in a message that was sized for the clean ones."""
    total = clipped_sum(units)
    codec = dp.Codec(quantize=dp.Uniform(8))
    body, _ = codec.encode(total.astype(np.float32), dp.Everywhere(), dp.PublicContext(layout=dp.Layout.of(D)))
    return {"value": noised(total, stream), "bytes": np.array([float(len(body))])}


def small_sums_are_not_sent(units: Gradients, stream: np.random.Generator) -> dict[str, np.ndarray]:
    """Send nothing where the clean sum is small."""
    total = clipped_sum(units)
    sent = float(np.linalg.norm(total) > 0.9)
    return {"value": sent * noised(total, stream), "sent": np.array([sent])}


def clean_residual_before_the_noise(units: Gradients, stream: np.random.Generator) -> dict[str, np.ndarray]:
    """Keep what a sparsifier dropped of the clean sum, and add it to the next round's, which is noised after."""
    residual, seen = np.zeros(D), {}
    for number in range(6):
        target = residual + clipped_sum(units)
        largest = np.abs(target).argmax()
        sent = np.where(np.arange(D) == largest, target, 0.0)
        residual = target - sent
        seen[f"value of round {number}"] = noised(sent, stream, 2.0)
    return seen


def no_noise_on_empty_batches(units: Gradients, stream: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw a Poisson batch, and skip the step where it is empty."""
    batch = units[stream.random(len(units)) < 0.25]
    return {"value": noised(clipped_sum(batch), stream) if len(batch) else np.zeros(D)}


def division_by_the_batch_size(units: Gradients, stream: np.random.Generator) -> dict[str, np.ndarray]:
    """Noise the sum, and divide it by the number of examples."""
    return {"mean": noised(clipped_sum(units), stream) / len(units)}


def public_dither_as_the_noise(units: Gradients, stream: np.random.Generator) -> dict[str, np.ndarray]:
    """Take the error of a dithered quantiser, as large as the noise should be, for the noise; the dither is public."""
    step = np.sqrt(12.0)
    dither = step * (stream.random(D) - 0.5)
    sent, others = (step * np.rint((clipped_sum(block) + dither) / step) for block in (units, OTHERS))
    return {"value": sent - dither, "value without that of the others": sent - others}


@dataclass(frozen=True, kw_only=True, eq=False)
class ChargedOnce:
    """A door to a pipeline that releases again and again at one address, each time from a ledger that was set back.

    Attributes:
        releases: How many releases a run has.
        same_noise: Whether the noise comes from a numbered seed, so that all releases of a run share it; the canary's
            sign then changes from one to the next.
    """

    releases: int
    same_noise: bool

    def observe(self, present: bool, runs: int) -> Observations:
        """Release, as `Door.observe` says."""
        return {"value": np.stack([self._run(present) for _ in range(runs)])}

    def __str__(self) -> str:
        return f"{self.releases} releases at one address"

    def _run(self, present: bool) -> np.ndarray:
        secret = dp.SecretSeed(int.from_bytes(os.urandom(8), "little") if self.same_noise else None)
        memory, seen = SIMPLE.init_client(D, dp.PublicSeed(0), client=0), []
        for number in range(self.releases):
            canary = SPIKE * (-1) ** (number if self.same_noise else 0)
            units = np.concatenate([OTHERS, canary[None]]) if present else OTHERS
            permit = dp.Ledger().charge(SIMPLE.cost, memory.address)
            seen.append(SIMPLE.release([units], memory, secret, permit).dense())
        return np.concatenate(seen).astype(np.float64)


def release_cases() -> Iterator[Case]:
    """Return the cases of naive releases."""
    none, against = OTHERS[:0], np.tile(-SPIKE, (3, 1))
    first = np.eye(1, D, 0)[0] * np.ones((5, 1))
    yield by_hand("scale of the clean values sent", scale_of_clean_values)
    yield by_hand("bit widths of clean variances", widths_of_clean_variances)
    yield by_hand("length of the clean message seen", length_of_a_clean_message)
    yield by_hand("small updates not sent", small_sums_are_not_sent, others=none)
    loud = replace(SIMPLE, mechanism=(dp.Clip(1.0), dp.Gaussian(2.0)))
    name = "residual of clean values, noise after it"
    yield by_hand(name, clean_residual_before_the_noise, others=first, claim=claim(loud, steps=6))
    yield by_hand("no noise on empty batches", no_noise_on_empty_batches, others=none, claim=claim(SAMPLED))
    yield by_hand("divided by the batch's size", division_by_the_batch_size, others=against)
    yield by_hand("public dither taken for the noise", public_dither_as_the_noise)
    again = ChargedOnce(releases=2, same_noise=True)
    yield Case(name="noise used in two rounds", kind="naive", door=again, claim=claim(SIMPLE, steps=2))
    retries = ChargedOnce(releases=4, same_noise=False)
    yield Case(name="retries with fresh noise, charged once", kind="naive", door=retries, claim=claim(SIMPLE))
    rare = replace(SIMPLE, sampling=dp.Poisson(0.1))
    unsampled = Blocks.with_spikes(SIMPLE, coordinates=D)
    yield Case(name="all units, charged as Poisson", kind="naive", door=unsampled, claim=claim(rare))


def claim(pipeline: dp.Pipeline, steps: int = 1) -> ClaimOfReleases:
    """Return the claim of a pipeline that does it right."""
    return ClaimOfReleases(cost=pipeline.cost, steps=steps)


def by_hand(
    name: str,
    run: Callable[[Gradients, np.random.Generator], dict[str, np.ndarray]],
    others: Gradients = OTHERS,
    claim: ClaimOfReleases = ClaimOfReleases(cost=SIMPLE.cost),
) -> Case:
    """Return the case of a function."""
    return Case(name=name, kind="naive", door=ByHand(run=run, canary=SPIKE, others=others), claim=claim)

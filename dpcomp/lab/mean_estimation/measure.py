"""Measures methods: bytes a client, and the squared errors of rounds."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from dpcomp.core.errors import ConfigError
from dpcomp.core.randomness import PublicSeed, SecretSeed
from dpcomp.lab.mean_estimation.method import Method, Round
from dpcomp.lab.mean_estimation.methods.gaussian import GaussianFloat32
from dpcomp.lab.mean_estimation.setting import Inputs, Setting
from dpcomp.lab.results.provenance import machine, versions
from dpcomp.lab.results.results_file import FORMAT, Report, ResultsFile
from dpcomp.privacy.trust import Trust


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured of one method in one setting.

    Attributes:
        payload_bytes: A client sends, on average.
        errors: ‖estimate − mean‖² of each round.
        expected_error: The method's closed form.
        noise_multiplier: z of the method.
        guarantee: Proven of one release.
    """

    payload_bytes: float
    errors: tuple[float, ...]
    expected_error: float
    noise_multiplier: float
    guarantee: dict[str, Any]


def measured(
    method: Method, setting: Setting, vectors: Float64[np.ndarray, "n d"], *, rounds: int, seed: int
) -> Measurement:
    """Measure a method.

    Args:
        method: What is measured.
        setting: The task.
        vectors: The (n, d) vectors of the clients, each of norm 1 at most.
        rounds: How many estimates are made, with new noise, masks and rotations each.
        seed: Of all of these. The noise is seeded, so that errors can be compared in pairs; the vectors are no secret.

    Returns:
        The measurement.
    """
    plan, sizes, errors = method.plan(setting), list[int](), list[float]()
    for number in range(rounds):
        round = Round(plan=plan, number=number, seed=PublicSeed(seed), secret=SecretSeed(seed))
        bodies = [method.encode(vector, client, round) for client, vector in enumerate(vectors)]
        sizes += map(len, bodies)
        errors.append(float(np.square(method.decode(bodies, round) - vectors.mean(axis=0)).sum()))
    return Measurement(
        payload_bytes=float(np.mean(sizes)),
        errors=tuple(errors),
        expected_error=method.expected_error(vectors, plan),
        noise_multiplier=plan.noise_multiplier,
        guarantee=asdict(plan.guarantee),
    )


def measure_all(
    results: Path,
    methods: Sequence[Method],
    settings: Sequence[Setting],
    inputs: Sequence[Inputs],
    *,
    rounds: int,
    seed: int,
) -> list[Report]:
    """Measure what is not measured yet: a line of the results for each method, setting and kind of vectors.

    Args:
        results: The JSON-lines file; what others of its lines hold stays.
        methods: What is measured, each with a name of its own for its trust.
        settings: The tasks.
        inputs: The kinds of vectors.
        rounds: How many estimates of each.
        seed: Of vectors and noise.

    Returns:
        The lines of these methods, settings and inputs.

    Raises:
        ConfigError: The file holds a result of one name that was made in another way.
        ValueError: Two methods have one name and trust.
    """
    names = [(method.trust, method.name) for method in methods]
    if len(set(names)) < len(names):
        raise ValueError(f"two methods have one name and trust, of {names}: give each a name of its own")
    file = ResultsFile(path=results)
    known, found, made_by = {report["trial"]: report for report in file.read()}, [], versions()
    for setting in settings:
        for kind in inputs:
            vectors, references = kind.vectors(setting, seed), dict[Trust, tuple[float, ...]]()
            for method in methods:
                config = {**asdict(setting), "inputs": kind.name, "method": repr(method), "rounds": rounds}
                trial = _trial(method, setting, kind, seed)
                if trial not in known:
                    began = time.perf_counter()
                    if method.trust not in references:
                        reference = GaussianFloat32(trust=method.trust)
                        references[method.trust] = measured(
                            reference, setting, vectors, rounds=rounds, seed=seed
                        ).errors
                    made = measured(method, setting, vectors, rounds=rounds, seed=seed)
                    known[trial] = {
                        "format": FORMAT,
                        "trial": trial,
                        "config": config,
                        "seed": seed,
                        "name": method.name,
                        "family": method.family,
                        "trust": method.trust,
                        "unbiased": method.unbiased,
                        "paired": method.paired,
                        "source": method.source,
                        **asdict(made),
                        "reference_errors": references[method.trust],
                        "versions": made_by,
                        "machine": machine(time.perf_counter() - began),
                    }
                elif known[trial]["config"] != config:
                    raise ConfigError(
                        f"{results} holds a result of {trial} that was made in another way: move the file away, and "
                        "run again"
                    )
                found.append(known[trial])
            file.replace(known.values())
    return found


def _trial(method: Method, setting: Setting, kind: Inputs, seed: int) -> str:
    task = f"n-{setting.clients}-d-{setting.dimensions}-eps-{setting.epsilon:g}-delta-{setting.delta:g}"
    return f"{kind.name}/{task}/{method.trust}/{method.name}/seed-{seed}"

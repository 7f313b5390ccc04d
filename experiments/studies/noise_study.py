"""The study of what noise costs a compressor, by scrambling supports: recorded rounds under every setting."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from dpcomp.lab.results.frames import columns
from dpcomp.lab.tasks.classification import Classification
from experiments.studies.noise_tables import energies, payloads, supports
from experiments.studies.recorded_updates import Recording, Rounds, record
from experiments.studies.replay import Setting
from experiments.studies.study_results import StudyResults

NOISE = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
DENSITIES = (0.001, 0.01, 0.1)
WARMUP = 100  # rounds that a coordinate waits for at the top 1 %


@dataclass(frozen=True, kw_only=True)
class Study:
    """Recorded rounds of one task, and the settings that they go through.

    Error feedback is measured at densities at which a coordinate waits for no more rounds than the recording's warmup.

    server_noise_multipliers: where the server is trusted, whose uplink no noise reaches.
    energy_shares: of the clean update, for the bytes at equal energy.
    """

    task: str
    recording: Recording
    noise_multipliers: tuple[float, ...] = NOISE
    server_noise_multipliers: tuple[float, ...] = (0.0, 8.0)
    bits: int = 4
    more_bits: int = 8  # of the noise-first uplink without feedback: an index is a smaller part of its payloads
    energy_shares: tuple[float, ...] = (0.25, 0.5)

    def settings(self, noise_multiplier: float) -> Iterator[Setting]:
        """All pipelines that meet this noise."""
        whose = ("nobody", "server") if noise_multiplier in self.server_noise_multipliers else ("nobody",)
        common = {"noise_multiplier": noise_multiplier}
        for density in self.recording.densities:
            at = {"density": density, **common}
            for order, trust in product(("noise first", "support first"), whose):
                yield Setting(order=order, trust=trust, feedback=False, bits=self.bits, **at)
            yield Setting(order="noise first", trust="nobody", feedback=False, bits=self.more_bits, **at)
            if density * self.recording.warmup >= 1:
                yield Setting(order="noise first", trust="nobody", feedback=True, bits=self.bits, **at)


STUDIES = (
    Study(
        task="fashion_mnist",
        recording=Recording(
            phases={"early": 20, "middle": 300, "late": 2000},
            batches=(300, 2000),
            rounds=8,
            densities=DENSITIES,
            warmup=WARMUP,
        ),
    ),
    Study(
        task="cifar10",
        recording=Recording(
            phases={"early": 20, "middle": 100, "late": 300},
            batches=(300,),
            rounds=6,
            densities=DENSITIES,
            warmup=WARMUP,
        ),
    ),
)


def study(
    results: Path,
    seeds: tuple[int, ...],
    names: tuple[str, ...],
    tasks: Mapping[str, Callable[[], Classification]],
    studies: tuple[Study, ...] = STUDIES,
) -> None:
    """Measure what is not measured yet: a result a (task, batch, phase, seed).

    Args:
        results: The JSON-lines file.
        seeds: Of the recordings.
        names: The tasks to measure, of those in `studies`.
        tasks: Name → task.
        studies: What to measure.

    Raises:
        ConfigError: A result there was made in another way.
    """
    torch.set_num_threads(1)
    measured_before = StudyResults(results)
    for chosen in studies:
        for seed in seeds if chosen.task in names else ():
            cases = [(phase, batch) for phase in chosen.recording.phases for batch in chosen.recording.batches]
            wanted = [
                case
                for case in cases
                if not measured_before.finished(name_of(chosen, case, seed), config_of(chosen, case))
            ]
            began = time.perf_counter()
            for phase, batch, rounds in record(tasks[chosen.task](), chosen.recording, seed, wanted):
                case = (phase, batch)
                facts = measured(chosen, rounds)
                measured_before.write(name_of(chosen, case, seed), config_of(chosen, case), seed, facts, began=began)
                began = time.perf_counter()


def name_of(chosen: Study, case: tuple[str, int], seed: int) -> str:
    """Return the name of a phase and batch."""
    phase, batch = case
    return f"{chosen.task}/batch-{batch}/{phase}/seed-{seed}"


def config_of(chosen: Study, case: tuple[str, int]) -> dict[str, Any]:
    """Return the configuration that a report holds, as JSON types."""
    phase, batch = case
    recording = asdict(chosen.recording) | {"densities": list(chosen.recording.densities)}
    recording |= {"phases": {phase: chosen.recording.phases[phase]}, "batches": [batch]}
    lists = {key: list(value) for key, value in asdict(chosen).items() if isinstance(value, tuple)}
    return asdict(chosen) | lists | {"recording": recording, "phase": phase, "batch": batch}


def measured(chosen: Study, rounds: Rounds) -> dict[str, Any]:
    """Return what is measured of one case: tables of payloads, of supports and of bytes at equal energy."""
    settings = {noise: list(chosen.settings(noise)) for noise in chosen.noise_multipliers}
    return {
        "coordinates": rounds.layout.size,
        "training_loss": round(rounds.training_loss, 4),
        "probed": ["supports", "energies", "payloads"],  # all of them look at clean data: research alone
        "payloads": columns(payloads(rounds, settings)),
        "supports": columns(supports(rounds.warm, chosen.recording.densities, chosen.noise_multipliers)),
        "energies": columns(energies(rounds.warm, chosen.energy_shares, chosen.noise_multipliers, chosen.bits)),
    }

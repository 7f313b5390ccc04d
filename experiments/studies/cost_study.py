"""The study of what compressing an update costs a sender and a receiver: bytes, CPU seconds and memory."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32
from threadpoolctl import threadpool_limits

from analysis.cost.model import FLOAT_BYTES
from dpcomp.lab.results.frames import columns
from dpcomp.lab.tasks.classification import Classification
from experiments.studies.codecs_measured import FRACTION, SENDERS, Road, Sender
from experiments.studies.recorded_updates import Recording, Rounds
from experiments.studies.study_results import StudyResults
from experiments.studies.timing import Timing, peak_bytes, timed
from experiments.studies.update_sources import Drawn, Recorded


@dataclass(frozen=True, kw_only=True)
class Study:
    """Updates of one kind, and who sends them.

    name: what its results begin with.
    trust: "nobody", updates are released with the noise in them; "server", they are clean.
    repeats: of every timing.
    """

    name: str
    updates: Recorded | Drawn
    trust: Literal["nobody", "server"]
    repeats: int
    noise_multiplier: float = 1.0
    senders: tuple[Sender, ...] = SENDERS


STUDIES = (
    Study(
        name="cifar10",
        updates=Recorded(
            task="cifar10",
            recording=Recording(phases={"early": 20}, batches=(300,), rounds=2, densities=(FRACTION,)),
        ),
        trust="nobody",
        repeats=7,
    ),
    Study(name="resnet18", updates=Drawn(task="cifar10_resnet", density=FRACTION), trust="server", repeats=3),
)


def study(
    results: Path,
    seeds: tuple[int, ...],
    tasks: Mapping[str, Callable[[], Classification]],
    studies: tuple[Study, ...] = STUDIES,
) -> None:
    """Measure what is not measured yet: a result a (study, seed).

    Args:
        results: The JSON-lines file.
        seeds: Of the updates.
        tasks: Name → task.
        studies: What to measure.

    Raises:
        ConfigError: A result there was made in another way.
    """
    torch.set_num_threads(1)
    measured_before = StudyResults(results)
    for chosen in studies:
        for seed in seeds:
            case = f"{chosen.name}/seed-{seed}"
            if measured_before.finished(case, config_of(chosen)):
                continue
            began = time.perf_counter()
            rounds = chosen.updates.rounds(seed, tasks)
            with threadpool_limits(1):  # the seconds of two cores are not those of one
                facts = measured(chosen, rounds)
            measured_before.write(case, config_of(chosen), seed, facts, began=began)


def config_of(chosen: Study) -> dict[str, Any]:
    """Return the configuration that a report holds, as JSON types: the calls that make the updates and the codecs."""
    return {
        "name": chosen.name,
        "updates": repr(chosen.updates),
        "trust": chosen.trust,
        "repeats": chosen.repeats,
        "noise_multiplier": chosen.noise_multiplier,
        "senders": [repr(sender) for sender in chosen.senders],
    }


def measured(chosen: Study, rounds: Rounds) -> dict[str, Any]:
    """Return what is measured of one seed.

    `costs` has a row a sender: payload_bytes, the length of what was sent; the squared error ÷ the squared norm of what
    should be sent, with feedback residual + update; of encode (`pipeline.send`) and decode (`pipeline.receive`, to a
    dense vector) the CPU seconds, the copies of the float32 vector in the same time, and the peak bytes.
    """
    rows, copies = [], []
    for sender in chosen.senders:
        row, timings = _row(chosen, sender, rounds)
        rows.append(row)
        copies += [timing.copy_seconds for timing in timings]
    d = rounds.layout.size
    return {
        "coordinates": d,
        "copied_bytes_per_second": round(FLOAT_BYTES * d / median(copies)),
        "costs": columns(pd.DataFrame(rows)),
    }


def _row(chosen: Study, sender: Sender, rounds: Rounds) -> tuple[dict[str, Any], tuple[Timing, Timing]]:
    road = Road(sender, rounds, trust=chosen.trust, noise_multiplier=chosen.noise_multiplier)
    payload, vector = road.encode(), rounds.vectors[1]

    def decode() -> Float32[np.ndarray, "d"]:
        return road.decode(payload)

    lost, sent = (np.square(each, dtype=np.float64).sum() for each in (road.target - decode(), road.target))
    encoding, decoding = (timed(work, vector, chosen.repeats) for work in (road.encode, decode))
    return {
        "codec": sender.name,
        "payload_bytes": len(payload),
        "relative_squared_error": lost / sent,
        "encode_seconds": encoding.seconds,
        "encode_copies": encoding.copies,
        "encode_peak_bytes": peak_bytes(road.encode),
        "decode_seconds": decoding.seconds,
        "decode_copies": decoding.copies,
        "decode_peak_bytes": peak_bytes(decode),
    }, (encoding, decoding)

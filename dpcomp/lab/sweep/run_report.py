"""The report of a trial: config, seed, guarantee, versions, machine and all curves, as JSON types."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dpcomp.core.calls import as_table
from dpcomp.lab.results.frames import columns
from dpcomp.lab.results.provenance import machine
from dpcomp.lab.results.results_file import FORMAT
from dpcomp.pipeline import Pipeline
from dpcomp.simulation import Run


def report_of(
    run: Run,
    pipeline: Pipeline,
    *,
    trial: str,
    config: Mapping[str, Any],
    seed: int,
    versions: Mapping[str, str | None],
    seconds: float,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return the report of a run, as JSON types; a value that was not measured is null.

    Args:
        run: The result of the simulation.
        pipeline: The pipeline of the simulation.
        trial: The trial's name.
        config: The trial's settings.
        seed: The seed of the simulation.
        versions: `provenance.versions` from before the simulation: the code may be edited while it runs.
        seconds: Wall time of the trial.
        device: Where the models were trained.
    """
    guarantee = {key: None if value == math.inf else value for key, value in asdict(run.guarantee).items()}
    return {
        "format": FORMAT,
        "trial": trial,
        "config": config,
        "seed": seed,
        "pipeline": as_table(pipeline, "pipeline"),
        "guarantee": guarantee | {"text": str(run.guarantee)},
        "coordinates": run.layout.size,
        "probed": list(run.probed),  # these columns saw clean data: research alone
        "versions": versions,
        "machine": machine(seconds, device),
        "curves": columns(run.table()),
    }

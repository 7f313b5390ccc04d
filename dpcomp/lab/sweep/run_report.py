"""The report of a trial: config, seed, guarantee, versions, machine and all curves, as JSON types."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from dpcomp.core.calls import as_table
from dpcomp.lab.results.frames import columns_of_rounds
from dpcomp.lab.results.provenance import machine
from dpcomp.lab.results.results_file import FORMAT
from dpcomp.pipeline import Pipeline
from dpcomp.privacy.cost import NOT_TUNED
from dpcomp.simulation import Run


def report_of(
    run: Run,
    pipeline: Pipeline,
    *,
    trial: str,
    config: Mapping[str, Any],
    seed: int,
    settings: int,
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
        settings: The number of settings that the trial's config runs on the same data.
        versions: `provenance.versions` from before the simulation: the code may be edited while it runs.
        seconds: Wall time of the trial.
        device: Where the models were trained.
    """
    said = run.guarantee
    if settings > 1:
        tuned = f"one of {settings:,} settings run on this data: choosing by their results is not counted"
        kept = (tuned if clause == NOT_TUNED else clause for clause in said.assumptions)
        said = replace(said, assumptions=tuple(kept))
    guarantee = {key: None if value == math.inf else value for key, value in asdict(said).items()}
    return {
        "format": FORMAT,
        "trial": trial,
        "config": config,
        "seed": seed,
        "pipeline": as_table(pipeline, "pipeline"),
        "guarantee": guarantee | {"text": str(said)},
        "coordinates": run.layout.size,
        "probed": list(run.probed),  # these columns saw clean data: research alone
        "warnings": list(run.warnings),
        "versions": versions,
        "machine": machine(seconds, device),
        "curves": columns_of_rounds(run.table()),
    }

"""A trial's report: config, seed, versions, machine and all curves, written whole or not at all."""

import json
import math
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from dpcomp.core.storage import write_whole
from dpcomp.pipeline import Pipeline
from dpcomp.simulation import Run

FORMAT = 1
LIBRARIES = ("torch", "opacus", "numpy", "scipy", "dp-accounting", "constriction", "randomgen")


def report_of(run: Run, pipeline: Pipeline, config: dict[str, Any], seed: int, seconds: float) -> dict[str, Any]:
    """What there is to know of a run, as JSON types; a value that was not measured is null."""
    table = run.table()
    guarantee = {key: None if value == math.inf else value for key, value in asdict(run.guarantee).items()}
    return {
        "format": FORMAT,
        "config": config,
        "seed": seed,
        "pipeline": repr(pipeline),
        "guarantee": guarantee | {"text": str(run.guarantee)},
        "coordinates": run.layout.size,
        "probed": list(run.probed),  # these columns saw clean data: research alone
        "versions": versions(),
        "machine": machine(seconds, config.get("federation", {}).get("device", "cpu")),
        "curves": columns(table),
    }


def versions() -> dict[str, str]:
    """Of Python and of the libraries that numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def machine(seconds: float, device: str = "cpu") -> dict[str, Any]:
    """What it ran on, and for how long."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": _accelerator(device),
        "seconds": round(seconds, 1),
    }


def columns(table: pd.DataFrame) -> dict[str, list[float | int | str | None]]:
    """A table's columns as JSON types: six digits, and null for what was not measured."""
    return {
        column: [value if isinstance(value, str) else _rounded(value) for value in table[column]] for column in table
    }


def _accelerator(device: str) -> str | None:
    return None if device == "cpu" else torch.cuda.get_device_name(device)


def _rounded(value: float) -> float | int | None:
    if pd.isna(value):
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.6g}")


def write(report: dict[str, Any], folder: Path) -> None:
    """`report.json`, then the DONE mark: a folder without the mark holds no finished trial."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(folder / "report.json", text.encode())
    (folder / "DONE").touch()


def read(folder: Path) -> dict[str, Any]:
    """The report of a finished trial."""
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def finished(folder: Path, holds: str = "curves") -> dict[str, Any] | None:
    """The report of the trial in this folder, if it ended; one that is torn, marked or not, is none.

    holds: the key of its measurements.
    """
    if not (folder / "DONE").exists():
        return None
    try:
        facts = read(folder)
    except (FileNotFoundError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.keys() >= {"config", "seed", holds} else None

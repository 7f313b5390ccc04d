"""What studies have in common: reports below one folder, each of one case, and none made twice."""

from pathlib import Path
from typing import Any

from dpcomp.lab.config.calls import ConfigError
from dpcomp.lab.results import report


def reports_of(folder: Path, study: str) -> list[dict[str, Any]]:
    """All finished reports below a folder.

    Raises:
        ConfigError: there is none.
    """
    found = [report.read(mark.parent) for mark in sorted(folder.rglob("DONE"))]
    if not found:
        raise ConfigError(f"{folder} holds no finished report: run dpcomp study {study} first")
    return found


def finished(folder: Path, config: dict[str, Any], seed: int, *, holds: str) -> bool:
    """Whether the report of this case is there; `holds` is the key of its measurements.

    Raises:
        ConfigError: there is one of another case.
    """
    facts = report.finished(folder, holds)
    if facts is not None and (facts["config"], facts["seed"]) != (config, seed):
        raise ConfigError(
            f"{folder} holds a finished report of another study than this one: move it away, and run again"
        )
    return facts is not None

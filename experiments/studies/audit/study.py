"""Runs the audits that are not run yet, and writes a result for each."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dpcomp.audit import AuditResult, audit
from dpcomp.audit.audit import CONFIDENCE
from experiments.studies.audit.case import Case
from experiments.studies.audit.naive import naive_cases
from experiments.studies.audit.shipped import shipped_cases
from experiments.studies.study_results import StudyResults

RUNS, DELTA = 1000, 1e-5


def cases() -> Iterator[Case]:
    """Return all cases."""
    yield from shipped_cases()
    yield from naive_cases()


def study(results: Path) -> None:
    """Audit every case that has no result yet.

    Args:
        results: The JSON-lines file.

    Raises:
        ConfigError: A result there was made in another way.
    """
    torch.set_num_threads(1)
    measured_before = StudyResults(results)
    for case in cases():
        trial, config = f"{case.kind}/{case.name}", config_of(case)
        if not measured_before.finished(trial, config):
            began = time.perf_counter()
            result = audit(case.door, case.claim, runs=RUNS, delta=DELTA)
            # The noise is fresh in every audit, so that no seed repeats one; that of masks is the doors' own.
            measured_before.write(trial, config, 0, measured(result), began=began)


def config_of(case: Case) -> dict[str, Any]:
    """Return what a report says of how it was made, as JSON types."""
    return {
        "case": case.name,
        "kind": case.kind,
        "door": str(case.door),
        "claim": str(case.claim),
        "runs": RUNS,
        "delta": DELTA,
        "confidence": CONFIDENCE,
    }


def measured(result: AuditResult) -> dict[str, Any]:
    """Return what an audit found, as JSON types."""
    return {
        **asdict(result.rates),
        "claimed_epsilon": result.claimed_epsilon,
        "shown_epsilon": result.shown_epsilon,
        "shown_mu": result.shown_mu,
        "shown_epsilon_of_any": result.shown_epsilon_of_any,
        "broken": result.broken,
        "detection_at_least": result.rates.detection_at_least,
        "false_alarm_at_most": result.rates.false_alarm_at_most,
        "most_detections": result.most_detections,
        "features": list(result.features),
        "text": str(result),
    }

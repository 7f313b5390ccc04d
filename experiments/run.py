"""Runs an experiment: every trial in its own folder beside the config, finished ones skipped."""

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import torch

from dpcomp.federated import simulate
from experiments import report
from experiments.config import ConfigError, Experiment, load


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One simulation: an experiment with its tuned values set, a seed, and the folder of its report."""

    experiment: Experiment
    seed: int
    folder: Path


def run(config: Path, *, jobs: int = 1, progress: bool = True) -> list[Path]:
    """Run what is not done yet, and return the folders of the trials that count: the best tuning, every seed.

    Every point of [tune] is tried with the first seed; the other seeds run the one with the best final test
    accuracy. `jobs` processes work side by side, each on one thread.

    Raises:
        ConfigError: the file describes no experiment, or a finished trial was made from another config.
    """
    experiment, home = load(config), config.with_suffix("")
    first, others = experiment.seeds[0], experiment.seeds[1:]
    points = [
        dict(zip(experiment.tune, values, strict=True)) for values in itertools.product(*experiment.tune.values())
    ]
    tried = [_trial(experiment, point, first, home) for point in points]
    _finish(tried, jobs, progress)
    best = max(tried, key=lambda trial: final_accuracy(report.read(trial.folder)))
    point = points[tried.index(best)]
    rest = [_trial(experiment, point, seed, home) for seed in others]
    _finish(rest, jobs, progress)
    return [trial.folder for trial in (best, *rest)]


def final_accuracy(facts: dict[str, Any]) -> float:
    """The test accuracy of a report's last round."""
    return facts["curves"]["test_accuracy"][-1]


def _trial(experiment: Experiment, point: dict[str, float], seed: int, home: Path) -> Trial:
    tuned = replace(experiment, federation={**experiment.federation, **point})
    name = ",".join(f"{key}={value:g}" for key, value in point.items())
    return Trial(experiment=tuned, seed=seed, folder=home / name / f"seed-{seed}")


def _finish(trials: Iterable[Trial], jobs: int, progress: bool) -> None:
    todo = []
    for trial in trials:
        if not report.is_done(trial.folder):
            todo.append(trial)
        elif report.read(trial.folder)["config"] != _settings(trial):
            raise ConfigError(
                f"{trial.folder} holds a finished trial of another configuration than the file beside it says: "
                "rename the config, or move the folder away, and run again"
            )
    for trial in todo:
        trial.experiment.make_task().train()  # obtain data here, once, before workers ask for it side by side
        break
    joblib.Parallel(n_jobs=jobs)(joblib.delayed(_run)(trial, progress and jobs == 1) for trial in todo)


def _run(trial: Trial, progress: bool) -> None:
    torch.set_num_threads(1)  # two threads of one trial wait for each other; two trials side by side do not
    began, pipeline = time.perf_counter(), trial.experiment.make_pipeline()
    outcome = simulate(
        trial.experiment.make_task(), pipeline, seed=trial.seed, progress=progress, **trial.experiment.simulation()
    )
    facts = report.report_of(outcome, pipeline, _settings(trial), trial.seed, time.perf_counter() - began)
    report.write(facts, trial.folder)


def _settings(trial: Trial) -> dict[str, Any]:
    return {**trial.experiment.as_dict(), "tune": None, "seeds": None}

"""Runs a trial: one simulation, claimed by one process at a time, whose report is left beside the results."""

import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout

from dpcomp.core.errors import DpcompWarning
from dpcomp.lab.config.build import Tasks, make_arguments, make_pipeline, make_task
from dpcomp.lab.results.provenance import versions
from dpcomp.lab.sweep.plan import Trial
from dpcomp.lab.sweep.run_report import report_of
from dpcomp.simulation import simulate
from dpcomp.wire.model_file import write_model

LOCK, TRACEBACK = "trial.lock", "error.txt"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The end of an attempt at a trial: it is finished, another process runs it (`held`), or it failed (`error`)."""

    trial: Trial
    held: bool = False
    error: str | None = None


def attempt(trial: Trial, tasks: Tasks, *, patient: bool, rounds_shown: bool = False) -> Attempt:
    """Run a trial unless it is finished.

    The hold is a lock on an open file: the system lets go of it however its process ends.

    Args:
        trial: What to run.
        tasks: The tasks that its config may name.
        patient: Wait for another process that holds the trial, which may die.
        rounds_shown: Show a bar over the rounds.
    """
    try:
        with _hold(trial, patient=patient):
            if not finished(trial):
                _run(trial, tasks, rounds_shown=rounds_shown)
            # Whoever still waits for this file finds the trial finished. One that failed keeps it: what it left is
            # then known to be of a trial that began.
            (trial.folder / LOCK).unlink(missing_ok=True)
            (trial.folder / TRACEBACK).unlink(missing_ok=True)
    except Timeout:
        return Attempt(trial=trial, held=True)
    except Exception as error:
        with suppress(OSError):
            (trial.folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
        said = (str(error).strip().splitlines() or [""])[0]  # some libraries' errors fill a page
        return Attempt(trial=trial, error=f"{type(error).__name__}: {said}")
    return Attempt(trial=trial)


def finished(trial: Trial) -> bool:
    """Return whether a report of the trial is there.

    Raises:
        ConfigError: The results are damaged.
    """
    return any(report["trial"] == trial.name and trial.matches(report) for report in trial.results.read())


def _hold(trial: Trial, *, patient: bool) -> AcquireReturnProxy:
    """Acquire the trial's lock. Raises Timeout."""
    while True:
        trial.folder.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(trial.folder / LOCK).acquire(timeout=-1 if patient else 0, poll_interval=0.5)
        except FileNotFoundError:  # a process that folded its neighbour's report in has removed the empty folder
            continue


def _run(trial: Trial, tasks: Tasks, *, rounds_shown: bool) -> None:
    torch.set_num_threads(1)  # two threads of one trial wait for each other; two trials side by side do not
    began, made_by, experiment = time.perf_counter(), versions(), trial.experiment
    trial.results.fold()  # no report of other settings lies in its place
    pipeline = make_pipeline(experiment)
    task, arguments = make_task(experiment, tasks), make_arguments(experiment)
    with warnings.catch_warnings(action="ignore", category=DpcompWarning):  # the report holds them
        outcome = simulate(task, pipeline, seed=trial.seed, progress=rounds_shown, **arguments)
    report = report_of(
        outcome,
        pipeline,
        trial=trial.name,
        config=experiment.settings,
        seed=trial.seed,
        settings=trial.settings,
        versions=made_by,
        seconds=time.perf_counter() - began,
        device=experiment.federation.get("device", "cpu"),
    )
    write_model(trial.results.model_of(trial.name), outcome.model, outcome.layout)  # first: a report ends the trial
    trial.results.write(report)

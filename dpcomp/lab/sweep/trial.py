"""A trial: one simulation, whose report lies in a folder of its own, claimed by one process at a time."""

import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from dpcomp.lab.config.experiment import ConfigError, Experiment
from dpcomp.lab.results import report
from dpcomp.simulation import simulate

LOCK, TRACEBACK = "trial.lock", "error.txt"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An experiment with its tuned values set, a seed, and the folder of its report."""

    experiment: Experiment
    seed: int
    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        """What makes it this trial and no other, besides its seed: what the report keeps as its config."""
        return {**self.experiment.as_dict(), "tune": None, "seeds": None}

    def finished(self) -> dict[str, Any] | None:
        """Its report, if it has ended.

        Raises:
            ConfigError: its folder holds a finished trial of another configuration.
        """
        facts = report.finished(self.folder)
        if facts is not None and facts["config"] != self.settings:
            raise ConfigError(
                f"{self.folder} holds a finished trial of another configuration than the file beside it says: "
                "rename the config, or move the folder away, and run again"
            )
        return facts

    def run(self, *, rounds_shown: bool) -> None:
        """Train, and write the report."""
        torch.set_num_threads(1)  # two threads of one trial wait for each other; two trials side by side do not
        began, pipeline = time.perf_counter(), self.experiment.make_pipeline()
        arguments = self.experiment.simulation()
        outcome = simulate(self.experiment.make_task(), pipeline, seed=self.seed, progress=rounds_shown, **arguments)
        facts = report.report_of(outcome, pipeline, self.settings, self.seed, time.perf_counter() - began)
        report.write(facts, self.folder)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What came of a trial: it is finished, or another process holds it, or it failed with an error."""

    trial: Trial
    held: bool = False
    error: str | None = None


def attempt(trial: Trial, *, patient: bool, rounds_shown: bool = False) -> Attempt:
    """Run a trial unless it is finished; `patient`, wait for another process that holds it, which may die.

    The hold is a lock on an open file: the system lets go of it however its process ends.
    """
    try:
        trial.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(trial.folder / LOCK).acquire(timeout=-1 if patient else 0, poll_interval=0.5):
            if trial.finished() is None:
                trial.run(rounds_shown=rounds_shown)
            # Whoever still waits for this file finds the trial finished. One that failed keeps it: were it gone,
            # a second process could hold a new file while a third gets hold of the old one.
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

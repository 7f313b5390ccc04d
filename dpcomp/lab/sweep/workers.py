"""Trials that run in parallel in joblib's processes, here or on a cluster; if one process dies, the others go on."""

from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import joblib

from dpcomp.lab.config.build import Tasks, make_task
from dpcomp.lab.sweep.plan import Trial
from dpcomp.lab.sweep.trial import LOCK, Attempt, attempt, finished
from dpcomp.training.pytorch.tasks.supervised import SupervisedTask


def finish(
    trials: Sequence[Trial], tasks: Tasks, *, advance: Callable[[int], None], rounds_shown: bool = False
) -> list[Attempt]:
    """Run trials; those that another process is running are waited for when all others have ended.

    Args:
        trials: The trials.
        tasks: The tasks that their configs may name.
        advance: Called with the number of trials that have ended since the last call.
        rounds_shown: Show a bar over the rounds.
    """
    for experiment in {str(trial.experiment.task): trial.experiment for trial in trials}.values():
        task = make_task(experiment, tasks)
        if isinstance(task, SupervisedTask):
            task.train()  # obtain data here, once, before workers ask for it side by side
    run = _Run(tasks=tasks, advance=advance)
    attempts = run.side_by_side(trials, patient=False, rounds_shown=rounds_shown)
    if held := [found.trial for found in attempts if found.held]:
        advance(-len(held))
        waited = run.side_by_side(held, patient=True, rounds_shown=rounds_shown)
        attempts = [found for found in attempts if not found.held] + waited
    return attempts


@dataclass(frozen=True, kw_only=True)
class _Run:
    tasks: Tasks
    advance: Callable[[int], None]

    def side_by_side(self, trials: Sequence[Trial], *, patient: bool, rounds_shown: bool) -> list[Attempt]:
        try:
            return self._parallel(trials, patient=patient, rounds_shown=rounds_shown)
        except BrokenProcessPool:
            # A worker died, as one does that asks for too much memory, and joblib ended the others with it.
            left = [trial for trial in trials if not finished(trial)]
            begun = [trial for trial in left if (trial.folder / LOCK).exists()] or left
            others = [trial for trial in left if trial not in begun]
            rest = self.side_by_side(others, patient=patient, rounds_shown=False) if others else []
            return [*rest, *(self._alone(trial, patient=patient) for trial in begun)]

    def _alone(self, trial: Trial, *, patient: bool) -> Attempt:
        """Run a trial in a process of its own, for it may have killed one before."""
        try:
            return self._parallel([trial], patient=patient, rounds_shown=False, jobs=2)[0]
        except BrokenProcessPool:
            self.advance(1)
            return Attempt(trial=trial, error="its process died, as one does that the system kills for its memory")

    def _parallel(
        self, trials: Sequence[Trial], *, patient: bool, rounds_shown: bool, jobs: int | None = None
    ) -> list[Attempt]:
        begin = joblib.delayed(attempt)
        ran: Any = _Counting(self.advance, jobs)(
            begin(trial, self.tasks, patient=patient, rounds_shown=rounds_shown) for trial in trials
        )
        return ran


class _Counting(joblib.Parallel):
    """joblib.Parallel that reports how many tasks have ended; Ray's backend knows that, but gives no result early."""

    def __init__(self, advance: Callable[[int], None], jobs: int | None):
        # No more trials wait in a worker's queue than it runs: one whose parent was killed ends after its trial.
        super().__init__(n_jobs=jobs, batch_size=1, pre_dispatch="n_jobs")  # pyright: ignore[reportArgumentType]
        self._advance, self._reported = advance, 0

    def print_progress(self) -> None:
        """Advance the progress bar; joblib calls this whenever a task has ended."""
        self._advance(self.n_completed_tasks - self._reported)
        self._reported = self.n_completed_tasks

"""A sweep: all trials of one config or many, tuned point by point, side by side; finished ones are skipped.

Which trials there are, and which results count, says `dpcomp.lab.sweep.plan`.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpcomp.core.errors import DpcompError
from dpcomp.core.processes import processes
from dpcomp.lab.config.build import Tasks, check_trials, checked_points
from dpcomp.lab.sweep.plan import Outcome, Standing, standing_of
from dpcomp.lab.sweep.progress import bar
from dpcomp.lab.sweep.trial import TRACEBACK, Attempt
from dpcomp.lab.sweep.workers import finish


class TrialFailed(DpcompError):
    """Some trials failed, and the others ended; the message says which, and why."""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """The result of a sweep: the trials and results of each config, and the attempts that failed."""

    standings: tuple[Standing, ...]
    failures: tuple[Attempt, ...]

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The present results of each point of each config, in order, also of points without a finished trial."""
        return tuple(outcome for standing in self.standings for outcome in standing.outcomes())


def sweep(
    configs: Iterable[Path], tasks: Tasks, *, backend: str = "loky", jobs: int = 1, progress: bool = True
) -> Swept:
    """Run what is not finished yet of all points of these configs.

    Sweeps of the same configs that run at once share the work: each trial is one process's, and when that dies, its
    next one's. A trial that fails stops no other, and is tried again by the next sweep. A result of other settings than
    the config's is kept, does not count, and does not stand in the way.

    Args:
        configs: TOML files.
        tasks: The tasks that they may name: functions of modules, which worker processes import.
        backend: "loky", "ray" or "dask": whose processes run the trials.
        jobs: How many run at a time; -1: as many as there are cores.
        progress: Show a bar on standard error.

    Raises:
        ConfigError: A file describes no grid of experiments, a trial could not begin, or results are damaged; before
            anything is trained.
        DataError: A data set can't be obtained.
        ValueError: The backend's library is not installed.
    """
    described = {config: checked_points(config, tasks) for config in configs}

    def standings() -> tuple[Standing, ...]:
        found = tuple(standing_of(config, points) for config, points in described.items())
        for standing in found:
            standing.results.fold()
        return found

    before = standings()
    first = [trial for standing in before for trial in standing.first()]
    for standing in before:
        unfinished = [*standing.first(), *standing.second()]
        named = [(f"{standing.config}: at {trial.name}", trial.experiment, trial.seed) for trial in unfinished]
        check_trials(named, tasks)
    expected = sum(standing.expected() for standing in before)
    rounds_shown = progress and jobs == expected == 1 and backend == "loky"
    try:
        with processes(backend, jobs), bar(expected, shown=progress and not rounds_shown and expected > 0) as shown:
            attempts = finish(first, tasks, advance=shown.advance, rounds_shown=rounds_shown)
            second = [trial for standing in standings() for trial in standing.second()]
            shown.expect(len(first) + len(second))
            attempts += finish(second, tasks, advance=shown.advance, rounds_shown=rounds_shown)
    finally:
        after = standings()  # what has ended is folded in, even where the sweep was stopped
    failures = tuple(attempt for attempt in attempts if attempt.error is not None)
    return Swept(standings=after, failures=failures)


def run(config: Path, tasks: Tasks, *, jobs: int = 1, progress: bool = True) -> Standing:
    """Run what is not done yet of a single experiment.

    Args:
        config: A TOML file without a [grid].
        tasks: The tasks that it may name.
        jobs: How many trials run at a time.
        progress: Show a bar on standard error.

    Raises:
        ConfigError: The file describes no single experiment.
        TrialFailed: Some trials failed.
    """
    swept = sweep([config], tasks, jobs=jobs, progress=progress)
    if swept.failures:
        raise TrialFailed(failure_text(swept.failures))
    return swept.standings[0]


def failure_text(failures: Sequence[Attempt]) -> str:
    """Return what failed, a line each, and what to do."""
    lines = [f"  {os.path.relpath(failure.trial.folder)}: {failure.error}" for failure in failures]
    return "\n".join(
        [
            f"{len(failures)} trials failed; all others ended. The next run tries them again:",
            *lines,
            f"tracebacks: {TRACEBACK} in their folders",
        ]
    )

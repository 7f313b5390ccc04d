"""A sweep: all trials of one config or many, tuned point by point, side by side; finished ones are skipped.

A point is an experiment of a config's grid; a config without grid is one point. Every combination of its [tune] is
tried with its first seed, and its other seeds run the one with the best final test accuracy. A trial's folder is
<config>/[<point>/][<tuning>/]seed-<n>, whose names don't change when a grid gets more values.
"""

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpcomp.lab.config.calls import ConfigError
from dpcomp.lab.config.grid import Point, points
from dpcomp.lab.config.labels import folder_name, label
from dpcomp.lab.sweep.progress import bar
from dpcomp.lab.sweep.trial import TRACEBACK, Attempt, Trial
from dpcomp.lab.sweep.workers import finish, workers


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a point came to: its best tuning, how many were tried, and the folders of the trials that count."""

    point: Point
    tuning: str
    tried: int
    folders: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Swept:
    """All points in order, those without a finished trial too, and the attempts that failed."""

    outcomes: tuple[Outcome, ...]
    failures: tuple[Attempt, ...]


def sweep(configs: Iterable[Path], *, backend: str = "loky", jobs: int = 1, progress: bool = True) -> Swept:
    """Run what is not finished yet of all points of these configs, `jobs` trials at a time.

    Sweeps of the same configs that run at once share the work: each trial is one process's, and when that dies, its
    next one's. A trial that fails stops no other, and is tried again by the next sweep.

    Raises:
        ConfigError: a file describes no grid of experiments, or a finished trial was made from another config;
            before anything is trained.
        DataError: a data set can't be obtained.
        ValueError: the backend's library is not installed.
    """
    plans = [_Plan.of(point) for config in configs for point in points(config)]
    _refuse_twins(plans)
    for plan in plans:
        _unfinished(plan.every)  # now, before anything is trained, refuses what another config has left
    first = _unfinished(trial for plan in plans for trial in plan.first)
    expected = len(first) + sum(plan.waiting for plan in plans)
    rounds_shown = progress and jobs == expected == 1 and backend == "loky"
    with workers(backend, jobs), bar(expected, shown=progress and not rounds_shown and expected > 0) as shown:
        attempts = finish(first, advance=shown.advance, rounds_shown=rounds_shown)
        second = _unfinished(trial for plan in plans for trial in plan.second)
        shown.expect(len(first) + len(second))
        attempts += finish(second, advance=shown.advance, rounds_shown=rounds_shown)
    failures = tuple(found for found in attempts if found.error is not None)
    return Swept(outcomes=tuple(plan.outcome() for plan in plans), failures=failures)


def outcomes(config: Path) -> tuple[Outcome, ...]:
    """What the points of a config have come to so far; nothing is run.

    Raises:
        ConfigError: a finished trial was made from another config, or no trial is finished.
    """
    found = tuple(_Plan.of(point).outcome() for point in points(config))
    if not any(outcome.folders for outcome in found):
        raise ConfigError(f"{config} has no finished trial: run dpcomp sweep {config} first")
    return found


def told(failures: Sequence[Attempt]) -> str:
    """What failed, a line each, and what to do."""
    lines = [f"  {os.path.relpath(found.trial.folder)}: {found.error}" for found in failures]
    return "\n".join(
        [
            f"{len(failures)} trials failed; all others ended. The next run tries them again:",
            *lines,
            f"tracebacks: {TRACEBACK} in their folders",
        ]
    )


def final_accuracy(facts: dict[str, Any]) -> float:
    """The test accuracy of a report's last round."""
    return facts["curves"]["test_accuracy"][-1]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A point's trials: tuning → one a seed, in the order of the file."""

    point: Point
    trials: dict[str, tuple[Trial, ...]]

    @classmethod
    def of(cls, point: Point) -> "_Plan":
        experiment, trials = point.experiment, {}
        for values in itertools.product(*experiment.tune.values()):
            chosen = dict(zip(experiment.tune, values, strict=True))
            tuned = replace(experiment, federation={**experiment.federation, **chosen})
            tuning = folder_name({key: label(value) for key, value in chosen.items()})
            trials[tuning] = tuple(
                Trial(experiment=tuned, seed=seed, folder=point.home / tuning / f"seed-{seed}")
                for seed in experiment.seeds
            )
        return cls(point=point, trials=trials)

    @property
    def every(self) -> list[Trial]:
        return [trial for seeds in self.trials.values() for trial in seeds]

    @property
    def first(self) -> list[Trial]:
        """What waits for nothing: the first seed of each tuning; every seed, where nothing is tuned."""
        return self.every if len(self.trials) == 1 else [seeds[0] for seeds in self.trials.values()]

    @property
    def best(self) -> str | None:
        """The tuning with the best final accuracy of the first seed, of those that ended."""
        if len(self.trials) == 1:
            return next(iter(self.trials))
        found = {tuning: seeds[0].finished() for tuning, seeds in self.trials.items()}
        scores = {tuning: final_accuracy(facts) for tuning, facts in found.items() if facts is not None}
        return max(scores, key=scores.__getitem__, default=None)

    @property
    def second(self) -> list[Trial]:
        """What waits for the tuning: the other seeds of the best."""
        if len(self.trials) == 1:
            return []
        best = self.best
        return [] if best is None else list(self.trials[best][1:])

    @property
    def waiting(self) -> int:
        """How many trials will follow on the tuning, as far as that can be known."""
        if len(self.trials) > 1 and self.best is None:
            return len(self.point.experiment.seeds) - 1
        return len(_unfinished(self.second))

    def outcome(self) -> Outcome:
        """What is finished of it."""
        best = self.best
        ended = [] if best is None else [trial.folder for trial in self.trials[best] if trial.finished() is not None]
        tried = sum(seeds[0].finished() is not None for seeds in self.trials.values())
        return Outcome(point=self.point, tuning=best or "", tried=tried, folders=tuple(ended))


def _unfinished(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.finished() is None]


def _refuse_twins(plans: Iterable[_Plan]) -> None:
    """Refuse trials that are the same, or whose folders are where a file system makes no difference of case."""
    seen: dict[str, Trial] = {}
    for plan in plans:
        for trial in plan.every:
            settings = json.dumps([str(plan.point.config), trial.settings, trial.seed], sort_keys=True, default=str)
            for trait in (settings, str(trial.folder).casefold()):
                if trait in seen:
                    raise ConfigError(
                        f"{plan.point.config}: {trial.folder} and {seen[trait].folder} are one trial: two points of "
                        "the grid say the same, a seed stands twice, or two labels differ in nothing but case"
                    )
                seen[trait] = trial

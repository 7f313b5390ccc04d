"""Which trials a config has, and which results count: the one place that decides it, for sweep, table and figures.

A point is an experiment of a config's grid; a config without grid is one point. Every combination of its [tune] is
tried with its first seeds, `tuning_seeds` of them, and its other seeds run the best one by the mean over these of the
config's `metric` and `measure`, on the examples that the task holds out, or on the test set of a task that holds out
none. A trial is called
[<point>/][<tuning>/]seed-<n>, which does not change when a grid gets more values. A result counts if the config, as it
stands now, has a trial of its name and settings.
"""

import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpcomp.core.errors import ConfigError
from dpcomp.lab.config.experiment import Experiment
from dpcomp.lab.config.grid import Point, points
from dpcomp.lab.config.labels import folder_name, label
from dpcomp.lab.results.measure import metric_of, tuned_on
from dpcomp.lab.results.results_file import Report, ResultsFile, results_of

LEAST: Mapping[str, float] = {"momentum": 0, "server_momentum": 0, "tail": 0, "local_steps": 1, "evaluate_every": 1}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One simulation: an experiment with its tuned values set, a seed, its name, and where its report goes.

    Attributes:
        experiment: What is run.
        seed: The seed.
        name: Its name.
        results: Where its report goes.
        settings: The number of settings, points and tunings, that the config runs on the same data.
    """

    experiment: Experiment
    seed: int
    name: str
    results: ResultsFile
    settings: int = 1

    @property
    def folder(self) -> Path:
        """The folder in which it runs."""
        return self.results.folder_of(self.name)

    def matches(self, report: Report) -> bool:
        """Return whether a report of its name is of its settings and seed."""
        return report["config"] == self.experiment.settings and report["seed"] == self.seed


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The present results of a point: its best tuning so far, and the reports of that tuning.

    Attributes:
        point: The point.
        tuning: Its best tuning, as it stands in the trials' names; "" where nothing was tuned, or nothing is finished.
        tried: The number of tunings whose trials with the first seeds, which decide, are finished.
        trials: The first part of the names of the best tuning's trials, up to the seed.
        reports: The reports of these trials, in the order of the seeds.
    """

    point: Point
    tuning: str
    tried: int
    trials: str
    reports: tuple[Report, ...]


@dataclass(frozen=True, kw_only=True)
class PointTrials:
    """The trials of a point.

    Attributes:
        point: The point.
        by_tuning: From each tuning to its trials, one for each seed, in the order of the file.
    """

    point: Point
    by_tuning: Mapping[str, tuple[Trial, ...]]

    @property
    def every(self) -> list[Trial]:
        """All trials that any outcome of the tuning could ask for."""
        return [trial for trials in self.by_tuning.values() for trial in trials]

    @property
    def first(self) -> list[Trial]:
        """Those that wait for nothing: of each tuning those that decide; every one, where nothing is tuned."""
        if len(self.by_tuning) == 1:
            return self.every
        return [trial for tuning in self.by_tuning for trial in self.deciding(tuning)]

    def deciding(self, tuning: str) -> tuple[Trial, ...]:
        """Return the trials by which a tuning is judged, those of its first seeds."""
        return self.by_tuning[tuning][: self.point.experiment.tuning_seeds]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A config's trials, and those of its results that count.

    Attributes:
        config: The TOML file.
        results: The file of its results.
        points: The trials of each point.
        finished: The results that count: from the name of a trial to its report.
        left_out: The results that do not count.
    """

    config: Path
    results: ResultsFile
    points: tuple[PointTrials, ...]
    finished: Mapping[str, Report]
    left_out: tuple[Report, ...]

    def outcomes(self) -> tuple[Outcome, ...]:
        """Return the present results of each point, also of points without a finished trial."""
        return tuple(self._outcome(trials) for trials in self.points)

    def first(self) -> list[Trial]:
        """Return the trials that wait for nothing and are not finished."""
        return self._unfinished(trial for trials in self.points for trial in trials.first)

    def second(self) -> list[Trial]:
        """Return the trials that wait for a tuning which is now chosen, and are not finished: its other seeds."""
        return self._unfinished(
            trial for trials in self.points if len(trials.by_tuning) > 1 for trial in self._of_best(trials)
        )

    def expected(self) -> int:
        """Return how many trials are left to run, as far as that can be known before the tunings end."""
        undecided = [trials.point.experiment for trials in self.points if self._best(trials) is None]
        waiting = sum(len(experiment.seeds) - experiment.tuning_seeds for experiment in undecided)
        return len(self.first()) + len(self.second()) + waiting

    def notes(self) -> list[str]:
        """Return why results don't count, a line a reason; no line where all of them do."""
        known = {trial.name: trial for trials in self.points for trial in trials.every}
        reasons = Counter(_reason(report, known.get(report["trial"])) for report in self.left_out)
        return [
            f"{self.results.path}: {number} result{'s do' if number > 1 else ' does'} not count: {reason}"
            for reason, number in sorted(reasons.items())
        ]

    def edges(self) -> list[str]:
        """Return where a best tuning lies at the edge of its grid, a line each; points with tunings to try have none.

        Of tunings with the same score each counts: the optimum may lie beyond any. A smallest value is no edge where
        nothing smaller can be chosen: of LEAST.
        """
        lines: list[str] = []
        for trials in self.points:
            if not all(self._reports(trials, tuning) for tuning in trials.by_tuning):
                continue
            for key, values in trials.point.experiment.tune.items():
                numbers = sorted({value for value in values if isinstance(value, (int, float))})
                best = {trials.by_tuning[tuning][0].experiment.federation[key] for tuning in self._tied(trials)}
                at_edge = sorted(best & {numbers[0], numbers[-1]} - {LEAST.get(key)}) if len(numbers) > 1 else []
                for value in at_edge:
                    side = "smaller" if value == numbers[0] else "larger"
                    lines.append(
                        f"{self.config}: the best {key} at {trials.point.title}, {label(value)}, lies at the edge of "
                        f"its grid [{', '.join(map(label, numbers))}]: add {side} values to [tune]"
                    )
        return lines

    def choices_on_test(self) -> list[str]:
        """Return a line if a tuning was chosen on test examples and the config does not say so."""
        for trials in self.points:
            criterion = trials.point.experiment.criterion
            reports = [report for tuning in trials.by_tuning for report in self._reports(trials, tuning)]
            if (
                len(trials.by_tuning) > 1
                and reports
                and criterion.tune_on is None
                and tuned_on(reports[0], criterion) == "test"
            ):
                return [
                    f"{self.config}: the tuning was chosen on the test set, since the task holds out no validation "
                    'examples: let it have validation(), or say tune_on = "test"'
                ]
        return []

    def _outcome(self, trials: PointTrials) -> Outcome:
        best = self._best(trials)
        named = [] if best is None else [trial.name for trial in trials.by_tuning[best]]
        return Outcome(
            point=trials.point,
            tuning=best or "",
            tried=sum(bool(self._reports(trials, tuning)) for tuning in trials.by_tuning),
            trials="/".join(part for part in (trials.point.name, best) if part),
            reports=tuple(self.finished[name] for name in named if name in self.finished),
        )

    def _best(self, trials: PointTrials) -> str | None:
        """Return the first of the best tunings; None if no tuning's seeds ended."""
        return next(iter(self._tied(trials)), None)

    def _tied(self, trials: PointTrials) -> list[str]:
        """Return the tunings with the best mean of the metric over the first seeds, of those whose seeds ended."""
        if len(trials.by_tuning) == 1:
            return list(trials.by_tuning)
        criterion = trials.point.experiment.criterion

        def score(report: Report) -> float:
            return criterion.score(metric_of(report, criterion.metric, criterion.measure, tuned_on(report, criterion)))

        reports = {tuning: self._reports(trials, tuning) for tuning in trials.by_tuning}
        scores = {tuning: statistics.fmean(map(score, found)) for tuning, found in reports.items() if found}
        return [tuning for tuning, score in scores.items() if score == max(scores.values())]

    def _reports(self, trials: PointTrials, tuning: str) -> list[Report]:
        """Return the reports of the trials by which a tuning is judged; none where one of them is not finished."""
        found = [self.finished.get(trial.name) for trial in trials.deciding(tuning)]
        ended = [report for report in found if report is not None]
        return ended if len(ended) == len(found) else []

    def _of_best(self, trials: PointTrials) -> Sequence[Trial]:
        best = self._best(trials)
        return () if best is None else trials.by_tuning[best]

    def _unfinished(self, trials: Iterable[Trial]) -> list[Trial]:
        return [trial for trial in trials if trial.name not in self.finished]


def standing_of(config: Path, described: Sequence[Point] | None = None) -> Standing:
    """Return a config's trials and those of its results that count; nothing is run.

    Args:
        config: A TOML file.
        described: Its points, where they were read before; None to read them.

    Raises:
        ConfigError: The file describes no experiments, two of its trials are one, or its results are damaged.
    """
    results = results_of(config)
    described = points(config) if described is None else described
    settings = sum(math.prod(map(len, point.experiment.tune.values())) for point in described)
    found = tuple(_trials_of(point, results, settings) for point in described)
    trials = [trial for of_point in found for trial in of_point.every]
    _refuse_twins(config, trials)
    known = {trial.name: trial for trial in trials}
    finished, left_out = {}, []
    for report in results.read():
        trial = known.get(report["trial"])
        if trial is not None and trial.matches(report):
            finished[trial.name] = report
        else:
            left_out.append(report)
    return Standing(config=config, results=results, points=found, finished=finished, left_out=tuple(left_out))


def outcomes(config: Path) -> tuple[Outcome, ...]:
    """Return the present results of each point of a config; nothing is run.

    Raises:
        ConfigError: No result of the config counts; or as `standing_of`.
    """
    standing = standing_of(config)
    if not standing.finished:
        raise ConfigError(f"{config} has no finished trial: sweep it first{_in_brackets(standing.notes())}")
    return standing.outcomes()


def configs_in(target: Path) -> list[Path]:
    """Return the configs below a folder, or the one that is named.

    Raises:
        ConfigError: The folder holds none.
    """
    if not target.is_dir():
        return [target]
    configs = sorted(target.rglob("*.toml"))
    if not configs:
        raise ConfigError(f"{target} holds no config, *.toml")
    return configs


def _trials_of(point: Point, results: ResultsFile, settings: int) -> PointTrials:
    experiment, by_tuning = point.experiment, {}
    for values in itertools.product(*experiment.tune.values()):
        chosen = dict(zip(experiment.tune, values, strict=True))
        tuned = replace(experiment, federation={**experiment.federation, **chosen})
        tuning = folder_name({key: label(value) for key, value in chosen.items()})
        names = ["/".join(part for part in (point.name, tuning, f"seed-{seed}") if part) for seed in experiment.seeds]
        by_tuning[tuning] = tuple(
            Trial(experiment=tuned, seed=seed, name=name, results=results, settings=settings)
            for seed, name in zip(experiment.seeds, names, strict=True)
        )
    return PointTrials(point=point, by_tuning=by_tuning)


def _refuse_twins(config: Path, trials: Iterable[Trial]) -> None:
    """Refuse trials that are the same, or whose folders are where a file system makes no difference of case."""
    seen: dict[str, Trial] = {}
    for trial in trials:
        settings = json.dumps([trial.experiment.settings, trial.seed], sort_keys=True, default=str)
        for trait in (settings, trial.name.casefold()):
            if trait in seen:
                raise ConfigError(
                    f"{config}: {trial.name} and {seen[trait].name} are one trial: two points of the grid say the "
                    "same, a seed stands twice, or two labels differ in nothing but case"
                )
            seen[trait] = trial


def _reason(report: Report, trial: Trial | None) -> str:
    if trial is None:
        return "the config has no such trial (any more)"
    settings: Mapping[str, Any] = trial.experiment.settings
    differing = sorted(
        key for key in settings.keys() | report["config"].keys() if settings.get(key) != report["config"].get(key)
    )
    if not differing:
        return "its seed is not the one that its name says"
    return f"the config differs from theirs in {', '.join(differing)}"


def _in_brackets(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""

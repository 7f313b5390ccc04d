"""Which number of a trial counts, for the choice of a tuning and in tables alike.

A config says the metric, of which model (its measure), and in which direction it is better:

| measure | the metric of |
|---|---|
| `last` | the model after the last round |
| `last_five` | the models of the last five evaluations, their mean |
| `tail` | the average of the models of the last rounds: `simulate(tail=...)` |
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from dpcomp.core.checks import whole_number
from dpcomp.core.errors import ConfigError
from dpcomp.lab.results.results_file import Report

Measure = Literal["last", "last_five", "tail"]
Direction = Literal["higher", "lower"]
Split = Literal["validation", "test"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
ACCURACY, LOSS = "accuracy", "loss"  # the metrics that trainers measure themselves
KNOWN_DIRECTIONS: dict[str, Direction] = {ACCURACY: "higher", LOSS: "lower"}  # of what dpcomp itself measures
FIVE = 5


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """Which number of a trial counts.

    Args:
        metric: The metric, as the trainer names it behind `test_` and `validation_`.
        measure: Of which model.
        direction: Whether higher or lower is better; None for the direction of "accuracy" and of "loss", which are
            known.
        tune_on: The examples on which a tuning is chosen; None for those that the task holds out, or else its test
            set.
        tuning_seeds: How many seeds, the first ones, a tuning is chosen by: by the mean of the metric over them.

    Raises:
        ConfigError: The measure, the direction or the set is unknown, nobody says the direction, or the number of seeds
            is no whole number from 1 on.
    """

    metric: str = ACCURACY
    measure: Measure = "last"
    direction: Direction | None = None
    tune_on: Split | None = None
    tuning_seeds: int = 1

    def __post_init__(self):
        if not isinstance(self.metric, str) or not self.metric:
            raise ConfigError(f'metric = {self.metric!r}: give the name of a metric of the task, such as "accuracy"')
        for prefix in ("test_", "validation_", "tail_"):
            if self.metric.startswith(prefix):
                raise ConfigError(
                    f'metric = "{self.metric}": leave {prefix} out; `tune_on` says the examples and `measure` the model'
                )
        if self.measure not in MEASURES:
            raise ConfigError(f"measure = {self.measure!r}: give one of {', '.join(map(repr, MEASURES))}")
        if self.direction is None and self.metric not in KNOWN_DIRECTIONS:
            raise ConfigError(
                f'metric = "{self.metric}" without a direction: say direction = "higher" or direction = "lower", '
                "whichever is better"
            )
        for key, value, allowed in (("direction", self.direction, Direction), ("tune_on", self.tune_on, Split)):
            if value is not None and value not in get_args(allowed):
                raise ConfigError(f"{key} = {value!r}: give one of {', '.join(map(repr, get_args(allowed)))}")
        if self.direction not in (None, KNOWN_DIRECTIONS.get(self.metric, self.direction)):
            raise ConfigError(f'metric = "{self.metric}" with direction = "{self.direction}": leave the direction out')
        try:
            whole_number(self.tuning_seeds, "tuning_seeds", least=1)
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error

    @property
    def lower_is_better(self) -> bool:
        """Whether smaller numbers are better ones."""
        return (self.direction or KNOWN_DIRECTIONS[self.metric]) == "lower"

    def score(self, value: float) -> float:
        """Return a number that is larger for better values, and the smallest of all for what is not finite."""
        if not math.isfinite(value):
            return -math.inf
        return -value if self.lower_is_better else value

    def check_measured(self, columns: dict[str, float], task: str, *, tuned: bool) -> None:
        """Refuse a metric, or a set to tune on, that trials would not have.

        Args:
            columns: What the trainer measured of the first model.
            task: The name of the task, for errors.
            tuned: Whether a tuning is chosen.

        Raises:
            ConfigError: Saying what is measured.
        """
        parts = [name.partition("_") for name in columns]
        by_set = {split: [rest for first, _, rest in parts if first == split] for split in get_args(Split)}
        names = list(dict.fromkeys(name for of_set in by_set.values() for name in of_set))
        if not names:
            raise ConfigError(
                f"the task {task!r} has neither test nor validation examples, so no trial can be judged: let test() "
                "return some"
            )
        if self.metric not in names:
            said = "" if self.metric != ACCURACY else ", which it is where a config says no other,"
            raise ConfigError(
                f'metric = "{self.metric}"{said} is not measured on the task {task!r}: it measures '
                f"{', '.join(names)}. Say one of these, or let the task have metrics(outputs, targets)"
            )
        if tuned and self.tune_on is not None and self.metric not in by_set[self.tune_on]:
            remedy = "let the task have validation()" if self.tune_on == "validation" else "let test() return some"
            raise ConfigError(
                f'tune_on = "{self.tune_on}", and the task {task!r} has no such examples: {remedy}, or tune on others'
            )


def metric_of(report: Report, metric: str = ACCURACY, measure: Measure = "last", examples: Split = "test") -> float:
    """Return a metric of a trial.

    Args:
        report: The trial's report.
        metric: Which one.
        measure: Of which model.
        examples: On which examples.

    Returns:
        The metric; NaN where it was not finite, and where the task has no such examples.

    Raises:
        ConfigError: The trial did not measure it.
    """
    column = f"{'tail_' if measure == 'tail' else ''}{examples}_{metric}"
    curves = report["curves"]
    values = curves.get(column, ())
    if not values and not any(name.startswith(f"{examples}_") for name in curves):
        return math.nan
    # The last round is always evaluated, and trainers measure the loss then, so what is missing was not finite.
    if values and values[-1] is None and f"{examples}_{LOSS}" in curves:
        return math.nan
    values = [value for value in values if value is not None]
    wanted = FIVE if measure == "last_five" else 1
    if len(values) < wanted:
        raise ConfigError(
            f"the measure {measure!r} needs {wanted} values of {column}, of which a report has {len(values)}: "
            "choose another measure or metric, or sweep again with the keys that it needs"
        )
    return sum(values[-wanted:]) / wanted


def tuned_on(report: Report, criterion: Criterion) -> Split:
    """Return the examples on which a tuning is chosen: validation examples, or the test set where there are none."""
    held_out = f"validation_{criterion.metric}" in report["curves"]
    return criterion.tune_on or ("validation" if held_out else "test")


def others_in(report: Report, metric: str) -> list[str]:
    """Return the names of the other metrics that a trial measured on its test set, and of the loss, in their order."""
    names = [name.removeprefix("test_") for name in report["curves"] if name.startswith("test_")]
    return [name for name in names if name != metric]

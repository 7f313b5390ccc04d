"""Measures: which accuracy of a trial counts, for the choice of a tuning and in tables alike.

| measure | the accuracy of |
|---|---|
| `last` | the model after the last round |
| `last_five` | the models of the last five evaluations, their mean |
| `tail` | the average of the models of the last rounds: `simulate(tail=...)` |
"""

from typing import Literal, get_args

from dpcomp.core.errors import ConfigError
from dpcomp.lab.results.results_file import Report

Measure = Literal["last", "last_five", "tail"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
FIVE = 5


def accuracy_of(report: Report, measure: Measure, examples: Literal["test", "validation"] = "test") -> float:
    """Return an accuracy of a trial.

    Args:
        report: The trial's report.
        measure: Which one.
        examples: On which examples.

    Returns:
        The accuracy, in [0, 1].

    Raises:
        ConfigError: The trial did not measure it.
    """
    column = f"tail_{examples}_accuracy" if measure == "tail" else f"{examples}_accuracy"
    values = [value for value in report["curves"].get(column, ()) if value is not None]
    wanted = FIVE if measure == "last_five" else 1
    if len(values) < wanted:
        raise ConfigError(
            f"the measure {measure!r} needs {wanted} values of {column}, of which a report has {len(values)}: choose "
            "another measure, or sweep again with the keys that it needs"
        )
    return sum(values[-wanted:]) / wanted


def tuned_accuracy(report: Report, measure: Measure) -> float:
    """Return the accuracy by which a tuning is chosen: on validation examples, or on the test set where there are none.

    Args:
        report: The report of a trial of the tuning.
        measure: Which accuracy.

    Raises:
        ConfigError: The trial did not measure it.
    """
    held_out = "validation_accuracy" in report["curves"]
    return accuracy_of(report, measure, "validation" if held_out else "test")

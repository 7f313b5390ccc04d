"""Outcome: what a method reached, at the learning rate that is best on held-out examples.

Whoever reads results needs no training framework: `measure` has what trains.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from dpcomp.core.calls import as_table
from dpcomp.core.errors import ConfigError
from dpcomp.federated import ServerOptimizer
from dpcomp.lab.config.labels import folder_name
from dpcomp.lab.federated_benchmark.method import Method
from dpcomp.lab.federated_benchmark.setting import Setting
from dpcomp.lab.results.measure import Criterion, metric_of
from dpcomp.lab.results.results_file import Report

COUNTS = Criterion(measure="tail", tune_on="validation")  # the accuracy of the average of the last models
# Learning rates of clients: two in an octave, so that neighbours differ by about √2.
RATES = (
    *(0.0055, 0.0078, 0.011, 0.016, 0.022, 0.031, 0.044, 0.063, 0.088, 0.125, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4),
    *(2.0, 2.8, 4.0, 5.6, 8.0, 11.0, 16.0, 23.0, 32.0, 45.0, 64.0, 90.0, 128.0, 181.0, 256.0, 362.0, 512.0, 724.0),
    *(1024.0, 1448.0, 2048.0, 2896.0, 4096.0),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a method reached.

    Attributes:
        method: The method.
        rate: Its best learning rate.
        tried: How many were tried; 0 where none was tuned.
        reports: Of that rate, one for each seed.
    """

    method: Method
    rate: float
    tried: int
    reports: tuple[Report, ...]


def outcomes_of(reports: Sequence[Report], methods: Sequence[Method], setting: Setting) -> list[Outcome]:
    """Return what methods reached, by results alone; nothing is trained.

    Args:
        reports: Lines of the results.
        methods: Those that are asked for.
        setting: The federation.

    Raises:
        ConfigError: A trial is missing, or was made in another way.
    """
    outcomes = []
    for method in methods:
        known = known_of(method, setting, reports)

        def report(
            rate: float, seed: int, method: Method = method, known: dict[tuple[float, int], Report] = known
        ) -> Report:
            if (rate, seed) not in known:
                raise ConfigError(f"the results lack {trial_name(method, setting, rate, seed)}: run the benchmark")
            return known[rate, seed]

        outcomes.append(tuned(method, setting, report))
    return outcomes


def tuned(method: Method, setting: Setting, report: Callable[[float, int], Report]) -> Outcome:
    """Tune the learning rate of a method, and return what the best one reached.

    Tuning climbs: it tries the neighbours of the best rate until both are known, and neither is better. So the best
    lies inside of what was tried; of equal rates the smaller counts.

    Args:
        method: The method.
        setting: The federation.
        report: Returns the report of a learning rate and a seed.

    Raises:
        ValueError: The best rate is the smallest or the largest of RATES.
    """
    wanted = {_nearest(setting.dense_rate * method.first_rate)}
    best, scores = min(wanted), dict[int, float]()
    while wanted and setting.tuning_seeds:
        for place in sorted(wanted):
            at_seeds = [report(RATES[place], seed) for seed in setting.seeds[: setting.tuning_seeds]]
            scores[place] = fmean(COUNTS.score(_accuracy(one)) for one in at_seeds)
        best = max(sorted(scores), key=scores.__getitem__)
        if not 0 < best < len(RATES) - 1:
            raise ValueError(f"{method.name}: its best learning rate, {RATES[best]:g}, is an end of RATES: extend them")
        wanted = {best - 1, best + 1} - scores.keys()
    reports = tuple(report(RATES[best], seed) for seed in setting.seeds)
    return Outcome(method=method, rate=RATES[best], tried=len(scores), reports=reports)


def config_of(method: Method, setting: Setting, rate: float) -> dict[str, Any]:
    """Return what makes a trial this one and no other, besides its seed: in the words of a config, as sweeps have.

    Args:
        method: The method.
        setting: The federation.
        rate: The learning rate.
    """
    server = method.server(setting)
    if server == ServerOptimizer(momentum=server.momentum):
        rule = {"server_momentum": server.momentum} if server.momentum else {}
    else:
        rule = {"server": as_table(server, "server")}
    return {
        "task": {setting.task: {"validation": setting.held_out}},
        "delta": setting.delta,
        "epsilon": setting.epsilon,
        "federation": {
            "clients": setting.clients,
            "rounds": setting.rounds,
            "local_steps": 1,
            "evaluate_every": setting.evaluate_every,
            "tail": setting.tail,
            "learning_rate": rate,
            **rule,
        },
        "method": repr(method),
    }


def known_of(method: Method, setting: Setting, reports: Iterable[Report]) -> dict[tuple[float, int], Report]:
    """Return the reports of a method, by learning rate and seed.

    Args:
        method: The method.
        setting: The federation.
        reports: Lines of the results, of other methods and tasks too.

    Raises:
        ConfigError: One of its name was made in another way.
    """
    known = dict[tuple[float, int], Report]()
    for report in reports:
        if report.get("name") != method.name or list(report["config"]["task"]) != [setting.task]:
            continue
        rate = report["config"]["federation"]["learning_rate"]
        if report["config"] != json.loads(json.dumps(config_of(method, setting, rate))):
            raise ConfigError(
                f"the results hold one of {report['trial']} that was made in another way: move the file away, and run "
                "again"
            )
        known[rate, report["seed"]] = report
    return known


def trial_name(method: Method, setting: Setting, rate: float, seed: int) -> str:
    """Return the name of a trial.

    Args:
        method: The method.
        setting: The federation.
        rate: The learning rate.
        seed: The seed.
    """
    return f"{setting.task}/{folder_name({'method': method.name})}/learning_rate={rate:g}/seed-{seed}"


def _nearest(rate: float) -> int:
    """Return the place in RATES of the one nearest to a rate, by their ratio."""
    return min(range(len(RATES)), key=lambda place: abs(math.log(RATES[place] / rate)))


def _accuracy(report: Report) -> float:
    """Return the accuracy by which rates are tuned."""
    return metric_of(report, COUNTS.metric, COUNTS.measure, "validation")

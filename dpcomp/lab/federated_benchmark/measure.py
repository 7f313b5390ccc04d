"""Train methods: learning rates are tuned on held-out examples, and what was trained already is not trained again."""

import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dpcomp as dp
from dpcomp.core.calls import as_table
from dpcomp.core.errors import DpcompWarning
from dpcomp.lab.federated_benchmark.method import Method
from dpcomp.lab.federated_benchmark.outcome import Outcome, config_of, known_of, trial_name, tuned
from dpcomp.lab.federated_benchmark.setting import Setting
from dpcomp.lab.results.provenance import versions
from dpcomp.lab.results.results_file import Report, ResultsFile
from dpcomp.lab.sweep.run_report import report_of
from dpcomp.pipeline import Pipeline
from dpcomp.simulation import Task, simulate
from dpcomp.training.pytorch import PyTorch

LEAST_TRIED = 3  # rates of a method: the best has a neighbour on each side


def measure_all(
    results: ResultsFile,
    methods: Sequence[Method],
    setting: Setting,
    make_task: Callable[..., Task],
    *,
    others: Iterable[Report] = (),
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Train what is not trained yet, and return what each method reached.

    Args:
        results: Where a line is written for each trial, as soon as it has ended; what others of its lines hold stays.
        methods: What is trained, each with a name of its own.
        setting: The federation.
        make_task: Makes the setting's task; it is called with `validation=`, the number of examples to hold out.
        others: Results of sweeps. One that has the task, federation, pipeline and seed of a trial counts as that trial,
            and is copied.
        say: Told of each trial that has ended, in a line.

    Returns:
        An outcome for each method.

    Raises:
        ConfigError: The file holds a result of one name that was made in another way.
        ValueError: Two methods have one name; the task's model has another number of parameters than the setting says;
            or a best rate is at an end of RATES.
    """
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise ValueError(f"two methods have one name, of {names}: give each a name of its own")
    run = _Run(results=results, setting=setting, task=make_task(validation=setting.held_out), others=tuple(others))
    outcomes = []
    for method in methods:
        known = known_of(method, setting, results.read())
        trial = partial(run.trial, method, run.pipeline(method), settings=LEAST_TRIED * len(methods))

        def report(
            rate: float,
            seed: int,
            known: dict[tuple[float, int], Report] = known,
            trial: Callable[[float, int], Report] = trial,
        ) -> Report:
            if (rate, seed) not in known:
                known[rate, seed] = trial(rate, seed)
                results.write(known[rate, seed])
                say(f"{known[rate, seed]['trial']}: {known[rate, seed]['machine']['seconds']:.0f} s")
            return known[rate, seed]

        outcomes.append(tuned(method, setting, report))
        results.fold()
    return outcomes


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """A run of the benchmark: makes the reports of trials.

    Attributes:
        results: Where they go.
        setting: The federation.
        task: What is learned.
        others: Results of sweeps.
    """

    results: ResultsFile
    setting: Setting
    task: Task
    others: tuple[Report, ...]

    def pipeline(self, method: Method) -> Pipeline:
        """Return the pipeline of a method, calibrated to the setting's (ε, δ)."""
        return dp.calibrate(
            partial(method.pipeline, self.setting),
            epsilon=self.setting.epsilon,
            delta=self.setting.delta,
            steps=self.setting.rounds,
        )

    def trial(self, method: Method, pipeline: Pipeline, rate: float, seed: int, *, settings: int) -> Report:
        """Return the report of a trial: of a sweep that has made it, else of a simulation now.

        Args:
            method: The method.
            pipeline: Its pipeline.
            rate: The learning rate.
            seed: The seed.
            settings: The number of settings that are run on the same data, at least.
        """
        config, name = config_of(method, self.setting, rate), trial_name(method, self.setting, rate, seed)
        report = self._of_a_sweep(config, pipeline, seed)
        if report is None:
            report = self._trained(method, pipeline, rate, seed, name=name, config=config, settings=settings)
        return {**report, "trial": name, "config": config, "name": method.name, "source": method.source}

    def _of_a_sweep(self, config: dict[str, Any], pipeline: Pipeline, seed: int) -> Report | None:
        """Return the report of a sweep that has the same task, federation, δ, pipeline and seed."""
        table = json.loads(json.dumps(as_table(pipeline, "pipeline")))
        for report in self.others:
            alike = all(report["config"].get(key) == config[key] for key in ("task", "federation", "delta"))
            if alike and report["seed"] == seed and report["pipeline"] == table:
                return {**report, "copied_from": report["trial"]}
        return None

    def _trained(
        self,
        method: Method,
        pipeline: Pipeline,
        rate: float,
        seed: int,
        *,
        name: str,
        config: dict[str, Any],
        settings: int,
    ) -> Report:
        setting, began, made_by = self.setting, time.perf_counter(), versions()
        with warnings.catch_warnings(action="ignore", category=DpcompWarning):  # the report holds them
            run = simulate(
                self.task,
                pipeline,
                clients=setting.clients,
                rounds=setting.rounds,
                trainer=PyTorch(learning_rate=rate),
                server=method.server(setting),
                seed=seed,
                delta=setting.delta,
                evaluate_every=setting.evaluate_every,
                tail=setting.tail,
                progress=False,
            )
        if run.layout.size != setting.dimensions:
            raise ValueError(
                f"{self.task.name} has a model of {run.layout.size} parameters, the setting says {setting.dimensions}"
            )
        return report_of(
            run,
            pipeline,
            trial=name,
            config=config,
            seed=seed,
            settings=settings,
            versions=made_by,
            seconds=time.perf_counter() - began,
        )

"""Builds what an experiment describes: its task, its pipeline, and the arguments of its simulation."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dpcomp as dp
from dpcomp.core.calls import check_known, from_table
from dpcomp.core.checks import missing_members
from dpcomp.core.errors import ConfigError, DpcompError
from dpcomp.federated import ServerOptimizer
from dpcomp.lab.config.calls import calls_of
from dpcomp.lab.config.experiment import Experiment
from dpcomp.lab.config.federation_keys import FEDERATION_KEYS, Owner
from dpcomp.lab.config.grid import Point, points
from dpcomp.privacy.calibrate import check_target
from dpcomp.simulation import Task
from dpcomp.simulation.simulate import check_simulation
from dpcomp.training.pytorch import PyTorch, SupervisedTask
from dpcomp.training.trainer import Federation, Trainer, TrainerConfig

BLANK = {"Gaussian": {}}
Tasks = Mapping[str, Callable[..., Task]]


def make_task(experiment: Experiment, tasks: Tasks) -> Task:
    """Return the task of an experiment.

    Args:
        experiment: Whose `task` is a name or a call.
        tasks: The tasks that may be named, or called with arguments. They are functions of modules, so that worker
            processes find them.

    Raises:
        ConfigError: The name is not known, the call is refused, or what it makes lacks a member of `SupervisedTask`.
    """
    if isinstance(experiment.task, str):
        check_known(experiment.task, tasks, "task")
        return tasks[experiment.task]()
    task = from_table(experiment.task, "task", {**tasks, **calls_of(experiment)})
    if missing := missing_members(task, SupervisedTask):
        raise ConfigError(
            f"task = {task!r}, which is no task, since it has no {' and no '.join(missing)}: a task has name, "
            "population, train, test, model and loss, as dpcomp.training.pytorch.SupervisedTask says. Add what is "
            "missing to the dataclass, or name another dataclass of a file of `imports`"
        )
    return task


def make_pipeline(experiment: Experiment) -> dp.Pipeline:
    """Return the pipeline of an experiment, calibrated if the experiment has a budget.

    Raises:
        ConfigError: A part is unknown or refused, or both or neither of a budget and a noise multiplier are given.
        NotPrivate: The parts make no private pipeline.
    """
    _check_budget(experiment)
    if experiment.epsilon is None:
        return _pipeline(experiment, None)

    def calibrated(noise_multiplier: float) -> dp.Pipeline:
        return _pipeline(experiment, noise_multiplier)

    return dp.calibrate(calibrated, epsilon=experiment.epsilon, delta=experiment.delta, steps=experiment.steps)


def make_arguments(experiment: Experiment) -> dict[str, Any]:
    """Return the keyword arguments of `simulate` that an experiment gives, δ among them.

    Raises:
        ConfigError: A part is unknown or refused.
    """
    calls = calls_of(experiment)
    values = {key: from_table(value, key, calls) for key, value in experiment.federation.items()}
    return {"delta": experiment.delta, **simulation_arguments(values)}


def checked_points(config: Path, tasks: Tasks) -> tuple[Point, ...]:
    """Return the points of a config's grid, after each was built once; the calibration, which takes time, is left out.

    Args:
        config: A TOML file.
        tasks: The tasks that it may name.

    Raises:
        ConfigError: The file describes no experiments, or a point can't be built; the message names file and point.
    """
    found = points(config)
    for point in found:
        with _named(f"{config}: at {point.title}" if point.labels else str(config)):
            _check(point.experiment, tasks)
    return found


def check_trials(trials: Iterable[tuple[str, Experiment, int]], tasks: Tasks) -> None:
    """Raise what these trials would raise before their first rounds; nothing is trained.

    Args:
        trials: For each its name, its experiment with tuned values set, and its seed.
        tasks: The tasks that they may name.

    Raises:
        ConfigError: A trial can't begin; the message names it.
    """
    made: dict[str, Trainer] = {}
    for name, experiment, seed in trials:
        with _named(name):
            for each in experiment.seeds:
                dp.PublicSeed(each)
            if experiment.epsilon is not None:
                make = partial(_pipeline, experiment)
                check_target(make, epsilon=experiment.epsilon, delta=experiment.delta, steps=experiment.steps)
            pipeline = _pipeline(experiment, None if experiment.epsilon is None else 1.0)
            arguments = make_arguments(experiment)
            trainer = _Shared(arguments.pop("trainer"), made, _made_of(experiment))
            check_simulation(make_task(experiment, tasks), pipeline, trainer=trainer, seed=seed, **arguments)


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Say of an error where it arose."""
    try:
        yield
    except (DpcompError, TypeError, ValueError) as error:
        raise ConfigError(f"{place}: {error}") from error


@dataclass(frozen=True, eq=False)
class _Shared:
    """A way to train whose trainer is made once for all points of a grid that it fits; it only checks, never trains.

    Args:
        config: The way to train.
        made: The trainers that were made, by what they were made of.
        made_of: What this one is made of.
    """

    config: TrainerConfig
    made: dict[str, Trainer]
    made_of: str

    def make_trainer(self, federation: Federation) -> Trainer:
        """Return the trainer."""
        if self.made_of not in self.made:
            self.made[self.made_of] = self.config.make_trainer(federation)
        return self.made[self.made_of]


def _made_of(experiment: Experiment) -> str:
    """Return what decides whether a trainer can be made, without numbers that do not, so that grids share trainers."""
    free = {"learning_rate", "momentum", "local_steps"}
    keys = [key for key, (owner, _) in FEDERATION_KEYS.items() if owner == "trainer" and key not in free]
    federation = {key: experiment.federation.get(key) for key in (*keys, "clients", "partition")}
    sampling = experiment.pipeline.get("sampling")
    return json.dumps([experiment.task, astuple(experiment.trust_model), sampling, federation], default=repr)


def _check(experiment: Experiment, tasks: Tasks) -> None:
    make_task(experiment, tasks)
    _check_budget(experiment)
    _pipeline(experiment, None if experiment.epsilon is None else 1.0)
    make_arguments(experiment)
    calls = calls_of(experiment)
    for key, values in experiment.tune.items():
        from_table(list(values), f"[tune] {key}", calls)


def _check_budget(experiment: Experiment) -> None:
    if (experiment.epsilon is None) == (BLANK in experiment.pipeline.get("mechanism", [])):
        raise ConfigError(
            "either give a budget, `epsilon = …`, and leave Gaussian = {} blank, to be calibrated for it, or give "
            "Gaussian = { noise_multiplier = … } and no budget"
        )


def _pipeline(experiment: Experiment, noise_multiplier: float | None) -> dp.Pipeline:
    table, calls = experiment.pipeline, calls_of(experiment)
    noisy = {"Gaussian": {"noise_multiplier": noise_multiplier}}
    stages = [noisy if stage == BLANK else stage for stage in table.get("mechanism", [])]
    mechanism = tuple(from_table(stage, "mechanism", calls) for stage in stages)
    others = {key: value for key, value in table.items() if key not in ("unsafe", "mechanism")}
    parts = {key: from_table(value, key, calls) for key, value in others.items()}
    if "unsafe" in table:
        return dp.Pipeline(mechanism=dp.unsafe(table["unsafe"], *mechanism), **parts)
    return dp.Pipeline(mechanism=mechanism, **parts)


def simulation_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arrange the values of [federation] as arguments of `simulate`: a trainer and a server are made of theirs.

    Args:
        values: Built values, not tables, by the keys of FEDERATION_KEYS.

    Raises:
        ConfigError: The server's optimiser is given in two ways.
    """
    # Without a word a config is evaluated after every round: results hold that meaning, and their configs don't say it.
    by_owner: dict[Owner, dict[str, Any]] = {"simulate": {"evaluate_every": 1}, "trainer": {}, "server": {}}
    for key, value in values.items():
        owner, argument = FEDERATION_KEYS[key]
        by_owner[owner][argument] = value
    if by_owner["server"]:
        if "server" in by_owner["simulate"]:
            keys = ", ".join(key for key in values if FEDERATION_KEYS[key].owner == "server")
            raise ConfigError(f"server beside {keys}: give one of the two, for both say how the server steps")
        by_owner["simulate"]["server"] = ServerOptimizer(**by_owner["server"])
    return {"server": ServerOptimizer(), **by_owner["simulate"], "trainer": PyTorch(**by_owner["trainer"])}

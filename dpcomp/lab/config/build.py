"""Builds what an experiment describes: its task, its pipeline, and the arguments of its simulation."""

import inspect
import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dpcomp as dp
from dpcomp.core.calls import check_keys, check_known, from_table
from dpcomp.core.checks import missing_members
from dpcomp.core.errors import ConfigError, DpcompError, named_error
from dpcomp.core.extras import require
from dpcomp.federated import ServerOptimizer
from dpcomp.lab.config.calls import calls_of
from dpcomp.lab.config.experiment import Experiment
from dpcomp.lab.config.federation_keys import FEDERATION_KEYS, Owner
from dpcomp.lab.config.grid import Point, points
from dpcomp.privacy.calibrate import check_target
from dpcomp.simulation import Task
from dpcomp.simulation.simulate import check_simulation
from dpcomp.training.pytorch import PyTorch, SupervisedTask
from dpcomp.training.trainer import Federation, ParallelTrainer, Trainer, TrainerConfig

BLANK = {"Gaussian": {}}
Tasks = Mapping[str, Callable[..., Task]]


def make_task(experiment: Experiment, tasks: Tasks) -> Task:
    """Return the task of an experiment.

    Args:
        experiment: Whose `task` is a name or a call.
        tasks: The tasks that may be named, or called with arguments. They are functions of modules, so that worker
            processes find them.

    Raises:
        ConfigError: The name is not known, the call is refused, or what it makes lacks a member of `SupervisedTask`; or
            of `dpcomp.simulation.Task`, where another trainer than PyTorch says what it needs besides.
    """
    if isinstance(experiment.task, str):
        check_known(experiment.task, tasks, "task")
        return tasks[experiment.task]()
    task = from_table(experiment.task, "task", {**tasks, **calls_of(experiment)})
    needed = Task if set(_trainer_call(experiment)) != {"PyTorch"} else SupervisedTask
    if missing := missing_members(task, needed):
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
    values = {
        key: from_table(value, f"[federation] {key}", calls)
        for key, value in experiment.federation.items()
        if key != "trainer"
    }
    return {"delta": experiment.delta, **simulation_arguments(values, partial(_trainer, experiment))}


def _trainer_call(experiment: Experiment) -> dict[str, Any]:
    """Return the call of the trainer: that of PyTorch, where a config says none."""
    call = experiment.federation.get("trainer", {"PyTorch": {}})
    if not isinstance(call, dict):
        raise ConfigError(f"[federation] trainer = {call!r}: write a call, such as trainer = {{ PyTorch = {{}} }}")
    return call


def _trainer(experiment: Experiment, **arguments: Any) -> TrainerConfig:
    """Return the trainer that a config calls, with its arguments and those that stand under [federation]."""
    call, where = _trainer_call(experiment), "[federation] trainer"
    calls: dict[str, Callable[..., Any]] = {"PyTorch": PyTorch}
    calls |= {name: value for name, value in calls_of(experiment).items() if hasattr(value, "make_trainer")}
    if "JAX" in call:
        require("jax", "jax")
        from dpcomp.training.jax import JAX  # here: who trains with PyTorch needs no JAX

        calls["JAX"] = JAX
    if len(call) != 1:
        raise ConfigError(f"{where} = {call}: write one call, such as {{ PyTorch = {{}} }}")
    ((name, own),) = call.items()
    check_known(name, {*calls, "JAX"}, where)
    keys = {destination.argument: key for key, destination in FEDERATION_KEYS.items() if destination.owner == "trainer"}
    if isinstance(own, dict) and (misplaced := sorted(set(own) & set(keys))):
        raise ConfigError(f"{where}.{name} has {misplaced[0]!r}: write {keys[misplaced[0]]} under [federation] itself")
    taken = inspect.signature(calls[name]).parameters
    if unknown := sorted(set(arguments) - set(taken)):
        raise ConfigError(
            f"[federation] has {keys[unknown[0]]!r}, which the trainer {name} does not take: it takes "
            f"{', '.join(sorted(taken)) or 'no arguments'}"
        )
    if "local_steps" in taken:  # never the trainer's own default, which the calibration would not know
        arguments = {"local_steps": 1, **arguments}
    if not isinstance(own, dict):
        raise ConfigError(f"{where}.{name} is {own!r}; arguments have names: {{ {name} = {{ argument = … }} }}")
    check_keys(own, taken, f"{where}.{name}")
    given = {key: from_table(value, f"{where}.{name}.{key}", calls_of(experiment)) for key, value in own.items()}
    try:
        return calls[name](**arguments, **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"[federation] {error}") from error


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
        with _named(f"{config}: at {point.title}" if point.labels else str(config), point.experiment):
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
    made: dict[str, _Made] = {}
    for name, experiment, seed in trials:
        with _named(name, experiment):
            for each in experiment.seeds:
                dp.PublicSeed(each)
            if experiment.epsilon is not None:
                make = partial(_pipeline, experiment)
                check_target(make, epsilon=experiment.epsilon, delta=experiment.delta, steps=experiment.steps)
            pipeline = _pipeline(experiment, None if experiment.epsilon is None else 1.0)
            arguments = make_arguments(experiment)
            trainer = _Shared(arguments.pop("trainer"), made, _made_of(experiment))
            task = make_task(experiment, tasks)
            check_simulation(task, pipeline, trainer=trainer, seed=seed, **arguments)
            _check_releases(experiment, trainer.found.trainer)
            tuned = any(len(values) > 1 for values in experiment.tune.values())
            experiment.criterion.check_measured(trainer.found.columns, task.name, tuned=tuned)


def _check_releases(experiment: Experiment, trainer: Trainer) -> None:
    """Refuse a trainer of a user's own that releases more often than a calibration of its noise would assume."""
    if "trainer" not in experiment.federation or experiment.epsilon is None:
        return
    local_steps, (name, *_) = experiment.local_steps, experiment.federation["trainer"]
    if not isinstance(trainer, ParallelTrainer):
        raise ConfigError(
            f"epsilon = {experiment.epsilon:g} is calibrated for {local_steps} releases of a client in a round, and "
            f"the trainer of {name} does not say how many it makes: give it the attribute `releases`, as "
            "dpcomp.training.ParallelTrainer says, or give the noise in place of epsilon"
        )
    if trainer.releases > local_steps:
        raise ConfigError(
            f"epsilon = {experiment.epsilon:g} is calibrated for {local_steps} releases of a client in a round, and "
            f"the trainer of {name} makes {trainer.releases}: let it have the field local_steps, or give the noise in "
            "place of epsilon"
        )


@contextmanager
def _named(place: str, experiment: Experiment) -> Iterator[None]:
    """Say of an error where it arose: at which trial, and at which line of a file of `imports`, if at one."""
    try:
        yield
    except Exception as error:  # an own task, model, partition or trainer may raise any
        said = str(error) if isinstance(error, (DpcompError, TypeError, ValueError)) else named_error(error)
        raise ConfigError(f"{place}: {said}{_own_line(error, experiment)}") from error


def _own_line(error: BaseException, experiment: Experiment) -> str:
    """Return the last line of a file of `imports` that an error, or what caused it, went through."""
    names = {str(source.path): source.name for source in experiment.imports}
    cause: BaseException | None = error
    own: list[tuple[str, int]] = []
    while cause is not None:
        frames = traceback.extract_tb(cause.__traceback__)
        own = [(names[frame.filename], frame.lineno or 0) for frame in frames if frame.filename in names] or own
        cause = cause.__cause__
    return f" ({own[-1][0]}, line {own[-1][1]})" if own else ""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Made:
    """A trainer, and what it measured of its first model."""

    trainer: Trainer
    columns: dict[str, float]


@dataclass(frozen=True, eq=False)
class _Shared:
    """A way to train whose trainer is made once for all points of a grid that it fits; it only checks, never trains.

    Args:
        config: The way to train.
        made: What was made, by what it was made of.
        made_of: What this one is made of.
    """

    config: TrainerConfig
    made: dict[str, _Made]
    made_of: str

    @property
    def found(self) -> _Made:
        """What was made."""
        return self.made[self.made_of]

    def make_trainer(self, federation: Federation) -> Trainer:
        """Return the trainer, which has evaluated its first model: test set and metrics are tried, too."""
        if self.made_of not in self.made:
            trainer = self.config.make_trainer(federation)
            self.made[self.made_of] = _Made(trainer=trainer, columns=dict(trainer.evaluate(trainer.initial_model)))
        return self.found.trainer


def _made_of(experiment: Experiment) -> str:
    """Return what decides whether a trainer can be made, without numbers that do not, so that grids share trainers."""
    free = {"learning_rate", "momentum", "local_steps"}
    free = set() if "trainer" in experiment.federation else free
    keys = [key for key, (owner, _) in FEDERATION_KEYS.items() if owner == "trainer" and key not in free]
    federation = {key: experiment.federation.get(key) for key in (*keys, "trainer", "clients", "partition")}
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


def simulation_arguments(
    values: Mapping[str, Any], make_trainer: Callable[..., TrainerConfig] = PyTorch
) -> dict[str, Any]:
    """Arrange the values of [federation] as arguments of `simulate`: a trainer and a server are made of theirs.

    Args:
        values: Built values, not tables, by the keys of FEDERATION_KEYS, but for "trainer".
        make_trainer: Called with the values that are the trainer's.

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
    return {"server": ServerOptimizer(), **by_owner["simulate"], "trainer": make_trainer(**by_owner["trainer"])}

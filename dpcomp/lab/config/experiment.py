"""An experiment as a TOML file: what is run, checked key by key, and turned into dpcomp's own values.

A table with one capitalised key is a call: `{ Clip = { norm = 0.1 } }` is `Clip(norm=0.1)`. Keys under
[federation] are arguments of `simulate`. With `epsilon`, `Gaussian = {}` has its noise calibrated. `imports` names
Python files whose dataclasses may be called too. A [grid] makes many experiments of one file: `dpcomp.lab.config.grid`.
"""

import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import dpcomp as dp
from dpcomp.federated.aggregation import ServerOptimizer
from dpcomp.lab.config.calls import (
    CALLS,
    ConfigError,
    built,
    check_keys,
    names_in,
    nearest,
)
from dpcomp.lab.config.own_parts import Import, imported
from dpcomp.training.pytorch import PyTorch
from experiments.data.tasks import TASKS, Classification

# The keys of [federation] and [tune] whose values go to `simulate`, to `PyTorch` and to `ServerOptimizer`.
SIMULATE_KEYS = (
    *("clients", "rounds", "partition", "participation", "evaluate_every", "protocol", "faults", "probes"),
)
TRAINER_KEYS = (
    *("local_steps", "learning_rate", "momentum", "expected_batch_size", "local_sampling", "physical_batch_size"),
    "device",
)
SERVER_KEYS = {"server_learning_rate": "learning_rate", "server_momentum": "momentum"}
BLANK = {"Gaussian": {}}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One configuration: a task, a pipeline, a federation, and the seeds to run it with."""

    task: str
    pipeline: dict[str, Any]
    federation: dict[str, Any]
    seeds: tuple[int, ...] = (0,)
    delta: float = 1e-5
    epsilon: float | None = None  # calibrate the Gaussian for it, over rounds × local steps
    tune: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # tried with the first seed; the best goes on
    imports: tuple[Import, ...] = ()

    def __post_init__(self):
        nearest(self.task, TASKS, "task")
        check_keys(self.pipeline, (*(item.name for item in fields(dp.Pipeline)), "unsafe"), "[pipeline]")
        allowed = {*SIMULATE_KEYS, *TRAINER_KEYS, *SERVER_KEYS}
        check_keys(self.federation, allowed, "[federation]")
        check_keys(self.tune, allowed, "[tune]")
        if not self.seeds:
            raise ConfigError("seeds = []: an experiment runs with one seed at least")
        for key in ("clients", "rounds"):
            if key not in self.federation:
                raise ConfigError(f"[federation] has no {key!r}: say how many")

    @property
    def steps(self) -> int:
        """Releases that a client's data go through, if it takes part in every round."""
        local_steps = self.federation.get("local_steps", 1) if self.unit == "example" else 1
        return self.federation["rounds"] * local_steps

    @property
    def unit(self) -> str:
        """What one neighbour adds or removes."""
        return self.pipeline.get("unit", "example")

    @property
    def calls(self) -> dict[str, Callable[..., Any]]:
        """What its tables may call, by name: dpcomp's parts, and those of its own files."""
        found = dict(CALLS)
        for source in self.imports:
            own = source.calls()
            if twice := sorted(set(own) & set(found)):
                raise ConfigError(f"imports: {source.name} defines {twice[0]}, as another file does: rename one")
            found |= own
        return found

    def make_task(self) -> Classification:
        """The task."""
        return TASKS[self.task]()

    def make_pipeline(self) -> dp.Pipeline:
        """The pipeline, calibrated if a budget is given."""
        self._check_budget()
        if self.epsilon is None:
            return self._pipeline(None)
        return dp.calibrate(self._pipeline, epsilon=self.epsilon, delta=self.delta, steps=self.steps)

    def simulation(self) -> dict[str, Any]:
        """The arguments of `simulate`."""
        calls = self.calls
        values = {key: built(value, key, calls) for key, value in self.federation.items()}
        return {
            "delta": self.delta,
            "trainer": PyTorch(**{key: value for key, value in values.items() if key in TRAINER_KEYS}),
            "server": ServerOptimizer(
                **{SERVER_KEYS[key]: value for key, value in values.items() if key in SERVER_KEYS}
            ),
            **{key: value for key, value in values.items() if key in SIMULATE_KEYS},
        }

    def check(self) -> None:
        """Raise now what building it would raise, without the time that a calibration takes."""
        self._check_budget()
        self._pipeline(None if self.epsilon is None else 1.0)
        self.simulation()
        for key, values in self.tune.items():
            built(list(values), f"[tune] {key}", self.calls)

    def _check_budget(self) -> None:
        if (self.epsilon is None) == (BLANK in self.pipeline.get("mechanism", [])):
            raise ConfigError(
                "either give a budget, `epsilon = …`, and leave Gaussian = {} blank, to be calibrated for it, or give "
                "Gaussian = { noise_multiplier = … } and no budget"
            )

    def _pipeline(self, noise_multiplier: float | None) -> dp.Pipeline:
        noisy, calls = {"Gaussian": {"noise_multiplier": noise_multiplier}}, self.calls
        stages = [noisy if stage == BLANK else stage for stage in self.pipeline.get("mechanism", [])]
        mechanism = tuple(built(stage, "mechanism", calls) for stage in stages)
        others = {key: value for key, value in self.pipeline.items() if key not in ("unsafe", "mechanism")}
        parts = {key: built(value, key, calls) for key, value in others.items()}
        if "unsafe" in self.pipeline:
            return dp.Pipeline(mechanism=dp.unsafe(self.pipeline["unsafe"], *mechanism), **parts)
        return dp.Pipeline(mechanism=mechanism, **parts)

    def as_dict(self) -> dict[str, Any]:
        """What the file says, defaults filled in, and the digests of the imports that it calls; what a report holds."""
        facts = asdict(replace(self, imports=()))
        del facts["imports"]
        called = names_in((self.pipeline, self.federation))
        used = {source.name: source.digest for source in self.imports if called & set(source.calls())}
        return {**facts, "imports": used} if used else facts


def load(path: Path) -> Experiment:
    """The experiment that a TOML file describes.

    Raises:
        ConfigError: the file is not there, is not TOML, has a key that means nothing, or a grid.
    """
    facts = read(path)
    if "grid" in facts:
        raise ConfigError(f"{path} has a [grid], and so many experiments: dpcomp sweep {path} runs them")
    try:
        return experiment_of(facts, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read(path: Path) -> dict[str, Any]:
    """What a TOML file says, unchecked.

    Raises:
        ConfigError: the file is not there, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def experiment_of(facts: dict[str, Any], folder: Path) -> Experiment:
    """The experiment of a file in that folder which says these facts.

    Raises:
        ConfigError: a key means nothing, or one is missing.
    """
    check_keys(facts, [item.name for item in fields(Experiment)], "the file")
    missing = {"task", "pipeline", "federation"} - set(facts)
    if missing:
        raise ConfigError(f"it has no {', '.join(sorted(missing))}")
    given = {
        **facts,
        "seeds": tuple(_listed(facts.get("seeds", [0]), "seeds")),
        "tune": {key: tuple(_listed(values, f"[tune] {key}")) for key, values in facts.get("tune", {}).items()},
        "imports": tuple(imported(name, folder) for name in _listed(facts.get("imports", []), "imports")),
    }
    return Experiment(**given)


def _listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{where} = {value!r}: write a list, [{value!r}]")
    return value

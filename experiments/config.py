"""An experiment as a TOML file: what is run, checked key by key, and turned into dpcomp's own values.

A table with one capitalised key is a call: `{ Clip = { norm = 0.1 } }` is `Clip(norm=0.1)`. Keys under
[federation] are arguments of `simulate`. With `epsilon`, `Gaussian = {}` has its noise calibrated.
"""

import difflib
import inspect
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import dpcomp as dp
from dpcomp.federated import IID, Dirichlet, simulate
from dpcomp.federated.probe import Clipping, TopKOverlap
from dpcomp.training.schedule import Cosine
from experiments.tasks import TASKS, Classification

CALLS = {
    call.__name__: call
    for call in (
        *(dp.Clip, dp.Gaussian, dp.RandomK, dp.TopK, dp.Poisson, dp.Codec, dp.LastBroadcast),
        *(dp.Uniform, dp.Nearest, dp.Stochastic, dp.Dithered, dp.Equal, dp.Waterfill, dp.FixedStep),
        *(dp.Float32, dp.Float16, dp.Sign, dp.Ternary, dp.Rotated, dp.FixedWidth, dp.RangeCoder),
        *(IID, Dirichlet, TopKOverlap, Clipping, Cosine),
    )
}
NOT_CONFIGURED = {"task", "pipeline", "seed", "secret", "delta", "progress"}


class ConfigError(Exception):
    """The file does not describe an experiment; the message says where, and what was meant."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One configuration: a task, a pipeline, a federation, and the seeds to run it with."""

    task: str
    pipeline: dict[str, Any]
    federation: dict[str, Any]
    seeds: tuple[int, ...] = (0,)
    delta: float = 1e-5
    epsilon: float | None = None  # calibrate the Gaussian for it, over rounds × local steps
    tune: dict[str, tuple[float, ...]] = field(default_factory=dict)  # tried with the first seed; the best goes on

    def __post_init__(self):
        _nearest(self.task, TASKS, "task")
        _check_keys(self.pipeline, (*(item.name for item in fields(dp.Pipeline)), "unsafe"), "[pipeline]")
        allowed = set(inspect.signature(simulate).parameters) - NOT_CONFIGURED
        _check_keys(self.federation, allowed, "[federation]")
        _check_keys(self.tune, allowed, "[tune]")
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

    def make_task(self) -> Classification:
        """The task."""
        return TASKS[self.task]()

    def make_pipeline(self) -> dp.Pipeline:
        """The pipeline, calibrated if a budget is given."""
        stages = self.pipeline.get("mechanism", [])
        blank = [stage for stage in stages if stage == {"Gaussian": {}}]
        if (self.epsilon is None) == bool(blank):
            raise ConfigError(
                "either give a budget, `epsilon = …`, and leave Gaussian = {} blank, to be calibrated for it, or give "
                "Gaussian = { noise_multiplier = … } and no budget"
            )
        if self.epsilon is None:
            return self._pipeline(stages)

        def with_noise(noise_multiplier: float) -> dp.Pipeline:
            noisy = {"Gaussian": {"noise_multiplier": noise_multiplier}}
            return self._pipeline([noisy if stage == {"Gaussian": {}} else stage for stage in stages])

        return dp.calibrate(with_noise, epsilon=self.epsilon, delta=self.delta, steps=self.steps)

    def simulation(self) -> dict[str, Any]:
        """The arguments of `simulate`."""
        return {"delta": self.delta, **{key: built(value, key) for key, value in self.federation.items()}}

    def _pipeline(self, stages: list[Any]) -> dp.Pipeline:
        parts = {key: built(value, key) for key, value in self.pipeline.items() if key not in ("unsafe", "mechanism")}
        mechanism = tuple(built(stage, "mechanism") for stage in stages)
        if "unsafe" in self.pipeline:
            return dp.Pipeline(mechanism=dp.unsafe(self.pipeline["unsafe"], *mechanism), **parts)
        return dp.Pipeline(mechanism=mechanism, **parts)

    def as_dict(self) -> dict[str, Any]:
        """What the file says, defaults filled in; what the report holds."""
        return asdict(self)


def load(path: Path) -> Experiment:
    """The experiment that a TOML file describes.

    Raises:
        ConfigError: the file is not there, is not TOML, or has a key that means nothing.
    """
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        _check_keys(facts, [item.name for item in fields(Experiment)], "the file")
        missing = {"task", "pipeline", "federation"} - set(facts)
        if missing:
            raise ConfigError(f"it has no {', '.join(sorted(missing))}")
        seeds = tuple(facts.pop("seeds", (0,)))
        tune = {key: tuple(values) for key, values in facts.pop("tune", {}).items()}
        return Experiment(**facts, seeds=seeds, tune=tune)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def built(value: Any, where: str) -> Any:
    """A TOML value with its calls made."""
    if isinstance(value, list):
        return tuple(built(item, where) for item in value)
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ConfigError(f"{where}: {value} is no call; write {{ Name = {{ argument = … }} }}")
    ((name, arguments),) = value.items()
    _nearest(name, CALLS, where)
    call = CALLS[name]
    _check_keys(arguments, inspect.signature(call).parameters, f"{where}.{name}")
    try:
        return call(**{key: built(item, f"{where}.{name}.{key}") for key, item in arguments.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}.{name}: {error}") from error


def _check_keys(found: Iterable[str], known: Iterable[str], where: str) -> None:
    for key in found:
        _nearest(key, known, where)


def _nearest(key: str, known: Iterable[str], where: str) -> None:
    names = sorted(known)
    if key not in names:
        close = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
        raise ConfigError(
            f"{where} has {key!r}, which is unknown; the nearest is {close[0]!r}. Known: {', '.join(names)}"
        )

"""An experiment as a TOML file: what is run, every key checked.

A table with one capitalised key is a call: `{ Clip = { norm = 0.1 } }` is `Clip(norm=0.1)`. `task` is a name that the
command line knows, a call of it with arguments, `{ digits = { validation = 200 } }`, or a call of a class. The keys of
[federation] stand in `dpcomp.lab.config.federation_keys`. With `epsilon`, `Gaussian = {}` has its noise calibrated.
`metric`, `direction`, `measure`, `tune_on` and `tuning_seeds` say which numbers of trials count:
`dpcomp.lab.results.measure`.
`imports` names Python files, which are run, and whose dataclasses may be called too. A [grid] makes many experiments of
one file: `dpcomp.lab.config.grid`.

Here an experiment is described, and nothing of it is built: whoever reads results needs no training framework.
`dpcomp.lab.config.build` builds it.
"""

import math
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dpcomp.core.calls import check_keys
from dpcomp.core.checks import real_number, whole_number
from dpcomp.core.errors import ConfigError
from dpcomp.lab.config.federation_keys import FEDERATION_KEYS, PERMISSIONS
from dpcomp.lab.config.own_parts import Import, imported
from dpcomp.lab.results.measure import ACCURACY, FIVE, Criterion, Direction, Measure, Split
from dpcomp.pipeline import Pipeline
from dpcomp.privacy.trust import TrustModel

WHOLE_NUMBERS = frozenset({"clients", "rounds", "local_steps", "evaluate_every", "physical_batch_size"})
NUMBERS = frozenset({"learning_rate", "momentum", "tail", "server_learning_rate", "server_momentum"})
CALLED = {  # keys whose values are calls
    "partition": "{ IID = {} }",
    "participation": "{ Poisson = { rate = 0.1 } }",
    "local_sampling": "{ Poisson = { rate = 0.1 } }",
    "protocol": "{ Versioned = {} }",
    "faults": "{ Faults = { drop = 0.1 } }",
    "probes": "[{ Clipping = {} }]",
    "trainer": "{ PyTorch = {} }",
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One configuration: a task, a pipeline, a federation, and the seeds to run it with; as TOML values.

    Args:
        task: The name of a task, or a call of one, {name or class name: arguments}.
        pipeline: Fields of `dp.Pipeline` by name, or `unsafe` with its reason; their values are calls.
        federation: Values by the keys of FEDERATION_KEYS.
        seeds: The seeds; each gives one trial.
        delta: δ of the guarantee, in (0, 1).
        epsilon: The ε for which the noise of `Gaussian` is calibrated, over all releases of the run; None where
            `Gaussian` has a noise multiplier.
        tune: Lists of values by the keys of FEDERATION_KEYS. All combinations are tried with the first seeds, and the
            other seeds run the best one by `metric` and `measure`.
        metric: The metric of the task by which the tuning is chosen and which tables report.
        direction: Whether "higher" or "lower" is better; needed for metrics other than "accuracy" and "loss".
        measure: The model whose metric counts: the last one, the mean of the last five evaluations, or the average of
            the last rounds' models (`tail`).
        tune_on: The examples on which the tuning is chosen, "validation" or "test"; None for those that the task holds
            out, or on the test set of a task that holds out none.
        tuning_seeds: How many of the seeds the tuning is chosen by, the first ones: by the mean over them. These five
            keys are no part of a trial: results stay as they are when they are changed.
        imports: Files whose dataclasses may be called; they are run.

    Raises:
        ConfigError: A key is unknown, there is no seed, or fewer than the tuning asks for, the number of clients or
            rounds is missing, a value is of another type or outside its range, or the measure is unknown or one that
            these trials would not have.
    """

    task: str | dict[str, Any]
    pipeline: dict[str, Any]
    federation: dict[str, Any]
    seeds: tuple[int, ...] = (0,)
    delta: float = 1e-5
    epsilon: float | None = None
    tune: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    metric: str = ACCURACY
    direction: Direction | None = None
    measure: Measure = "last"
    tune_on: Split | None = None
    tuning_seeds: int = 1
    imports: tuple[Import, ...] = ()

    def __post_init__(self):
        self._check_types()
        check_keys(self.pipeline, (*(item.name for item in fields(Pipeline)), "unsafe"), "[pipeline]")
        check_keys(self.federation, FEDERATION_KEYS, "[federation]")
        check_keys(self.tune, FEDERATION_KEYS, "[tune]")
        if not self.seeds:
            raise ConfigError("seeds = []: an experiment runs with one seed at least")
        for key in ("clients", "rounds"):
            if key not in self.federation:
                raise ConfigError(f"[federation] has no {key!r}: say how many")
        if empty := [key for key, values in self.tune.items() if not values]:
            raise ConfigError(f"[tune] {empty[0]} = []: give the values to try, one at least, or leave the key out")
        tried = ((key, value) for key, values in self.tune.items() for value in values)
        for key, value in (*self.federation.items(), *tried):
            _check_value(key, value)
        self._check_measure()

    @cached_property
    def criterion(self) -> Criterion:
        """Which number of a trial counts."""
        return Criterion(
            metric=self.metric,
            measure=self.measure,
            direction=self.direction,
            tune_on=self.tune_on,
            tuning_seeds=self.tuning_seeds,
        )

    @property
    def steps(self) -> int:
        """The number of releases that a client's data take part in, if the client takes part in every round."""
        return self.federation["rounds"] * self.local_steps

    @property
    def local_steps(self) -> int:
        """The number of releases of a client in a round that it takes part in."""
        return self.federation.get("local_steps", 1) if self.trust_model.releases_local_steps else 1

    @property
    def trust_model(self) -> TrustModel:
        """The unit and the trust of its pipeline."""
        return TrustModel(unit=self.pipeline.get("unit", "example"), trust=self.pipeline.get("trust", "nobody"))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What makes a trial this one and no other, besides its seed; a result holds it as its `config`.

        It is what the file says, defaults filled in, without seeds, values to tune, how trials are judged and keys that
        only permit a setting, and with the digests of those imports that it calls.
        """
        federation = {key: value for key, value in self.federation.items() if key not in PERMISSIONS}
        facts = asdict(replace(self, imports=(), federation=federation)) | {"tune": None, "seeds": None}
        for key in ("imports", *(item.name for item in fields(Criterion))):
            del facts[key]
        called = names_in((self.task, self.pipeline, self.federation))
        used = {source.name: source.digest for source in self.imports if called & set(source.dataclasses())}
        return {**facts, "imports": used} if used else facts

    def _check_types(self) -> None:
        """Refuse values that are of another type than their keys, or outside their range."""
        if not isinstance(self.task, (str, dict)):
            raise ConfigError(f'task = {self.task!r}: give a name, "digits", or a call, {{ Mine = {{}} }}')
        for key in ("pipeline", "federation", "tune"):
            if not isinstance(getattr(self, key), dict):
                raise ConfigError(f"{key} = {getattr(self, key)!r}: write a table, [{key}], with keys of its own")
        if not isinstance(self.pipeline.get("mechanism", []), list):
            raise ConfigError(
                "[pipeline] mechanism is no list: write its stages in order, "
                "mechanism = [{ Clip = { norm = 1.0 } }, { Gaussian = { noise_multiplier = 1.0 } }]"
            )
        try:
            for seed in self.seeds:
                whole_number(seed, "each of `seeds`", least=0, most=2**64 - 1)
            delta = real_number(self.delta, "delta", "a number in (0, 1), below 1 ÷ the number of units")
            if not 0 < delta < 1:
                raise ValueError(f"delta = {delta:g}: give a number in (0, 1), below 1 ÷ the number of units")
            if self.epsilon is not None:
                epsilon = real_number(self.epsilon, "epsilon", "a finite number above 0")
                if not 0 < epsilon < math.inf:
                    raise ValueError(f"epsilon = {epsilon:g}: give a finite number above 0")
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error

    def _check_measure(self) -> None:
        if self.criterion.tuning_seeds > len(self.seeds):
            raise ConfigError(
                f"tuning_seeds = {self.tuning_seeds} beside {len(self.seeds)} seeds: give as many seeds at least"
            )
        if self.criterion.measure == "tail" and not all(self._values("tail", 0)):
            raise ConfigError(
                'measure = "tail" beside [federation] without `tail`: give the share of the last rounds whose models '
                "are averaged, such as tail = 0.25"
            )
        if self.measure == "last_five":
            rounds, every = self._values("rounds", None), self._values("evaluate_every", 1)
            evaluations = min(math.ceil(number / between) for number in rounds for between in every)
            if evaluations < FIVE:
                raise ConfigError(
                    f'measure = "last_five" beside rounds and evaluate_every that give {evaluations} evaluations: '
                    "evaluate more often"
                )

    def _values(self, key: str, default: Any) -> tuple[Any, ...]:
        """Return the values that trials have at a key of FEDERATION_KEYS."""
        return self.tune.get(key, (self.federation.get(key, default),))


def _check_value(key: str, value: Any) -> None:
    """Refuse the value of a plain number under [federation] or [tune] that is of another type or outside its range."""
    try:
        if key in WHOLE_NUMBERS:
            whole_number(value, f"[federation] {key}", least=1)
        elif key in NUMBERS and not isinstance(value, dict):
            number = real_number(value, f"[federation] {key}", "a number from 0 on")
            if not 0 <= number < math.inf:
                raise ValueError(f"[federation] {key} is {number:g}: give a finite number from 0 on")
        elif key in CALLED and not isinstance(value, (dict, list)):
            raise TypeError(f"[federation] {key} = {value!r}: write a call, such as {key} = {CALLED[key]}")
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def load(path: Path) -> Experiment:
    """Read the experiment that a TOML file describes.

    Raises:
        ConfigError: The file is not there, is not TOML, has a key that means nothing, or a grid.
    """
    facts = read(path)
    if "grid" in facts:
        raise ConfigError(f"{path} has a [grid], and so many experiments: dpcomp sweep {path} runs them")
    try:
        return experiment_of(facts, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read(path: Path) -> dict[str, Any]:
    """Read a TOML file as tables and values, without checking its keys.

    Raises:
        ConfigError: The file is not there, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def refuse_imports(path: Path) -> None:
    """Refuse a file with `imports`, of which nothing is run.

    Raises:
        ConfigError: It has imports; or as `read`.
    """
    if named := read(path).get("imports"):
        raise ConfigError(
            f"{path} has imports = {named!r}, files of Python that would be run to read it, and --no-imports refuses "
            "them: read the files, and leave --no-imports out if you trust them"
        )


def experiment_of(facts: dict[str, Any], folder: Path) -> Experiment:
    """Make an experiment of the content of a TOML file.

    Args:
        facts: The file's tables and values, as `read` returns them, without a [grid].
        folder: The folder of the file, from which paths of `imports` start.

    Raises:
        ConfigError: A key is unknown, or one is missing.
    """
    check_keys(facts, [item.name for item in fields(Experiment)], "the file")
    missing = {"task", "pipeline", "federation"} - set(facts)
    if missing:
        forms = {"task": 'task = "digits" or { Mine = {} }', "pipeline": "[pipeline]", "federation": "[federation]"}
        wanted = ", ".join(form for key, form in forms.items() if key in missing)
        raise ConfigError(f"it has no {', '.join(sorted(missing))}: write {wanted}")
    if not isinstance(facts.get("tune", {}), dict):
        raise ConfigError(f"tune = {facts['tune']!r}: write a table, [tune], with a list of values for each key")
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


def names_in(value: Any) -> set[str]:
    """Return every key of a TOML value, however deep: the names that it calls are among them."""
    if isinstance(value, dict):
        return set(value).union(*map(names_in, value.values()))
    return set().union(*map(names_in, value)) if isinstance(value, (list, tuple)) else set()

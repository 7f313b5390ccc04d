"""A grid of experiments in one TOML file: the product of its axes, each point an experiment of its own.

    [grid]
    "pipeline.codec.Codec.sparsify.TopK.fraction" = [0.1, 0.01, 0.001]     # an axis: a path into this file, its values
    "pipeline.mechanism.Gaussian.noise_multiplier" = [0.5, 1.0]            # in a list the call of that name is meant

    [grid."pipeline.codec.Codec.quantize"]                                 # the same with labels of your own
    "4 bits" = { Uniform = { bits = 4 } }
    "float32" = { Absent = {} }                                            # the key is left out: TOML has no None

    [grid.method]                                                          # an axis with a name of your own, each of
    "dense" = { "pipeline.feedback" = false }                              # whose labels sets paths together
    "top 1 %" = { "pipeline.codec.Codec.sparsify" = { TopK = { fraction = 0.01 } }, "tune.learning_rate" = [1.0, 2.0] }

Axes are applied in the order of the file. A value replaces what stands at its path; tables on the way are made.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpcomp.core.calls import check_known
from dpcomp.core.errors import ConfigError
from dpcomp.lab.config.experiment import Experiment, experiment_of, read
from dpcomp.lab.config.labels import folder_name, label, short_names

ABSENT = {"Absent": {}}
TABLES = {"pipeline": "feedback", "federation": "local_steps", "tune": "learning_rate"}  # each with a key for example
ROOTS = (*TABLES, "task", "delta", "epsilon")


@dataclass(frozen=True, kw_only=True)
class Point:
    """An experiment of a config's grid.

    Attributes:
        config: The TOML file.
        labels: From the name of each axis to the point's label on it.
        title: Its name in figures and messages.
        experiment: The experiment that is run.
        name: The first part of its trials' names, made of the labels; "" where there is no grid.
    """

    config: Path
    labels: dict[str, str]
    title: str
    experiment: Experiment
    name: str


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Label → path → value; `named` where the labels speak for themselves."""

    name: str
    values: dict[str, dict[str, Any]]
    named: bool


def points(config: Path) -> tuple[Point, ...]:
    """Return the points of a config's grid, as they are described; of a config without grid the one that it is.

    Raises:
        ConfigError: The file describes no grid of experiments; the message says at which point, or axis.
    """
    facts = read(config)
    grid = facts.pop("grid", {})
    try:
        axes = [_axis(name, given) for name, given in grid.items()]
        return tuple(
            _point(config, facts, axes, labels) for labels in itertools.product(*(axis.values for axis in axes))
        )
    except ConfigError as error:
        raise ConfigError(f"{config}: {error}") from error


def _point(config: Path, facts: dict[str, Any], axes: list[_Axis], chosen: tuple[str, ...]) -> Point:
    short = short_names(axis.name for axis in axes)
    labels = {short[axis.name]: name for axis, name in zip(axes, chosen, strict=True)}
    title = ", ".join(
        name if axis.named else f"{short[axis.name]}={name}" for axis, name in zip(axes, chosen, strict=True)
    )
    try:
        for axis, name in zip(axes, chosen, strict=True):
            for path, value in axis.values[name].items():
                facts = _placed(facts, tuple(path.split(".")), value, "")
        experiment = experiment_of(facts, config.parent)
    except (ConfigError, TypeError, ValueError) as error:
        raise ConfigError(f"at {title}: {error}" if axes else str(error)) from error
    name = folder_name(labels)
    return Point(config=config, labels=labels, title=title or config.stem, experiment=experiment, name=name)


def _axis(name: str, given: Any) -> _Axis:
    if "." in name or name in ROOTS:
        values = {text: {name: value} for text, value in _labelled(name, given).items()}
    elif not isinstance(given, dict):
        check_known(name, ROOTS, "[grid]")
        values = {}
    elif not all(isinstance(sets, dict) for sets in given.values()):
        raise ConfigError(f'[grid.{name}] is an axis of your own, whose labels set paths: "label" = {{ "path" = … }}')
    else:
        values = given
    if not values:
        raise ConfigError(f"[grid] {name} has no values: give one at least, or leave the axis out")
    for path in {path: None for sets in values.values() for path in sets}:
        _check_path(path)
    return _Axis(name=name, values=values, named=isinstance(given, dict))


def _labelled(name: str, given: Any) -> Mapping[str, Any]:
    if isinstance(given, dict):
        return given
    if not isinstance(given, list):
        raise ConfigError(f"[grid] {name} = {given!r}: write a list of values, or a table of labelled ones")
    found: dict[str, Any] = {}
    for value in given:
        text = "absent" if value == ABSENT else label(value)
        if text in found:
            raise ConfigError(f"[grid] {name}: the value {text} stands there twice")
        found[text] = value
    return found


def _check_path(path: str) -> None:
    root, *rest = path.split(".")
    check_known(root, ROOTS, f"[grid] {path}:")
    if root in TABLES and not rest:
        raise ConfigError(f'[grid] {path}: vary what is in [{root}], by paths in quotes: "{root}.{TABLES[root]}" = …')
    if rest and root not in (*TABLES, "task"):
        raise ConfigError(f"[grid] {path}: {root} is a plain value, which has no keys")


def _placed(table: Any, path: tuple[str, ...], value: Any, where: str) -> Any:
    """Return the table with a value at the path; tables along the path are copied, the others shared."""
    key, *rest = path
    if isinstance(table, list):
        found = [place for place, item in enumerate(table) if isinstance(item, dict) and key in item]
        check_known(key, (name for item in table if isinstance(item, dict) for name in item), where)
        if len(found) > 1:
            raise ConfigError(f"{where} has {len(found)} calls of {key}: vary {where} as a whole")
        place = found[0]
        changed = _placed(table[place], path, value, where)
        return [*table[:place], *([changed] if changed else []), *table[place + 1 :]]
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is {table!r}, and has no key {key!r}")
    if key[:1].isupper() and table and key not in table:
        raise ConfigError(f"{where} is {label(table)}, not {key}: vary {where} as a whole, or both in one named axis")
    if rest:
        below = f"{where}.{key}" if where else key
        return {**table, key: _placed(table.get(key, {}), tuple(rest), value, below)}
    if value == ABSENT:
        return {name: kept for name, kept in table.items() if name != key}
    return {**table, key: value}

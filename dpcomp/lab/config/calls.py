"""TOML tables as calls: `{ Clip = { norm = 0.1 } }` is `Clip(norm=0.1)`, its arguments checked by name."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import dpcomp as dp
from dpcomp.federated.absence import Decay, Drop, Keep
from dpcomp.federated.late import Reject, Weigh
from dpcomp.simulation import IID, Dirichlet, Faults, Versioned
from dpcomp.simulation.probes import Clipping, TopKOverlap
from dpcomp.simulation.unversioned import Unversioned
from dpcomp.training.schedule import Cosine

CALLS: dict[str, Callable[..., Any]] = {
    call.__name__: call
    for call in (
        *(dp.Clip, dp.Gaussian, dp.RandomK, dp.TopK, dp.Poisson, dp.Codec, dp.LastBroadcast),
        *(dp.Uniform, dp.Nearest, dp.Stochastic, dp.Dithered, dp.Equal, dp.Waterfill, dp.FixedStep),
        *(dp.Float32, dp.Float16, dp.Sign, dp.Ternary, dp.Rotated, dp.FixedWidth, dp.RangeCoder),
        *(IID, Dirichlet, TopKOverlap, Clipping, Cosine),
        *(Faults, Versioned, Unversioned, Keep, Decay, Drop, Reject, Weigh),
    )
}


class ConfigError(Exception):
    """The file does not describe an experiment; the message says where, and what was meant."""


def built(value: Any, where: str, calls: Mapping[str, Callable[..., Any]]) -> Any:
    """A TOML value with its calls made.

    Raises:
        ConfigError: a table is no call, or a call that is refused.
    """
    if isinstance(value, list):
        return tuple(built(item, where, calls) for item in value)
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ConfigError(f"{where}: {value} is no call; write {{ Name = {{ argument = … }} }}")
    ((name, arguments),) = value.items()
    nearest(name, calls, where)
    if not isinstance(arguments, dict):
        raise ConfigError(f"{where}.{name} is {arguments!r}; arguments have names: {{ {name} = {{ argument = … }} }}")
    call = calls[name]
    check_keys(arguments, inspect.signature(call).parameters, f"{where}.{name}")
    try:
        return call(**{key: built(item, f"{where}.{name}.{key}", calls) for key, item in arguments.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}.{name}: {error}") from error


def names_in(value: Any) -> set[str]:
    """Every key of a TOML value, whatever lies between: the names that it calls are among them."""
    if isinstance(value, dict):
        return set(value).union(*map(names_in, value.values()))
    return set().union(*map(names_in, value)) if isinstance(value, (list, tuple)) else set()


def check_keys(found: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse a key that means nothing there."""
    for key in found:
        nearest(key, known, where)


def nearest(key: str, known: Iterable[str], where: str) -> None:
    """Refuse an unknown key, and name the known one that looks most like it."""
    names = sorted(known)
    if not names:
        raise ConfigError(f"{where} has {key!r}, where nothing has a name")
    if key not in names:
        close = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
        raise ConfigError(
            f"{where} has {key!r}, which is unknown; the nearest is {close[0]!r}. Known: {', '.join(names)}"
        )

"""Values as tables of plain types: `{"Clip": {"norm": 1.0}}` is `Clip(norm=1.0)`; and back, every name checked.

One form serves TOML files, results and fingerprints.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any

from dpcomp.core.errors import ConfigError

Calls = Mapping[str, Callable[..., Any]]


def as_table(value: Any, where: str) -> Any:
    """Return a value as plain types: a frozen dataclass becomes {class name: {field: value}}, a tuple a list.

    Args:
        value: None, a bool, a number, a string, a tuple, or a frozen dataclass whose fields are such values.
        where: What the error calls the value, such as `"codec.sparsify"`.

    Raises:
        TypeError: The value is, or holds, anything else. Such a part would be described by where it lies in memory, and
            two processes would take it for two different parts.

    Example:
        >>> from dpcomp import Clip
        >>> as_table((Clip(1.0), None), "mechanism")
        [{'Clip': {'norm': 1.0}}, None]
    """
    return _as_table(value, where, omit_none=False)


def as_toml_table(value: Any, where: str) -> Any:
    """Return a value as `as_table` does, without the fields that hold None: TOML has none.

    Args:
        value: As for `as_table`.
        where: As for `as_table`.

    Raises:
        TypeError: As `as_table` does.
        ValueError: A field holds None, and its default is something else: read back, it would hold that.
    """
    return _as_table(value, where, omit_none=True)


def _as_table(value: Any, where: str, *, omit_none: bool) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, (tuple, list)):
        return [_as_table(item, where, omit_none=omit_none) for item in value]
    check_frozen(value, where)
    name, table = type(value).__name__, {}
    for item in fields(value):
        content, place = getattr(value, item.name), f"{where}.{name}.{item.name}"
        if content is None and omit_none:
            if item.default is not None:
                raise ValueError(f"{place} is None, which TOML cannot say, and its default is another value")
            continue
        table[item.name] = _as_table(content, place, omit_none=omit_none)
    return {name: table}


def check_frozen(value: Any, where: str) -> None:
    """Refuse a part that is no frozen dataclass.

    Raises:
        TypeError: Naming the class, and what to write over it.
    """
    frozen = is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    if not frozen:
        raise TypeError(
            f"{where} is {value!r}: a part is a frozen dataclass whose fields are numbers, strings, tuples or such "
            "parts, so that every process describes it alike. Write @dataclass(frozen=True) over its class, and hand "
            "over an instance"
        )


def from_table(value: Any, where: str, calls: Calls) -> Any:
    """Return the value that a table describes, with its calls made.

    Args:
        value: Plain types, as a TOML file or `as_table` gives them.
        where: What the error calls the value, such as `"codec"`.
        calls: Class name → class, of all that may be called.

    Raises:
        ConfigError: A table is no call, names an unknown class or argument, or the call is refused.
    """
    if isinstance(value, list):
        return tuple(from_table(item, where, calls) for item in value)
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ConfigError(f"{where}: {value} is no call; write {{ Name = {{ argument = … }} }}")
    ((name, arguments),) = value.items()
    check_known(name, calls, where)
    if not isinstance(arguments, dict):
        raise ConfigError(f"{where}.{name} is {arguments!r}; arguments have names: {{ {name} = {{ argument = … }} }}")
    call = calls[name]
    check_keys(arguments, inspect.signature(call).parameters, f"{where}.{name}")
    try:
        return call(**{key: from_table(item, f"{where}.{name}.{key}", calls) for key, item in arguments.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}.{name}: {error}") from error


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse the first given name that is not known there. Raises ConfigError."""
    known = list(known)
    for key in given:
        check_known(key, known, where)


def check_known(key: str, known: Iterable[str], where: str) -> None:
    """Refuse an unknown name, and give the known one that looks most like it.

    Raises:
        ConfigError: The name is not known.
    """
    names = sorted(known)
    if not names:
        raise ConfigError(f"{where} has {key!r}, where nothing has a name")
    if key not in names:
        close = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
        raise ConfigError(
            f"{where} has {key!r}, which is unknown; the nearest is {close[0]!r}. Known: {', '.join(names)}"
        )

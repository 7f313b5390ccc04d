"""Conversion of parts to tables of plain types and back: `Clip(norm=1.0)` is `{"Clip": {"norm": 1.0}}`.

One form serves TOML files, results and fingerprints.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any

from dpcomp.core.errors import ConfigError

STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
Calls = Mapping[str, Callable[..., Any]]


def as_table(value: Any, where: str) -> Any:
    """Convert a value to plain types: a frozen dataclass becomes {class name: {field: value}}, a tuple a list.

    The table is the part's description in results and in the fingerprint that both ends compare, so it must be the same
    in every process; numbers of other libraries become Python's.

    Args:
        value: None, a bool, a number, a string, a tuple, or a frozen dataclass whose fields are such values.
        where: The place of the value that errors give, such as `"codec.sparsify"`.

    Returns:
        None, a bool, a number, a string, a list, or a dict with one key.

    Raises:
        TypeError: The value is, or holds, anything else. The description of such a part would contain its address in
            memory, and two processes would take it for two different parts. Or a part holds a list, which can change.

    Examples:
        >>> from dpcomp import Clip
        >>> as_table((Clip(1.0), None), "mechanism")
        [{'Clip': {'norm': 1.0}}, None]
    """
    return _as_table(value, where, omit_none=False)


def as_toml_table(value: Any, where: str) -> Any:
    """Convert a value as `as_table` does, and leave out fields that are None, for which TOML has no value.

    Args:
        value: As for `as_table`.
        where: As for `as_table`.

    Returns:
        As for `as_table`, without None.

    Raises:
        TypeError: As `as_table` does.
        ValueError: A field is None, and its default is not: read back, the field would have the default.
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
        if not item.init:  # computed from the others
            continue
        content, place = getattr(value, item.name), f"{where}.{name}.{item.name}"
        if content is None and omit_none:
            if item.default is not None:
                raise ValueError(
                    f"{place} is None, which TOML cannot express, and its default is another value, which a reader of "
                    "the file would get: make None the default, or give a value"
                )
            continue
        _refuse_lists(content, place)
        table[item.name] = _as_table(content, place, omit_none=omit_none)
    return {name: table}


def _refuse_lists(content: Any, where: str) -> None:
    if isinstance(content, list):
        raise TypeError(f"{where} is a list, which can change after the part was described: give a tuple")
    if isinstance(content, tuple):
        for item in content:
            _refuse_lists(item, where)


def check_frozen(value: Any, where: str) -> None:
    """Check that a part is an instance of a frozen dataclass, whose description cannot change after it was taken.

    Args:
        value: The part.
        where: The place of the part that the error gives, such as `"codec.sparsify"`.

    Raises:
        TypeError: It is not; the message says what to write above its class.
    """
    frozen = is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    if not frozen:
        raise TypeError(
            f"{where} is {value!r}: a part is a frozen dataclass whose fields are numbers, strings, tuples or such "
            "parts, so that every process describes it alike. Write @dataclass(frozen=True) above its class, and pass "
            "an instance"
        )


def from_table(value: Any, where: str, calls: Calls) -> Any:
    """Make the value that a table describes: the inverse of `as_table`.

    Only the classes in `calls` are called, by the names of their arguments; nothing is imported by name.

    Args:
        value: Plain types, from a TOML file or from `as_table`.
        where: The place of the value that errors give, such as `"codec"`.
        calls: A mapping of class names to the classes that may be called.

    Returns:
        The value; a list becomes a tuple.

    Raises:
        ConfigError: A table is not of the form {class name: {argument: value}}, a class or an argument is unknown, or
            the class refuses its arguments.

    Examples:
        >>> from dpcomp import Clip
        >>> from_table([{"Clip": {"norm": 1.0}}], "mechanism", {"Clip": Clip})
        (Clip(norm=1.0),)
    """
    if isinstance(value, list):
        return tuple(from_table(item, where, calls) for item in value)
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ConfigError(f"{where}: {value} is no call of one class; write {{ Name = {{ argument = … }} }}")
    ((name, arguments),) = value.items()
    check_known(name, calls, where)
    if not isinstance(arguments, dict):
        raise ConfigError(f"{where}.{name} is {arguments!r}; arguments have names: {{ {name} = {{ argument = … }} }}")
    call = calls[name]
    taken = inspect.signature(call).parameters
    check_keys(arguments, taken, f"{where}.{name}")
    for key, parameter in taken.items():
        if parameter.default is parameter.empty and parameter.kind not in STARRED and key not in arguments:
            raise ConfigError(f"{where}.{name} has no {key!r}, which it needs: write {{ {name} = {{ {key} = … }} }}")
    try:
        return call(**{key: from_table(item, f"{where}.{name}.{key}", calls) for key, item in arguments.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}.{name}: {error}") from error


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Check that all names are known, and refuse the first that is not.

    Args:
        given: The names to check, such as the keys of a table.
        known: The names that are allowed there.
        where: The place that the error gives.

    Raises:
        ConfigError: A name is unknown; the message gives the most similar known one.
    """
    known = list(known)
    for key in given:
        check_known(key, known, where)


def check_known(key: str, known: Iterable[str], where: str) -> None:
    """Check that a name is known.

    Args:
        key: The name to check.
        known: The names that are allowed there.
        where: The place that the error gives.

    Raises:
        ConfigError: The name is unknown; the message gives the most similar known one.
    """
    names = sorted(known)
    if not names:
        raise ConfigError(f"{where} has {key!r}, but it takes no arguments: leave it out")
    if key not in names:
        close = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
        raise ConfigError(
            f"{where} has {key!r}, which is unknown; the nearest is {close[0]!r}. Known: {', '.join(names)}"
        )

"""Checks of arguments; their errors give the name, the value, and what is allowed."""

from numbers import Integral, Real
from typing import Generic, Protocol


def whole_number(value: object, name: str, *, least: int | None = None, most: int | None = None) -> int:
    """Check that a value is a whole number within bounds, and return it as Python's int.

    Integers of NumPy and other libraries are accepted. A bool and a float are refused, even `3.0`: either is more
    often a mistake than meant.

    Args:
        value: The argument to check.
        name: What the error calls it, such as `"simulate(rounds)"`.
        least: The smallest number allowed; None for no bound.
        most: The largest number allowed; None for no bound.

    Returns:
        The number as Python's int.

    Raises:
        TypeError: The value is not a whole number.
        ValueError: The value lies outside the bounds.

    Examples:
        >>> whole_number(3, "rounds", least=1)
        3
    """
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise TypeError(f"{name} is {value!r}: give a whole number{_bounds(least, most)}")
    number = int(value)
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{name} is {number}: give a whole number{_bounds(least, most)}")
    return number


def real_number(value: object, name: str, allowed: str) -> float:
    """Check that a value is a real number, and return it as Python's float; bounds are the caller's.

    Numbers of NumPy are accepted. A bool, a string and an array are refused.

    Args:
        value: The argument to check.
        name: What the error calls it, such as `"Clip(norm)"`.
        allowed: What it must be, such as `"a finite number above 0"`.

    Returns:
        The number as Python's float.

    Raises:
        TypeError: The value is not a real number.

    Examples:
        >>> real_number(3, "Clip(norm)", "a finite number above 0")
        3.0
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}: give {allowed}")
    return float(value)


def missing_members(value: object, protocol: type) -> list[str]:
    """Return the names of a protocol's methods and attributes that a value lacks, in the protocol's order.

    Examples:
        >>> from dpcomp.codec.entropy.coder import Metered
        >>> missing_members(3, Metered)
        ['meter']
    """
    own = [base for base in protocol.__mro__ if base not in (Protocol, Generic, object)]
    names = dict.fromkeys(name for base in own for name in (*vars(base).get("__annotations__", {}), *vars(base)))
    return [name for name in names if not name.startswith("_") and not hasattr(value, name)]


def check_type(value: object, expected: type | tuple[type, ...], message: str) -> None:
    """Refuse a value of another type than a signature says; for arguments that callers without a type checker give.

    Args:
        value: What a caller gave.
        expected: The type, or the types, that are allowed.
        message: The error's message.

    Raises:
        TypeError: The value has another type.
    """
    if not isinstance(value, expected):
        raise TypeError(message)


def _bounds(least: int | None, most: int | None) -> str:
    if least is None:
        return "" if most is None else f" up to {most:,}"
    return f" from {least:,} on" if most is None else f" from {least:,} to {most:,}"

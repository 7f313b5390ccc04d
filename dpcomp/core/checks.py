"""Checks of arguments; their errors give the name, the value, and what is allowed."""

from numbers import Integral


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
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}: give a whole number{_bounds(least, most)}")
    number = int(value)
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{name} is {number}: give a whole number{_bounds(least, most)}")
    return number


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

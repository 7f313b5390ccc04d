"""Values as text that fits a terminal: calls without defaults, columns, small curves."""

import math
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from typing import Any

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 100  # of a terminal
MOST_POINTS = 48  # of a curve
MOST_ITEMS, MOST_BYTES = 8, 16  # that an outline holds


def short_call(part: Any) -> str:
    """Return the call that makes a frozen dataclass, without the arguments that have their default.

    Args:
        part: An instance of a dataclass whose fields are its arguments.
    """
    return f"{type(part).__name__}({', '.join(f'{name}={value!r}' for name, value in given_fields(part))})"


def given_fields(part: Any) -> list[tuple[str, Any]]:
    """Return the fields of a dataclass that have another value than their default, in order, with their values."""
    return [
        (item.name, value)
        for item in fields(part)
        if item.init and item.repr and not _is_default(item, value := getattr(part, item.name))
    ]


def with_comments(lines: Sequence[tuple[str, str]]) -> str:
    """Return lines of code with their comments in one column.

    Args:
        lines: Each line of code, with its comment or "".
    """
    width = max(len(code) for code, _ in lines)
    return "\n".join(f"{code:<{width}}  # {comment}" if comment else code for code, comment in lines)


def without_values(value: object, coordinates: int) -> str:
    """Return the class of a private value and the size of its vectors: not its values, and not how many there are.

    Args:
        value: The value.
        coordinates: d, of a whole vector.
    """
    return f"{type(value).__name__}(<private>, of {coordinates:,} coordinates)"


def outline(value: Any) -> str:
    """Return a dataclass as the call of its class, with the type and shape of arrays in place of their values.

    Args:
        value: An instance of a dataclass.
    """
    parts = (f"{item.name}={_outlined(getattr(value, item.name))}" for item in fields(value) if item.repr)
    return f"{type(value).__name__}({', '.join(parts)})"


def _outlined(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"<{value.dtype} {tuple(value.shape)}>"
    if isinstance(value, tuple) and len(value) > MOST_ITEMS:
        return f"<{len(value):,} items>"
    if isinstance(value, tuple):
        return f"({', '.join(map(_outlined, value))})"
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) and len(value) > MOST_BYTES else repr(value)


def _is_default(item: Field[Any], value: Any) -> bool:
    if item.default is not MISSING:
        return type(value) is type(item.default) and value == item.default
    return item.default_factory is not MISSING and value == item.default_factory()


def sparkline(values: Sequence[float], most: int = MOST_POINTS) -> str:
    """Return a curve as one line of bars, from the lowest value to the highest; "" if no value is finite.

    Args:
        values: The values in their order; those that are not finite are left out.
        most: The length of the line, above which neighbours are averaged.
    """
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(most, len(finite))
    ends = [len(finite) * place // count for place in range(count + 1)]
    points = [sum(finite[low:high]) / (high - low) for low, high in pairwise(ends)]
    least = min(points)
    span = max(points) - least
    if not 0 < span < math.inf:
        return BARS[3] * count
    return "".join(BARS[round((point - least) / span * (len(BARS) - 1))] for point in points)


def number_text(value: float) -> str:
    """Return a number as a table shows it: whole ones with separators, others with four digits."""
    if isinstance(value, float) and not math.isfinite(value):
        return "∞" if value == math.inf else str(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of text as lines with right-aligned columns.

    Args:
        rows: The cells; all rows have the same number of them.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def plain(words: str) -> str:
    """Return text without control characters: what a file or a message holds does not steer a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)


def shortened(words: str, most: int = COLUMNS) -> str:
    """Return text of at most so many letters, cut in the middle."""
    if len(words) <= most:
        return words
    kept = most - 3
    return f"{words[: kept - kept // 3]}...{words[len(words) - kept // 3 :]}"

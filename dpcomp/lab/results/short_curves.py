"""Short forms of the curves in a file of results: values that repeat, or that count up, are written once."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

RUNS, RANGE = "runs", "range"


def shorten(curve: Sequence[Any]) -> list[Any] | dict[str, Any]:
    """Write a curve as the shortest of three forms, which `lengthen` reads.

    The forms are the list itself; `{"range": [first, last]}` of whole numbers that grow by one; and `{"runs": [value,
    count, value, count, …]}` of values that follow each other `count` times.

    Args:
        curve: JSON values, one a round.

    Examples:
        >>> shorten([1, 2, 3, 4, 5, 6, 7, 8])
        {'range': [1, 8]}
        >>> shorten([None, None, None, None, None, None, 0.5])
        {'runs': [None, 6, 0.5, 1]}
        >>> shorten([0.1, 0.2])
        [0.1, 0.2]
    """
    plain = list(curve)
    forms: list[list[Any] | dict[str, Any]] = [plain]
    if plain and all(type(value) is int for value in plain) and plain == [*range(plain[0], plain[0] + len(plain))]:
        forms.append({RANGE: [plain[0], plain[-1]]})
    # Values are one where their texts are: 1, 1.0 and true are equal, and not the same.
    runs = [list(same) for _, same in groupby(plain, key=json.dumps)]
    forms.append({RUNS: [part for same in runs for part in (same[0], len(same))]})
    return min(forms, key=lambda form: len(json.dumps(form, separators=(",", ":"))))


def lengthen(form: Any) -> list[Any]:
    """Return the curve that `shorten` wrote.

    Raises:
        ValueError: It is none of the three forms.
    """
    match form:
        case list():
            return form
        case {"range": [int(first), int(last)], **rest} if not rest:
            return [*range(first, last + 1)]
        case {"runs": [*parts], **rest} if not rest and len(parts) % 2 == 0:
            counts = parts[1::2]
            if all(type(count) is int and count > 0 for count in counts):
                return [value for value, count in zip(parts[::2], counts, strict=True) for _ in range(count)]
    raise ValueError(f"{str(form)[:60]} is no curve")


def shorten_all(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report with each of its curves in its shortest form."""
    if "curves" not in report:
        return dict(report)
    return {**report, "curves": {name: shorten(curve) for name, curve in report["curves"].items()}}


def lengthen_all(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report with its curves as lists.

    Raises:
        ValueError: Its curves are no mapping of curves.
    """
    if "curves" not in report:
        return dict(report)
    if not isinstance(report["curves"], dict):
        raise ValueError("the curves of a report are a mapping of names to curves")
    return {**report, "curves": {name: lengthen(form) for name, form in report["curves"].items()}}

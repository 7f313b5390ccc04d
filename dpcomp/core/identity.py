"""Identity: lists the objects that a value is made of, so that a change is seen without comparing contents."""

from collections import deque
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cached_property
from operator import is_
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np

# What never changes: the same object has the same contents.
UNCHANGING = (bool, int, float, complex, str, bytes, type(None), type, FunctionType, BuiltinFunctionType, ModuleType)


def same_objects(now: list[Any] | None, before: list[Any] | None) -> bool:
    """Return whether two lists hold the same objects; False if either is None."""
    return now is not None and before is not None and len(now) == len(before) and all(map(is_, now, before))


def objects_of(value: Any, found: list[Any]) -> bool:
    """Add the objects that a value is made of to a list: of tuples, lists, sets, mappings and frozen dataclasses.

    Args:
        value: The value.
        found: The list to add to. It holds the objects, so that no later object has the identity of one of them.

    Returns:
        Whether the list says all: False if the value holds an object that could change and stay the same object.
    """
    found.append(value)
    if isinstance(value, (*UNCHANGING, np.generic)):
        return not isinstance(value, FunctionType) or not vars(value)
    if isinstance(value, (tuple, list, deque, set, frozenset)):
        return _all_of(value, found)
    if isinstance(value, dict):
        return _all_of(value, found) and _all_of(value.values(), found)
    if is_dataclass(value) and type(value).__dataclass_params__.frozen:  # pyright: ignore[reportAttributeAccessIssue]
        held = {
            key: part
            for key, part in getattr(value, "__dict__", {}).items()
            if not isinstance(getattr(type(value), key, None), cached_property)  # an echo of the fields
        }
        return bool(held or not fields(value)) and _all_of(held, found) and _all_of(held.values(), found)
    return False


def _all_of(values: Iterable[Any], found: list[Any]) -> bool:
    found.append(Ellipsis)  # so that values that move from one container to the next show
    return all(objects_of(part, found) for part in values)

"""Identity: notes the objects that values are made of, so that a change is seen without comparing contents."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cached_property
from itertools import chain
from operator import is_, itemgetter
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np

# What never changes: the same object has the same contents, but for the attributes of functions.
UNCHANGING = (bool, int, float, complex, str, bytes, type(None), type, FunctionType, BuiltinFunctionType, ModuleType)


class Dictionary:
    """A dictionary whose values are watched.

    Args:
        held: The dictionary.
        keys: Whose values are watched, beside which no key may come or go; None for all.
        at_times: Keys that may come and go.
        whole: Whether other keys are refused; False where only the values of `keys` matter.
    """

    def __init__(
        self,
        held: Mapping[Any, Any],
        keys: Iterable[Any] | None = None,
        at_times: Iterable[Any] = (),
        *,
        whole: bool = True,
    ):
        self.held, self.at_times, self.whole = held, tuple(at_times), whole
        self.keys = tuple(held if keys is None else keys)
        # `itemgetter` of a single key gives the value alone, and of none is refused: so the first comes twice.
        self._get = itemgetter(*self.keys, self.keys[0]) if self.keys else None

    def values(self) -> Sequence[Any]:
        """Return the watched values.

        Raises:
            KeyError: A key is gone.
        """
        return self._get(self.held) if self._get else ()

    def length(self) -> int:
        """Return the number of keys, without those that may come and go."""
        return len(self.held) - sum(map(self.held.__contains__, self.at_times))


class Dictionaries:
    """The values of dictionaries as they are now: many at once, since a training step looks at them several times.

    Args:
        parts: The dictionaries.
    """

    def __init__(self, parts: Sequence[Dictionary]):
        self._parts = parts
        self._fixed = [part.held for part in parts if part.whole and not part.at_times]
        self._varying = [part for part in parts if part.whole and part.at_times]
        self._values, self._lengths = self._values_now(), self._lengths_now()

    def same(self) -> bool:
        """Return whether they have the same keys, and the same objects as values."""
        try:
            now = self._values_now()
        except KeyError:
            return False
        return all(map(is_, now, self._values)) and self._lengths_now() == self._lengths

    def _values_now(self) -> list[Any]:
        return list(chain.from_iterable(map(Dictionary.values, self._parts)))

    def _lengths_now(self) -> list[int]:
        return [*map(len, self._fixed), *map(Dictionary.length, self._varying)]


class Composition:
    """The objects that values are made of now: of tuples, lists, sets, mappings and frozen dataclasses.

    It holds them, so that no later object has the identity of one of them.

    Args:
        values: The values.

    Attributes:
        tells_all: Whether the objects say all: False if one could change and stay the same object.
    """

    def __init__(self, values: Iterable[Any]):
        self._kept = list(values)
        self._noted: list[Dictionary] = []
        self._groups: list[Any] = []  # lists, deques and sets, whose members may be exchanged
        self._seen: set[int] = set()  # by identity, for what refers to itself
        self.tells_all = self._note_all(self._kept)
        self._dictionaries = Dictionaries(self._noted)
        self._members, self._counts = self._members_now(), list(map(len, self._groups))

    def same(self) -> bool:
        """Return whether nothing changed: False also where that is not known."""
        return (
            self.tells_all
            and list(map(len, self._groups)) == self._counts
            and all(map(is_, self._members_now(), self._members))
            and self._dictionaries.same()
        )

    def _members_now(self) -> list[Any]:
        return list(chain.from_iterable(self._groups))

    def _note_all(self, values: Iterable[Any]) -> bool:
        return all(self._note(part) for part in values)

    def _note(self, value: Any) -> bool:
        """Note what can change of a value, and return whether that is all of it."""
        if isinstance(value, FunctionType):
            self._noted.append(Dictionary(vars(value)))
            return not vars(value)
        if isinstance(value, (*UNCHANGING, np.generic)) or id(value) in self._seen:
            return True
        self._seen.add(id(value))
        if isinstance(value, (tuple, frozenset)):
            return self._note_all(value)
        if isinstance(value, (list, deque, set)):
            self._groups.append(value)
            return self._note_all(value)
        if isinstance(value, dict):
            self._noted.append(Dictionary(value))
            return self._note_all(value) and self._note_all(value.values())
        if is_dataclass(value) and type(value).__dataclass_params__.frozen:  # pyright: ignore[reportAttributeAccessIssue]
            own, kind = getattr(value, "__dict__", {}), type(value)
            # What a `cached_property` keeps is an echo of the fields.
            echoes = {name for name in dir(kind) if isinstance(getattr(kind, name, None), cached_property)}
            self._noted.append(Dictionary(own, own.keys() - echoes, echoes))
            return own.keys() >= kind.__dataclass_fields__.keys() and self._note_all(
                own[name] for name in self._noted[-1].keys
            )
        return False

"""Identity: notes the objects that values are made of, so that a change is seen without comparing contents."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache, cached_property
from inspect import getattr_static
from itertools import chain
from operator import attrgetter, call, is_, itemgetter
from types import BuiltinFunctionType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
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

    @property
    def getter(self) -> Callable[[Mapping[Any, Any]], Sequence[Any]]:
        """What returns the watched values of the dictionary, and raises a KeyError where a key is gone."""
        # `itemgetter` of a single key gives the value alone, and of none is refused: so the first comes twice.
        return itemgetter(*self.keys, self.keys[0])

    def length(self) -> int:
        """Return the number of keys, without those that may come and go."""
        return len(self.held) - sum(map(self.held.__contains__, self.at_times))


class Dictionaries:
    """The values of dictionaries as they are now: many at once, since a training step looks at them several times.

    All of them are compared by a few functions of C, without a call of Python for each.

    Args:
        parts: The dictionaries.
    """

    def __init__(self, parts: Sequence[Dictionary]):
        watched = [part for part in parts if part.keys]
        self._held, self._getters = [part.held for part in watched], [part.getter for part in watched]
        self._fixed = [part.held for part in parts if part.whole and not part.at_times]
        self._varying = [part for part in parts if part.whole and part.at_times]
        self._varying_held = [part.held for part in self._varying]
        self._values, self._lengths = self._values_now(), list(map(len, self._fixed))
        self._keys, self._counts = list(map(list, self._varying_held)), self._counts_now()

    def same(self) -> bool:
        """Return whether they have the same keys, and the same objects as values."""
        try:
            now = self._values_now()
        except KeyError:
            return False
        return (
            all(map(is_, now, self._values))
            and list(map(len, self._fixed)) == self._lengths
            # As a rule none of the keys that may come and go did.
            and (list(map(list, self._varying_held)) == self._keys or self._counts_now() == self._counts)
        )

    def _values_now(self) -> list[Any]:
        return list(chain.from_iterable(map(call, self._getters, self._held)))  # pyright: ignore[reportArgumentType]

    def _counts_now(self) -> list[int]:
        return list(map(Dictionary.length, self._varying))


_defaults = attrgetter("__defaults__", "__kwdefaults__")  # all that `behind` finds of a function without a closure


class Composition:
    """The objects that values are made of now: of tuples, lists, sets, mappings, functions and frozen dataclasses.

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
        self._plain: list[FunctionType] = []  # functions that read nothing around them but their defaults
        self._functions: list[Any] = []  # the other ones that read something around them
        self._seen = set[Any]()  # by identity, for what refers to itself
        self.tells_all = self._note_all(self._kept)
        self._dictionaries = Dictionaries(self._noted)
        self._members, self._counts = self._members_now(), list(map(len, self._groups))
        self._behind, self._defaults = self._behind_now(), self._defaults_now()

    def same(self) -> bool:
        """Return whether nothing changed: False also where that is not known."""
        return (
            self.tells_all
            and list(map(len, self._groups)) == self._counts
            and all(map(is_, self._members_now(), self._members))
            and self._dictionaries.same()
            and all(map(is_, self._defaults_now(), self._defaults))
            and self._same_behind()
        )

    def _defaults_now(self) -> list[Any]:
        return list(chain.from_iterable(map(_defaults, self._plain)))

    def _same_behind(self) -> bool:
        if not self._functions:
            return True
        now = self._behind_now()
        return len(now) == len(self._behind) and all(map(is_, now, self._behind))

    def _behind_now(self) -> list[Any]:
        return [part for function in self._functions for _, part in behind(function)]

    def _members_now(self) -> list[Any]:
        return list(chain.from_iterable(self._groups))

    def _note_all(self, values: Iterable[Any]) -> bool:
        return all(self._note(part) for part in values)

    def _note_function(self, value: Any) -> bool:
        function = value.__func__ if isinstance(value, MethodType) else value
        place = id(getattr(value, "__self__", None)), id(function)
        if place in self._seen:
            return True
        self._seen.add(place)
        own = getattr(function, "__dict__", {})
        self._noted.append(Dictionary(own))
        if isinstance(value, FunctionType) and value.__closure__ is None:
            self._plain.append(value)
            self._noted += [Dictionary(value.__kwdefaults__)] if value.__kwdefaults__ is not None else []
        elif any(True for _ in behind(value)):
            self._functions.append(value)
        return self._note_all([*own.values(), *(part for _, part in behind(value))])

    def _note(self, value: Any) -> bool:
        """Note what can change of a value, and return whether that is all of it."""
        if isinstance(value, (FunctionType, MethodType)):
            return self._note_function(value)
        if isinstance(value, (*UNCHANGING, np.generic)) or id(value) in self._seen:
            return True
        self._seen.add(id(value))
        if isinstance(value, (tuple, frozenset, list, deque, set, dict)) and hasattr(value, "__dict__"):
            self._noted.append(Dictionary(vars(value)))  # of a class that inherits from one of these
            if not self._note_all(vars(value).values()):
                return False
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


_DATA = (
    *(bool, int, float, complex, str, bytes, type(None), np.generic, np.ndarray),
    *(tuple, list, deque, set, frozenset, dict),
)
_ABSENT = object()


def behind(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a function may read beside its arguments and globals, by name.

    These are the variables of functions around it, its defaults, and, of an object whose method it is or that such a
    variable holds, the attributes that its code or the object's methods that it calls name. Names that are made while
    it runs, as by `getattr`, are not seen.

    Args:
        function: A function or a method; anything else has nothing behind it.
    """
    if isinstance(function, MethodType):
        yield from _attributes_named(function.__self__, function.__func__)
        function = function.__func__
    if not isinstance(function, FunctionType):
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            held = cell.cell_contents
        except ValueError:  # not set yet
            continue
        if hasattr(held, "__dict__") and not callable(held) and not isinstance(held, (*_DATA, ModuleType)):
            yield from ((f"{of} of variable {name!r}", part) for of, part in _attributes_named(held, function))
        else:
            yield f"variable {name!r}", held
    for number, default in enumerate(function.__defaults__ or ()):
        yield f"default {number}", default
    for name, default in (function.__kwdefaults__ or {}).items():
        yield f"default {name!r}", default


def _attributes_named(owner: Any, function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an object that a function names, or one of its methods that the function names."""
    own = getattr(owner, "__dict__", {})
    functions, seen = [function], {function}
    names: dict[str, None] = {}
    while functions:
        code = getattr(functions.pop(), "__code__", None)
        for name in () if code is None else _names(code):
            of_class = getattr_static(type(owner), name, None)
            of_class = getattr(of_class, "fget", getattr(of_class, "__func__", of_class))
            if name in own:
                names[name] = None
            elif isinstance(of_class, FunctionType):
                if of_class not in seen:
                    seen.add(of_class)
                    functions.append(of_class)
            elif isinstance(of_class, (MemberDescriptorType, *_DATA)):
                names[name] = None
    for name in names:
        if (part := getattr(owner, name, _ABSENT)) is not _ABSENT:
            yield f"attribute {name!r}", part


@cache
def _names(code: CodeType) -> tuple[str, ...]:
    """Return the names of globals and attributes in the code of a function, and of functions inside of it."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))

"""Hidden state: what objects of compiled code hold beside their attributes, in a form that can be compared."""

import io
import logging
import pickle
import sys
import types
import weakref
from collections.abc import Container
from functools import cache
from inspect import getattr_static
from threading import Lock, RLock
from typing import Any

import torch

# Without a state, or with one that nothing can change.
_FIXED = (
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    property,
    staticmethod,
    classmethod,
)
_FIXED += (types.GetSetDescriptorType, types.MemberDescriptorType, types.MethodDescriptorType, types.GenericAlias)
_FIXED += (types.WrapperDescriptorType, types.ClassMethodDescriptorType, types.UnionType, weakref.ref)
_FIXED += (types.CodeType,)
_POINTER = object.__basicsize__ // 2
_OF_LOGGERS = vars(logging.Logger("")).keys()
_CACHED = ("cached_property", "lazy_property")  # kinds of properties that keep what they computed


class Unreadable:
    """Stands for an object whose state cannot be read.

    Args:
        value: The object.
    """

    def __init__(self, value: Any):
        self.kind = type(value).__name__


def hidden_state(value: Any, known: Container[int] = ()) -> list[Any]:
    """Return what an object holds beside its attributes: nothing for one of a class that is written in Python.

    Args:
        value: An object.
        known: Identities of modules that are looked at by themselves, to which an object may refer back.

    Returns:
        Values that are equal as long as nothing in the object changed; an `Unreadable` where there are none.
    """
    if isinstance(value, _FIXED) or not _has_state(type(value)):
        return []
    if isinstance(value, torch.Generator):
        return [value.get_state().numpy().tobytes()]
    if isinstance(value, (type(Lock()), type(RLock()))):
        return [repr(value)]
    if hasattr(value, "cache_info"):  # of functools.lru_cache
        return [tuple(value.cache_info())]
    try:
        written = io.BytesIO()
        _Pickler(written, known).dump(value)
        return [written.getvalue()]
    except Exception:
        return [Unreadable(value)]


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, known: Container[int]):
        super().__init__(file)
        self._known = known

    def persistent_id(self, obj: Any) -> int | None:
        return id(obj) if isinstance(obj, torch.nn.Module) and id(obj) in self._known else None


def state_of_logger(logger: logging.Logger) -> list[Any]:
    """Return what of a logger decides what it does, and what it was given: handlers, caches and parents are its own."""
    given = {key: value for key, value in vars(logger).items() if key not in _OF_LOGGERS}
    return [logger.name, logger.level, logger.disabled, *([given] if given else [])]


def is_echo(kind: type, key: str) -> bool:
    """Return whether an attribute keeps what a property computed from others, so that it may come at any time."""
    return type(getattr_static(kind, key, None)).__name__ in _CACHED


@cache
def has_echoes(kind: type) -> bool:
    """Return whether a class has properties whose values its objects keep."""
    return any(type(value).__name__ in _CACHED for each in kind.__mro__ for value in vars(each).values())


def computed_anew(owner: Any, key: str) -> Any:
    """Return what a cached property gives now, without keeping it."""
    found = getattr_static(type(owner), key)
    return (found.func if hasattr(found, "func") else found.wrapped)(owner)


def is_compiled_schema(value: Any) -> bool:
    """Return whether an object is one with which pydantic checks or writes settings, and which nothing can change."""
    core: Any = sys.modules.get("pydantic_core")
    return core is not None and type(value) in (core.SchemaValidator, core.SchemaSerializer)


def slots_of(kind: type) -> tuple[str, ...]:
    """Return the names of the attributes that a class keeps outside of `__dict__`, as they are stored."""
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    owner = kind.__name__.lstrip("_")
    return tuple(
        f"_{owner}{name}" if owner and name.startswith("__") and not name.endswith("__") else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    )


def is_plain(kind: type) -> bool:
    """Return whether the attributes of an object of a class, in its dictionary and its slots, are all that it holds."""
    return not _has_state(kind)


@cache
def _has_state(kind: type) -> bool:
    """Return whether objects of a class have more in memory than their attributes: then compiled code keeps it."""
    if kind.__module__ == "torch._ops":  # operations
        return False
    slots = sum(len(slots_of(each)) for each in kind.__mro__)
    own = slots + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return bool(kind.__itemsize__) or kind.__basicsize__ > object.__basicsize__ + own * _POINTER

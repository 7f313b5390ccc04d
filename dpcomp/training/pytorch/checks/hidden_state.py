"""Hidden state: what objects of compiled code hold beside their attributes, in a form that can be compared."""

import io
import logging
import pickle
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
    """Return what of a logger decides what it does: handlers, caches and parents are the script's."""
    return [logger.name, logger.level, logger.disabled]


def is_echo(kind: type, key: str) -> bool:
    """Return whether an attribute keeps what a property computed from others, so that it may come at any time."""
    return type(getattr_static(kind, key, None)).__name__ in ("cached_property", "lazy_property")


def slots_of(kind: type) -> tuple[str, ...]:
    """Return the names of the attributes that a class keeps outside of `__dict__`."""
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


@cache
def is_plain(kind: type) -> bool:
    """Return whether the attributes of an object of a class are all that it holds, and are in its dictionary."""
    return kind.__dictoffset__ != 0 and not any(map(slots_of, kind.__mro__)) and not _has_state(kind)


@cache
def _has_state(kind: type) -> bool:
    """Return whether objects of a class have more in memory than their attributes: then compiled code keeps it."""
    if kind.__module__ == "torch._ops":  # operations
        return False
    slots = sum(len(slots_of(each)) for each in kind.__mro__)
    own = slots + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return bool(kind.__itemsize__) or kind.__basicsize__ > object.__basicsize__ + own * _POINTER

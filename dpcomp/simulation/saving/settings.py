"""Settings: a call of `simulate` in plain values, so that another call in its folder is told apart."""

import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
from array_api_compat import is_torch_array

# Their arithmetic decides the last bits of a run; those that are not imported decide nothing.
LIBRARIES = ("dpcomp", "numpy", "scipy", "torch", "jax")
MOVED = {  # modules by what they were called, so that folders from before are taken up
    "dpcomp.pipeline.pipeline": "dpcomp.pipeline",
    "dpcomp.federated.server.cohort": "dpcomp.federated.cohort",
    "dpcomp.federated.server.late": "dpcomp.federated.late",
    "dpcomp.federated.server.optimizers": "dpcomp.federated.server_optimizers",
}
MOST_NAMED = 3  # differences that an error names


def described(value: Any) -> Any:
    """Return a value in types of JSON, the same in every process.

    A dataclass is described by its class and fields, an array or tensor by its digest, a function by its name. Of any
    other object, and of a list that holds such objects and may have grown since, the class alone is described.

    Args:
        value: An argument of `simulate`.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (Integral, Real)):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, (tuple, list)):
        items = cast("list[Any]", value)
        told = [described(item) for item in items]
        # An empty one too, which may be filled as the run goes on.
        opaque = isinstance(value, list) and (not told or any(isinstance(each, _ClassName) for each in told))
        return _name(list) if opaque else told
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, np.ndarray) or is_torch_array(value):
        return _described_array(value)
    if isinstance(value, functools.partial):
        return {"partial": described(value.func), "args": described(value.args), "keywords": described(value.keywords)}
    if is_dataclass(value) and not isinstance(value, type):
        told = {item.name: described(getattr(value, item.name)) for item in fields(value) if item.init and item.compare}
        return {_name(type(value)): told}
    return _name(value) if hasattr(value, "__qualname__") else _ClassName(_name(type(value)))


def versions() -> dict[str, str]:
    """Return the versions of the imported libraries whose arithmetic a run depends on, by name."""
    return {name: version(name) for name in LIBRARIES if name in sys.modules}


def differences(saved: Any, given: Any) -> str:
    """Return what two descriptions differ in, in words; empty where they are the same.

    Args:
        saved: The description of an earlier call.
        given: That of this one.
    """
    found = list(_differences(saved, given, ""))
    more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return "; ".join(found[:MOST_NAMED]) + more


def _differences(saved: Any, given: Any, place: str) -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(given, dict):
        one, other = cast("dict[str, Any]", saved), cast("dict[str, Any]", given)
        if one.keys() == other.keys():
            for key in one:
                name = key.rpartition(".")[2]  # of a class, without its module
                yield from _differences(one[key], other[key], f"{place}.{name}" if place else name)
            return
    if isinstance(saved, list) and isinstance(given, list):
        first, second = cast("list[Any]", saved), cast("list[Any]", given)
        if len(first) == len(second):
            for number, (one, other) in enumerate(zip(first, second, strict=True)):
                yield from _differences(one, other, f"{place}[{number}]")
            return
    if saved != given or type(saved) is not type(given):
        yield f"{place} was {_short(saved)} and is {_short(given)}"


def _described_array(value: Any) -> Any:
    array = np.ascontiguousarray(value.detach().cpu().numpy() if is_torch_array(value) else value)
    if array.dtype.hasobject:
        return described(array.tolist())
    digest = hashlib.blake2b(array.view(np.uint8).data if array.size else b"", digest_size=8).hexdigest()
    return f"{array.dtype} {list(np.shape(value))} {digest}"


class _ClassName(str):
    """The name of the class of an object of which nothing else is described."""


def _name(value: Any) -> str:
    return f"{MOVED.get(value.__module__, value.__module__)}.{value.__qualname__}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."

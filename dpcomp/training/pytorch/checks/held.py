"""Held: what a model and its loss keep between passes, beside the parameters that the optimiser trains."""

import functools
import logging
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AnySet
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpcomp.core.identity import behind
from dpcomp.training.pytorch.checks.equal_values import equal_values
from dpcomp.training.pytorch.checks.hidden_state import hidden_state, is_echo, slots_of, state_of_logger

# Of each module: torch's own entries, and what Opacus keeps on it between passes.
OF_TORCH = frozenset(vars(nn.Module())) | {
    "_flat_weights",
    "_flat_weight_refs",
    "autograd_grad_sample_hooks",
    "max_batch_len",
}
OF_ENGINES = frozenset({"grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample"})  # on parameters
VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_METHODS = (types.FunctionType, staticmethod, classmethod, property, types.ModuleType, types.BuiltinFunctionType)
_METHODS += (types.GetSetDescriptorType, types.MemberDescriptorType, types.MethodDescriptorType)
_METHODS += (types.WrapperDescriptorType, types.ClassMethodDescriptorType)
# An alias such as `Callable[[], int]`, in the annotations of a field, shows the attributes of the class that it is of.
_TYPES = (type, types.GenericAlias, types.UnionType, types.ModuleType, torch.finfo, torch.iinfo)
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
GLOBAL_HOOKS = tuple(getattr(nn.modules.module, f"_global{name}") for name in HOOKS)
LIBRARIES = {"torch", "opacus", "builtins", "functools", "typing", "weakref", "accelerate", "_thread", "threading"}


def held(module: nn.Module, loss: Any = None, *, ignored: frozenset[str] = frozenset()) -> dict[str, list[Any]]:
    """Return what a model and a loss hold, by name and place: tensors, and numbers, strings and the like.

    Lists, dictionaries, sets, other modules and plain objects in an attribute are looked through, and so is what is
    behind functions (`dpcomp.core.identity.behind`) and methods of their classes, and in attributes of tensors and
    functions. What compiled code holds is compared by its pickled bytes (`hidden_state`). What lies in the memory of a
    trainable parameter is that parameter.

    Args:
        module: The model.
        loss: Its loss, if that is to be watched too: a module, an object, or a function with attributes.
        ignored: Names of attributes that are an engine's.
    """
    walk = _Walk(module, ignored)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    result: dict[str, list[Any]] = {name.removeprefix("_module."): [value] for name, value in named.items()}
    for name, value in named.items():
        if attached := walk.attached(value):
            result[f"attributes of {name.removeprefix('_module.')!r}"] = attached
    for name, layer in module.named_modules():
        place = f"layer {name!r}" if name else "the model"
        for key, value in walk.attributes(layer):
            result[f"attribute {key!r} of {place} ({type(layer).__name__})"] = walk.leaves(value)
        if hooks := walk.hooks(layer):
            result[f"hooks of {place} ({type(layer).__name__})"] = hooks
    for kind in own_classes(module.modules()):
        for key, function in functions_of(kind):
            result[f"method {key!r} of class {kind.__name__}"] = walk.leaves(function)
    if hooks := [hook for each in GLOBAL_HOOKS for hook in each.values()]:
        result["hooks of all modules"] = [Itself(hook) for hook in hooks]
    result.update(walk.of_loss(loss))
    return result


@dataclass(frozen=True, eq=False)
class Itself:
    """An object that is not looked through: it is the same as long as it is this very object."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self.value is other.value

    __hash__ = None  # pyright: ignore[reportAssignmentType]


class _Walk:
    def __init__(self, module: nn.Module, ignored: frozenset[str]):
        self._ignored = OF_TORCH | ignored
        # By identity, and held, so that no later object has the identity of one that was seen.
        self._seen: dict[int, Any] = {id(layer): layer for layer in module.modules()}
        self._seen |= {id(kind): kind for kind in own_classes(module.modules())}
        self._memory = {_memory(value) for value in module.parameters() if value.requires_grad} - {None}

    def attributes(self, layer: nn.Module) -> Iterator[tuple[str, Any]]:
        """Yield the attributes of a module and of its class that are not torch's."""
        for kind in reversed(type(layer).__mro__):
            if kind.__module__.partition(".")[0] not in LIBRARIES:
                for key, value in data_of(kind):
                    if key not in vars(layer):
                        yield key, value
        for key, value in vars(layer).items():
            if key not in self._ignored:
                yield key, value

    def of_loss(self, loss: Any) -> Iterator[tuple[str, list[Any]]]:
        if isinstance(loss, types.MethodType) and isinstance(loss.__self__, nn.Module):
            loss = loss.__self__
        if id(loss) in self._seen:
            return
        place = f"the loss ({type(loss).__name__})"
        if isinstance(loss, nn.Module):
            self._seen |= {id(layer): layer for layer in loss.modules()}
            for name, value in loss.named_parameters():
                yield f"parameter {name!r} of {place}", self.leaves(value)
            for name, value in loss.named_buffers():
                yield f"buffer {name!r} of {place}", self.leaves(value)
            for name, layer in loss.named_modules():
                for key, value in self.attributes(layer):
                    yield f"attribute {f'{name}.{key}'.lstrip('.')!r} of {place}", self.leaves(value)
            return
        if isinstance(loss, functools.partial):
            yield f"an argument of {place}", self.leaves((loss.args, loss.keywords))
            yield from self.of_loss(loss.func)
            return
        for key, value in _attributes_of(loss):
            yield f"attribute {key!r} of {place}", self.leaves(value)
        for name, value in behind(loss):
            yield f"{name} of {place}", self.leaves(value)

    def hooks(self, layer: nn.Module) -> list[Any]:
        """Return the hooks of a layer: functions with what is behind them, and other objects themselves."""
        hooks = [hook for name in HOOKS for hook in vars(layer)[name].values()]
        return [
            leaf
            for hook in hooks
            for leaf in ([Itself(hook)] if of_a_library(hook) else [Itself(hook), *self.leaves(hook)])
        ]

    def attached(self, value: Tensor) -> list[Any]:
        """Return the leaves of the attributes of a tensor, but for those that an engine keeps there."""
        own = {key: part for key, part in vars(value).items() if key not in OF_ENGINES}
        return self._contents(own) if own else []

    def leaves(self, value: Any) -> list[Any]:
        """Return the tensors and values in an attribute, with marks for the form that they are in."""
        if isinstance(value, Tensor):
            own = "a trained parameter" if _memory(value) in self._memory else value
            return [own, *self.attached(value)]
        if isinstance(value, np.ndarray):
            inside = value.tolist() if value.dtype.hasobject else []
            return [np.asarray(value), *self.leaves(inside), *self.leaves(dict(getattr(value, "__dict__", {})))]
        if isinstance(value, (*VALUES, np.generic)):
            return [value]
        if isinstance(value, logging.Logger):
            return [Itself(value), *state_of_logger(value)]
        if isinstance(value, (Mapping, list, tuple, deque, AnySet)) or _is_object(value):
            if id(value) in self._seen:
                return []
            self._seen[id(value)] = value
            return self._inside(value)
        if isinstance(value, functools.singledispatchmethod):  # beside which lies a cache of what was called
            return [Itself(value), *self.leaves(value.func), *self._contents(value.dispatcher.registry)]
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            return [Itself(value), *self._behind(value)]
        if is_own_class(value) and id(value) not in self._seen:
            self._seen[id(value)] = value
            inside = [*data_of(value), *functions_of(value)]
            return [Itself(value), *(leaf for key, part in inside for leaf in (key, *self.leaves(part)))]
        if isinstance(value, _TYPES) or id(value) in self._seen:
            return [Itself(value)]
        self._seen[id(value)] = value
        return [Itself(value), *self._contents(value)]

    def _behind(self, value: Any) -> list[Any]:
        """Return the leaves of what a function, method or partial holds or reads; of dpcomp's and a library's, none."""
        if id(value) in self._seen:
            return []
        self._seen[id(value)] = value
        if isinstance(value, functools.partial):
            return self.leaves([value.args, value.keywords, value.func])
        if vars(value):
            return [*self._contents(dict(vars(value))), *self._around(value)]
        return self._around(value)

    def _around(self, value: Any) -> list[Any]:
        if str(value.__module__).partition(".")[0] in LIBRARIES | {"dpcomp"}:
            return []
        return [leaf for _, part in behind(value) for leaf in self.leaves(part)]

    def _inside(self, value: Any) -> list[Any]:
        if isinstance(value, (Mapping, list, tuple, deque, AnySet)) and _is_object(value):
            return [*self._contents(value), *self._contents(dict(getattr(value, "__dict__", {})))]
        return self._contents(value)

    def _contents(self, value: Any) -> list[Any]:
        if isinstance(value, nn.Module):
            own = {**value._parameters, **value._buffers, **value._modules, **dict(self.attributes(value))}
            return self._contents(own)
        if isinstance(value, Mapping):
            pairs: Any = value.items()
            return ["a mapping", len(value), *(leaf for pair in pairs for part in pair for leaf in self.leaves(part))]
        if isinstance(value, AnySet):
            others = [leaf for part in value if not isinstance(part, VALUES) for leaf in self.leaves(part)]
            return [frozenset(part for part in value if isinstance(part, VALUES)), len(value), *others]
        if isinstance(value, (list, tuple, deque)):
            return [type(value).__name__, len(value), *(leaf for part in value for leaf in self.leaves(part))]
        return [*self._contents(dict(_attributes_of(value))), *hidden_state(value, self._seen)]


def kept(leaf: Any) -> Any:
    """Return a copy of a leaf that no later write reaches."""
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def same(now: list[Any], before: list[Any]) -> bool:
    """Return whether two lists of leaves have the same values; a NaN that was there before has not moved."""
    return len(now) == len(before) and all(map(_same, now, before))


def same_tensor(now: Tensor, before: Tensor) -> bool:
    """Return whether two tensors have the same values, where NaN equals NaN."""
    now = now.detach()
    if now.shape != before.shape or now.dtype != before.dtype:
        return False
    try:
        before = before.to(now.device)
        return equal_values(now, before) or bool(((now == before) | ((now != now) & (before != before))).all())
    except RuntimeError:  # a tensor that a transform of torch.func left behind, or one without values
        return False


def _same(now: Any, before: Any) -> bool:
    if isinstance(now, Tensor):
        return isinstance(before, Tensor) and same_tensor(now, before)
    if type(now) is not type(before):
        return False
    if isinstance(now, np.ndarray):
        return now.dtype == before.dtype and now.tobytes() == before.tobytes()
    return bool(now == before) or bool(now != now and before != before)


def _attributes_of(value: Any) -> list[tuple[str, Any]]:
    slots = [key for kind in type(value).__mro__ for key in slots_of(kind)]
    own = {key: getattr(value, key) for key in slots if hasattr(value, key)} | dict(getattr(value, "__dict__", {}))
    own = {key: part for key, part in own.items() if not is_echo(type(value), key)}
    of_class = {
        key: part
        for kind in reversed(type(value).__mro__)
        if kind.__module__.partition(".")[0] not in LIBRARIES
        for key, part in data_of(kind)
        if key not in own
    }
    return list((of_class | own).items())


def own_classes(layers: Iterable[nn.Module]) -> dict[type, None]:
    """Return the classes of layers that are no library's, with those that they inherit from."""
    kinds = {kind: None for layer in layers for kind in type(layer).__mro__}
    return {kind: None for kind in kinds if kind.__module__.partition(".")[0] not in LIBRARIES}


def functions_of(kind: type) -> Iterator[tuple[str, types.FunctionType]]:
    """Yield the methods and properties of a class, as functions."""
    for key, value in vars(kind).items():
        function = getattr(value, "fget", getattr(value, "__func__", value))
        if isinstance(function, types.FunctionType):
            yield key, function


def data_of(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a class that are no methods; what `functools.lru_cache` keeps of methods is none."""
    for key, value in vars(kind).items():
        # Empty annotations come where they are asked for, and what an abstract class keeps, where its kind is; a
        # class that Cython made keeps the table of its own functions.
        if key in ("_abc_impl", "__pyx_vtable__") or (key == "__annotations__" and not value):
            continue
        if not isinstance(value, _METHODS) and not hasattr(value, "cache_info"):
            yield key, value


def is_own_class(value: Any) -> bool:
    """Return whether a value is a class of the script, or of a package that is no known library."""
    known = LIBRARIES | {"dpcomp"} | sys.stdlib_module_names
    return isinstance(value, type) and value.__module__.partition(".")[0] not in known


def _is_object(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return True
    if isinstance(value, (*_TYPES, types.FunctionType, types.MethodType)):
        return False
    return type(value).__module__.partition(".")[0] not in LIBRARIES


def of_a_library(hook: Any) -> bool:
    """Return whether a hook is dpcomp's or a library's: what it holds is then its own."""
    function = hook.func if isinstance(hook, functools.partial) else hook
    kind = function if isinstance(function, (types.FunctionType, types.MethodType)) else type(function)
    return str(kind.__module__).partition(".")[0] in LIBRARIES | {"dpcomp"}


def _memory(value: Tensor) -> int | None:
    """Return where the memory of a tensor begins; None without any."""
    try:
        return value.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None

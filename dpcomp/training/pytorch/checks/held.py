"""Held: what a model and its loss keep between passes, beside the parameters that the optimiser trains."""

import datetime
import functools
import logging
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AnySet
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from opacus.layers.dp_rnn import RNNLinear
from torch import Tensor, nn

from dpcomp.core.identity import behind
from dpcomp.training.pytorch.checks.equal_values import equal_values
from dpcomp.training.pytorch.checks.hidden_state import (
    computed_anew,
    has_echoes,
    hidden_state,
    is_compiled_schema,
    is_echo,
    slots_of,
    state_of_logger,
)

# Of each module: torch's own entries, and the handles of the hooks of an engine.
OF_TORCH = frozenset(vars(nn.Module())) | {"autograd_grad_sample_hooks"}
OF_RECURRENT_LAYERS = frozenset({"_flat_weights", "_flat_weight_refs"})
OF_OPACUS_LAYERS = frozenset({"max_batch_len"})  # of its RNNLinear, which only its formula for rows reads
OF_ENGINES = frozenset({"grad_sample", "summed_grad"})  # on parameters
VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_METHODS = (types.FunctionType, staticmethod, classmethod, property, types.ModuleType, types.BuiltinFunctionType)
_METHODS += (types.GetSetDescriptorType, types.MemberDescriptorType, types.MethodDescriptorType)
_METHODS += (types.WrapperDescriptorType, types.ClassMethodDescriptorType)
_CAPSULE = type(datetime.datetime_CAPI)  # a pointer of C
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


class Echoes:
    """What the cached properties of an object keep: it may come at any time, as long as the property gives the same.

    Args:
        owner: The object.
        leaves: Those of what each property keeps, by its name.
        leaves_of: Returns the leaves of another value of the owner.
    """

    def __init__(self, owner: Any, leaves: Mapping[str, list[Any]], leaves_of: Callable[[Any, Any], list[Any]]):
        self._owner, self.leaves, self._leaves_of = owner, leaves, leaves_of

    def kept(self) -> "Echoes":
        """Return a copy that no later write reaches."""
        return Echoes(self._owner, {key: list(map(kept, part)) for key, part in self.leaves.items()}, self._leaves_of)

    def same(self, before: "Echoes") -> bool:
        """Return whether each value is what it was before; if it is new, whether its property gives it again."""
        return all(
            same(part, before.leaves[key] if key in before.leaves else self._given(key))
            for key, part in self.leaves.items()
        )

    def _given(self, key: str) -> list[Any]:
        return self._leaves_of(self._owner, computed_anew(self._owner, key))


class _Walk:
    def __init__(self, module: nn.Module, ignored: frozenset[str], *, beside: tuple[Any, ...] = ()):
        self._module, self._beside = module, beside
        self._ignored, self._on_tensors = ignored, OF_ENGINES | ignored
        # By identity, and held, so that no later object has the identity of one that was seen.
        self._seen: dict[int, Any] = {id(layer): layer for layer in module.modules()}
        self._seen |= {id(each): each for each in (*own_classes(module.modules()), *beside)}
        self._with_functions = set[type](own_classes(module.modules()))
        self._memory = {_memory(value) for value in module.parameters() if value.requires_grad} - {None}

    def attributes(self, layer: nn.Module) -> Iterator[tuple[str, Any]]:
        """Yield the attributes of a module and of its class that are not torch's."""
        for kind in reversed(type(layer).__mro__):
            if kind.__module__.partition(".")[0] not in LIBRARIES:
                for key, value in data_of(kind):
                    if key not in vars(layer):
                        yield key, value
        passed = passed_of(layer) | self._ignored
        for key, value in vars(layer).items():
            if key not in passed:
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
                if functions := self._functions(type(layer)):
                    yield f"methods of {f'layer {name!r} of ' if name else ''}{place}", functions
            return
        if isinstance(loss, functools.partial):
            yield f"an argument of {place}", self.leaves((loss.args, loss.keywords))
            yield from self.of_loss(loss.func)
            return
        for key, value in _attributes_of(loss):
            yield f"attribute {key!r} of {place}", self.leaves(value)
        if functions := self._functions(type(loss)):
            yield f"methods of {place}", functions
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
        own = {key: part for key, part in vars(value).items() if key not in self._on_tensors}
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
            own = getattr(value, "__dict__", None)  # of a class that inherits from one of these
            if not own or id(value) in self._seen:
                return [value]
            self._seen[id(value)] = value
            return [value, *self._contents(dict(own)), *self._functions(type(value))]
        if is_compiled_schema(value):
            return [Itself(value)]
        if isinstance(value, logging.Logger):
            return [Itself(value), *(leaf for part in state_of_logger(value) for leaf in self.leaves(part))]
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
            classes = [leaf for each in type(value).__mro__ if is_of_a_script(each) for leaf in self.leaves(each)]
            return [*self._contents(value), *self._contents(dict(getattr(value, "__dict__", {}))), *classes]
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
        return [
            *self._contents(dict(_attributes_of(value))),
            *self._echoes(value),
            *self._functions(type(value)),
            *hidden_state(value, self._seen),
        ]

    def _functions(self, kind: type) -> list[Any]:
        """Return the leaves of the methods and properties of a class of the script and of those that it inherits from.

        Those of a class come once in a walk.
        """
        new = [each for each in kind.__mro__ if each not in self._with_functions and is_of_a_script(each)]
        self._with_functions.update(new)
        return [leaf for each in new for _, function in functions_of(each) for leaf in self.leaves(function)]

    def _echoes(self, value: Any) -> list[Any]:
        """Return what cached properties of an object keep now, as a leaf; none of a class without such properties."""
        kind = type(value)
        if not has_echoes(kind):
            return []
        values = {key: part for key, part in vars(value).items() if is_echo(kind, key)}
        return [Echoes(value, {key: self._alone(value, part) for key, part in values.items()}, self._alone)]

    def _alone(self, owner: Any, value: Any) -> list[Any]:
        """Return the leaves of a value in a walk of its own, which ends at the layers and at its owner."""
        return _Walk(self._module, self._ignored, beside=(*self._beside, owner)).leaves(value)


def flat(leaves: Iterable[Any]) -> Iterator[Any]:
    """Yield leaves, and those of cached properties one by one."""
    for leaf in leaves:
        if isinstance(leaf, Echoes):
            yield from (each for part in leaf.leaves.values() for each in flat(part))
        else:
            yield leaf


def kept(leaf: Any) -> Any:
    """Return a copy of a leaf that no later write reaches."""
    if isinstance(leaf, Echoes):
        return leaf.kept()
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
    if isinstance(now, Echoes):
        return now.same(before)
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


def passed_of(layer: nn.Module) -> frozenset[str]:
    """Return the names of the attributes of a layer that are torch's own, or those of Opacus' recurrent layers."""
    if isinstance(layer, nn.RNNBase):
        return OF_TORCH | OF_RECURRENT_LAYERS
    return OF_TORCH | OF_OPACUS_LAYERS if type(layer) is RNNLinear else OF_TORCH


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
        # Empty annotations come where they are asked for, names of slots where an object is copied, and what an
        # abstract class keeps, where its kind is; a class that Cython made keeps the table of its own functions.
        if key == "_abc_impl" or (key == "__annotations__" and not value):
            continue
        if (key == "__pyx_vtable__" and type(value) is _CAPSULE) or (
            key == "__slotnames__" and _are_slot_names(kind, value)
        ):
            continue
        if not isinstance(value, _METHODS) and not hasattr(value, "cache_info"):
            yield key, value


def noted_of(kind: type) -> dict[str, Any]:
    """Return what of a class can be written, by name: its data and functions, and what `data_of` passes over."""
    passed = {key: vars(kind)[key] for key in ("__annotations__", "__slotnames__") if key in vars(kind)}
    return {**passed, **dict(functions_of(kind)), **dict(data_of(kind))}


def _are_slot_names(kind: type, value: Any) -> bool:
    """Return whether a value is what `copyreg` keeps on a class: the names of the slots of its objects."""
    return type(value) is list and value == [name for each in kind.__mro__ for name in slots_of(each)]


def is_own_class(value: Any) -> bool:
    """Return whether a value is a class of the script, or of a package that is no known library."""
    known = LIBRARIES | {"dpcomp"} | sys.stdlib_module_names
    return isinstance(value, type) and value.__module__.partition(".")[0] not in known


def is_of_a_script(kind: type) -> bool:
    """Return whether methods of a class may be a script's own: its objects are known by no library."""
    return is_own_class(kind) and kind.__module__.partition(".")[0] != "pydantic"


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

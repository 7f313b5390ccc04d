"""Anatomy: the objects that a module is made of, by which most steps see that nothing was exchanged."""

import functools
import re
import types
from collections import deque
from collections.abc import Container, Iterable, Mapping
from dataclasses import is_dataclass
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

from dpcomp.core.identity import UNCHANGING, Composition, Dictionaries, Dictionary
from dpcomp.training.pytorch.checks.held import (
    GLOBAL_HOOKS,
    HOOKS,
    LIBRARIES,
    OF_ENGINES,
    OF_RECURRENT_LAYERS,
    data_of,
    is_of_a_script,
    is_own_class,
    noted_of,
    of_a_library,
    own_classes,
    passed_of,
)
from dpcomp.training.pytorch.checks.hidden_state import is_compiled_schema, is_plain, slots_of

# Of what is passed over, what a module has at some times only.
_AT_TIMES = OF_RECURRENT_LAYERS | {"autograd_grad_sample_hooks"}
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_WITH_NAMES = (type, *_FUNCTIONS, types.ModuleType)  # have a dictionary that is looked at elsewhere, or by name
_AROUND_FUNCTIONS: dict[type, tuple[str, ...]] = {  # and what they hold beside their dictionary
    functools.partial: ("func", "args", "keywords"),
    functools.cached_property: ("func", "attrname"),
    property: ("fget", "fset", "fdel"),
    classmethod: ("__func__",),
    staticmethod: ("__func__",),
}
_UNCHANGING = (torch.dtype, torch.device, range, re.Pattern)
_CONTAINERS = (tuple, frozenset, list, deque, set, dict)  # which the base class notes, or says that it cannot
_trains = attrgetter("requires_grad")


class Layers:
    """The layers of a module, their classes, and their parameters with whether they are trained, as they are now.

    Args:
        module: The module.

    Attributes:
        layers: Its modules.
        parameters: Its parameters.
    """

    def __init__(self, module: nn.Module):
        self.layers = list(module.modules())
        self._kinds = list(map(type, self.layers))
        parts = [Dictionary(part) for layer in self.layers for part in (layer._modules, layer._parameters)]
        self._dicts = Dictionaries(parts)
        self.parameters = list(module.parameters())
        self._trained = list(map(_trains, self.parameters))

    def same(self) -> bool:
        """Return whether they are still the same."""
        return (
            all(map(is_, map(type, self.layers), self._kinds))
            and self._dicts.same()
            and list(map(_trains, self.parameters)) == self._trained
        )


class _Inside(Composition):
    """What values are made of, with the data and the functions of their classes.

    Args:
        values: The values.
        watched: The classes of layers, which are watched elsewhere.
    """

    def __init__(self, values: Iterable[Any], watched: Container[type]):
        self._watched = watched
        self._slotted: list[tuple[Any, tuple[str, ...]]] = []  # objects with attributes outside of their dictionary
        super().__init__(values)
        self._in_slots = self._in_slots_now()

    def same(self) -> bool:
        """Return whether nothing changed: False also where that is not known."""
        return super().same() and all(map(is_, self._in_slots_now(), self._in_slots))

    def _in_slots_now(self) -> list[Any]:
        return [getattr(value, key, None) for value, keys in self._slotted for key in keys]

    def _note(self, value: Any) -> bool:
        if is_own_class(value):
            return self._note_class(value)
        if isinstance(value, UNCHANGING) and hasattr(value, "__dict__") and not isinstance(value, _WITH_NAMES):
            return self._is_noted(value) or self._note_object(value)  # of a class that inherits from one of these
        if isinstance(value, _UNCHANGING) or is_compiled_schema(value):
            return True
        if isinstance(value, types.MappingProxyType):
            return self._is_noted(value) or self._note_mapping(value)
        if is_dataclass(value) and not isinstance(value, (type, *_CONTAINERS)):
            return self._is_noted(value) or self._note_object(value)
        if isinstance(value, _CONTAINERS):
            return super()._note(value) and self._note_all(filter(is_of_a_script, type(value).__mro__))
        return super()._note(value) or self._note_object(value)

    def _is_noted(self, value: Any) -> bool:
        seen = id(value) in self._seen
        self._seen.add(id(value))
        return seen

    def _note_mapping(self, value: Mapping[Any, Any]) -> bool:
        self._noted.append(Dictionary(value))
        return self._note_all([*value, *value.values()])

    def _note_class(self, kind: type) -> bool:
        """Note the data and the functions of a class of the script; those of layers are noted elsewhere."""
        if kind in self._watched or self._is_noted(kind):
            return True
        noted = noted_of(kind)
        self._noted.append(Dictionary(vars(kind), noted))
        return self._note_all(noted.values())

    def _note_object(self, value: Any) -> bool:
        """Note an object of a class that is written in Python; what cached properties keep is as its other attributes.

        So a value that such a property adds is seen here, and then compared.
        """
        kind = type(value)
        if kind.__module__ == "typing" or isinstance(value, (types.GenericAlias, types.UnionType)):
            return True  # of annotations
        if isinstance(value, (nn.Module, Tensor, *_CONTAINERS)):
            return False
        slots = tuple(name for each in kind.__mro__ for name in slots_of(each))
        if kind in _AROUND_FUNCTIONS:
            slots = _AROUND_FUNCTIONS[kind]
        elif not (is_plain(kind) or isinstance(value, UNCHANGING)):
            return False
        self._slotted += [(value, slots)] if slots else []
        held = [getattr(value, name, None) for name in slots]
        if kind.__dictoffset__ and kind is not functools.cached_property:  # in which is a lock
            self._noted.append(Dictionary(vars(value)))
            held += vars(value).values()
        for each in kind.__mro__:
            if is_of_a_script(each):
                held.append(each)
            elif each.__module__.partition(".")[0] not in LIBRARIES and not self._is_noted(each):
                of_class = dict(data_of(each))
                self._noted.append(Dictionary(vars(each), of_class))
                held += of_class.values()
        return self._note_all(held)


class Objects:
    """The objects that a module and its loss hold, as they are now: while they are the same, only tensors can change.

    Args:
        module: The model.
        loss: Its loss; None for none.
        ignored: Names of attributes that are an engine's.

    Attributes:
        tell_all: Whether nothing can change without another object; False for own objects, arrays and the like.
    """

    def __init__(self, module: nn.Module, loss: Any, *, ignored: frozenset[str]):
        parts = [Layers(module), *([Layers(loss)] if isinstance(loss, nn.Module) else [])]
        self.tell_all = len(parts) == 2 or loss is None or isinstance(loss, _FUNCTIONS)
        every = [layer for part in parts for layer in part.layers]
        self._hooks = [*(vars(layer)[name] for layer in every for name in HOOKS), *GLOBAL_HOOKS]
        self._hook_counts = list(map(len, self._hooks))
        self._layers, dicts = parts, list(map(Dictionary, filter(None, self._hooks)))
        values: list[Any] = []
        for layer in every:
            passed = passed_of(layer) | ignored
            own = [key for key in vars(layer) if key not in passed]
            dicts += (Dictionary(layer._buffers), Dictionary(vars(layer), own, (_AT_TIMES | ignored) & passed))
            values += map(vars(layer).__getitem__, own)
        values += [hook for hooks in self._hooks for hook in hooks.values() if not of_a_library(hook)]
        for kind in own_classes(every):
            noted = noted_of(kind)
            dicts.append(Dictionary(vars(kind), noted))
            values += noted.values()
        named = (value for layer in every for value in (*layer._parameters.values(), *layer._buffers.values()))
        for part in [value for value in (*named, *values) if isinstance(value, Tensor)]:
            own = [key for key in vars(part) if key not in OF_ENGINES | ignored]
            dicts.append(Dictionary(vars(part), own, OF_ENGINES | ignored))
            values += map(vars(part).__getitem__, own)
        self._dicts = Dictionaries(dicts)
        # Tensors, numbers and strings are held by identity; so is what is inside of lists, functions and the like.
        values += [loss] if isinstance(loss, _FUNCTIONS) else []
        held = [value for value in values if not isinstance(value, (Tensor, torch.dtype, torch.device))]
        self._inside = _Inside(held, own_classes(every))
        self.tell_all &= self._inside.tells_all

    def same(self) -> bool:
        """Return whether they are still the same."""
        return (
            self.tell_all
            and list(map(len, self._hooks)) == self._hook_counts
            and all(part.same() for part in self._layers)
            and self._dicts.same()
            and self._inside.same()
        )

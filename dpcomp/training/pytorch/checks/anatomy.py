"""Anatomy: the objects that a module is made of, by which most steps see that nothing was exchanged."""

import types
from collections import deque
from collections.abc import Container, Iterable
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

from dpcomp.core.identity import Composition, Dictionaries, Dictionary
from dpcomp.training.pytorch.checks.held import (
    GLOBAL_HOOKS,
    HOOKS,
    LIBRARIES,
    OF_ENGINES,
    OF_TORCH,
    data_of,
    functions_of,
    is_own_class,
    of_a_library,
    own_classes,
)
from dpcomp.training.pytorch.checks.hidden_state import is_echo, is_plain

# Of OF_TORCH, what a module has at some times only.
_AT_TIMES = frozenset({"_flat_weights", "_flat_weight_refs", "autograd_grad_sample_hooks", "max_batch_len"})
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType)
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
    """What values are made of; a class that the script can write to does not tell all, but for those of layers.

    Args:
        values: The values.
        watched: The classes of layers.
    """

    def __init__(self, values: Iterable[Any], watched: Container[type]):
        self._watched = watched
        super().__init__(values)

    def _note(self, value: Any) -> bool:
        if is_own_class(value) and value not in self._watched:
            return False
        return super()._note(value) or self._note_object(value)

    def _note_object(self, value: Any) -> bool:
        """Note an object of a class that is written in Python, all of whose attributes are in its dictionary."""
        kind = type(value)
        if kind.__module__ == "typing" or isinstance(value, (types.GenericAlias, types.UnionType)):
            return True  # of annotations
        if isinstance(value, (nn.Module, Tensor, *_CONTAINERS)) or not is_plain(kind):
            return False
        own = vars(value)
        echoes = [key for key in own if is_echo(kind, key)]
        self._noted.append(Dictionary(own, own.keys() - set(echoes), echoes))
        held = [own[key] for key in self._noted[-1].keys]
        for each in kind.__mro__:
            if each.__module__.partition(".")[0] not in LIBRARIES and id(each) not in self._seen:
                self._seen.add(id(each))
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
        passed, at_times = OF_TORCH | ignored, _AT_TIMES | ignored
        parts = [Layers(module), *([Layers(loss)] if isinstance(loss, nn.Module) else [])]
        self.tell_all = len(parts) == 2 or loss is None or isinstance(loss, _FUNCTIONS)
        every = [layer for part in parts for layer in part.layers]
        self._hooks = [*(vars(layer)[name] for layer in every for name in HOOKS), *GLOBAL_HOOKS]
        self._hook_counts = list(map(len, self._hooks))
        self._layers, dicts = parts, list(map(Dictionary, filter(None, self._hooks)))
        values: list[Any] = []
        for layer in every:
            own = [key for key in vars(layer) if key not in passed]
            dicts += (Dictionary(layer._buffers), Dictionary(vars(layer), own, at_times))
            values += map(vars(layer).__getitem__, own)
        values += [hook for hooks in self._hooks for hook in hooks.values() if not of_a_library(hook)]
        for kind in own_classes(every):
            functions = dict(functions_of(kind))
            own = [key for key, _ in data_of(kind)]
            dicts.append(Dictionary(vars(kind), [*own, *functions]))
            values += functions.values()
            values += map(vars(kind).__getitem__, own)
        named = (value for layer in every for value in (*layer._parameters.values(), *layer._buffers.values()))
        for part in [value for value in (*named, *values) if isinstance(value, Tensor)]:
            own = [key for key in vars(part) if key not in OF_ENGINES]
            dicts.append(Dictionary(vars(part), own, OF_ENGINES))
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

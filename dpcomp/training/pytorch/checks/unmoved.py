"""Unmoved: a guard that only the optimiser's step on released values moves what a model and its loss hold."""

from contextlib import suppress
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

from dpcomp.core.errors import NotPrivate
from dpcomp.training.pytorch.checks.anatomy import Layers, Objects
from dpcomp.training.pytorch.checks.equal_values import equal_values
from dpcomp.training.pytorch.checks.held import flat, held, kept, same, same_tensor
from dpcomp.training.pytorch.checks.hidden_state import Unreadable
from dpcomp.training.pytorch.checks.modes import Modes
from dpcomp.training.pytorch.rows.parameters import trainable

_form = attrgetter("shape", "dtype", "device")


class Unmoved:
    """Remembers what a model and its loss hold, and refuses what moved since.

    **Privacy:** an update is the model now minus the model before, so whatever else wrote a parameter would be sent;
    and what a pass or a script writes to a buffer, a frozen parameter or an attribute makes later gradients depend on
    several examples (PRIVACY_RULES hazards 7 and 28). Values are compared, since a write through `.data` leaves no
    other trace. Hooks and functions are held to be the same objects with the same attributes, defaults and variables
    around them; objects of compiled code, to the same pickled bytes, and refused where they have none. Globals are not
    seen, nor what `functools.lru_cache` keeps of methods.

    Args:
        module: The model whose parameters, trainable and frozen, buffers and attributes are watched.
        loss: The loss whose parameters, buffers and attributes are watched; None for none.
        ignored: Names of attributes that an engine keeps on layers.

    Attributes:
        modes: Holds which layers are in training mode.
    """

    def __init__(self, module: nn.Module, loss: Any = None, *, ignored: frozenset[str] = frozenset()):
        self._module, self._loss, self._ignored = module, loss, ignored
        self._layers = {name: (layer, type(layer)) for name, layer in module.named_modules()}
        self._made_of = Layers(module)
        self.modes = Modes(module, loss)
        self._before: dict[str, list[Any]] = {}
        self._objects: Objects | None = None  # that `_before` was taken of
        self._tensors: list[Tensor] = []  # that are held
        self._copies: list[Tensor] = []  # of these, in `_before`
        self._forms: list[Any] = []  # of the copies
        self._moved_before: list[str] = []  # it was copied
        self.remember()

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and `torch.save` take: a copy notes its own objects, and keeps the names of what moved."""
        of_objects = {"_before": {}, "_objects": None, "_tensors": [], "_copies": [], "_forms": []}
        return {**self.__dict__, **of_objects, "_moved_before": self.moved()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.remember()

    def remember(self) -> None:
        """Take all present values as those that were released: right after the optimiser's step."""
        if self._objects is not None and self._objects.same():
            with torch.no_grad():
                torch._foreach_copy_(self._copies, self._tensors)  # pyright: ignore[reportPrivateImportUsage]
            return
        held_now = self._held()
        self._before = {name: list(map(kept, leaves)) for name, leaves in held_now.items()}
        self._note_objects(held_now)

    def _note_objects(self, held_now: dict[str, list[Any]]) -> None:
        self._objects = Objects(self._module, self._loss, ignored=self._ignored)
        pairs = [
            (value, copy)
            for name, leaves in held_now.items()
            for value, copy in zip(flat(leaves), flat(self._before[name]), strict=True)
            if isinstance(value, Tensor)
        ]
        self._tensors, self._copies = [value for value, _ in pairs], [copy for _, copy in pairs]
        self._forms = list(map(_form, self._copies))

    def _same_tensors(self) -> bool:
        if list(map(_form, self._tensors)) == self._forms:
            with suppress(RuntimeError):  # one that a transform of torch.func left behind, or one without values
                if all(map(equal_values, map(Tensor.detach, self._tensors), self._copies)):
                    return True
        return all(map(same_tensor, self._tensors, self._copies))  # on other devices, or with values that are NaN

    def remember_trained(self) -> None:
        """Take the present values of the trainable parameters as a new start; all else is held to what it was."""
        trained = trainable(self._module)
        self._before |= {name: [kept(value)] for name, value in trained.items()}
        self._moved_before = [name for name in self._moved_before if name not in trained]
        self._objects = None
        if not self.moved():
            self.remember()

    def moved(self) -> list[str]:
        """Return the names of what has other values than those remembered."""
        if self._objects is not None and self._objects.same() and self._same_tensors():
            return list(self._moved_before)
        now = self._held()
        changed = [
            name for name, leaves in now.items() if name not in self._before or not same(leaves, self._before[name])
        ]
        return list(dict.fromkeys([*self._moved_before, *changed, *(name for name in self._before if name not in now)]))

    def refuse_moved(self, *, but_trained: bool = False) -> None:
        """Refuse a model of which something moved.

        Args:
            but_trained: Whether trainable parameters may have moved; they are still held to what is remembered.

        Raises:
            NotPrivate: Naming what moved.
        """
        passed = trainable(self._module) if but_trained else {}
        if changed := [name for name in self.moved() if name not in passed]:
            raise NotPrivate(
                f"{changed} moved since the last step, and not by the optimiser: a forward pass, a hook, a callback or "
                "the script wrote values that never went through the clip and the noise. Trainable parameters may be "
                "loaded before optimizer.begin(memory, permit); buffers, frozen parameters and attributes of model and "
                "loss keep what they had in make_private: set them before it, and write none in training "
                "(Embedding(max_norm=None), no data-dependent first weights, no running statistics)"
            )

    def refuse_other_layers(self) -> None:
        """Refuse a model of which a layer was added, replaced or removed.

        Raises:
            NotPrivate: Naming the layer.
        """
        if self._made_of.same():
            return
        now = {name: (layer, type(layer)) for name, layer in self._module.named_modules()}
        for name in dict.fromkeys([*self._layers, *now]):
            if not all(map(is_, now.get(name, (None, None)), self._layers.get(name, (None, None)))):
                was, is_now = (layers[name][1].__name__ if name in layers else "none" for layers in (self._layers, now))
                raise NotPrivate(
                    f"layer {name!r} was exchanged after the inspection (it was {was}, and is {is_now}), so nothing is "
                    "known of it: change layers before make_private, or call it again"
                )

    def _held(self) -> dict[str, list[Any]]:
        found = held(self._module, self._loss, ignored=self._ignored)
        for name, leaves in found.items():
            for leaf in flat(leaves):
                if isinstance(leaf, Unreadable):
                    raise NotPrivate(
                        f"{name} holds an object of type {leaf.kind}, whose state cannot be read (it cannot be "
                        "pickled), so a pass could keep there what it sees. Keep numbers, tensors and the like in its "
                        "place, or make it in the pass"
                    )
        return found

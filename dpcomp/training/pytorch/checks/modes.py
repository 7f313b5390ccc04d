"""Modes: holds which layers are in training mode, and the precision of passes, to those of a first round."""

from typing import Any

import torch
from torch import nn

from dpcomp.core.errors import NotPrivate


class Modes:
    """Refuses flags `training` of the layers of a model and its loss that are others than when the first round began.

    **Privacy:** a layer may do another thing by its flag, so flags that a script sets by a look at a batch move the
    rows of all its examples, and what a pass sets is memory of its examples (PRIVACY_RULES hazards 7 and 29).

    Args:
        module: The model.
        loss: Its loss; only a module has flags.
    """

    def __init__(self, module: nn.Module, loss: Any = None):
        self._parts = [module, loss] if isinstance(loss, nn.Module) else [module]
        self._before: list[bool] | None = None  # before the first round
        self._autocast: list[torch.dtype | None] = []  # of the first pass

    def remember(self, *, training: bool) -> None:
        """Remember the flags when the first round begins; later calls do nothing.

        Args:
            training: Whether the model as a whole is in training mode; else what `model.train()` sets is remembered.
        """
        if self._before is None:
            module, *loss = self._parts
            layers = list(module.modules())
            flags = [layer.training for layer in layers]
            if not training:
                module.train()  # of the model's own, which may leave layers in evaluation
            self._before = [layer.training is True for layer in layers]
            for layer, flag in zip(layers, flags, strict=True):
                layer.training = flag
            self._before += [layer.training is True for part in loss for layer in part.modules()]

    def refuse_other(self) -> None:
        """Refuse other flags than those that are remembered.

        Raises:
            NotPrivate: Naming the layers.
        """
        layers = [layer for part in self._parts for layer in part.modules()]
        if self._before is None or (len(layers) == len(self._before) and all(map(_is_in, layers, self._before))):
            return
        places = ("the model", "the loss")
        named = [
            (f"layer {name!r} of {place}" if name else place, layer)
            for place, part in zip(places, self._parts, strict=False)
            for name, layer in part.named_modules()
        ]
        others = [
            f"{name} (now in {'training' if layer.training else 'evaluation'})"
            for (name, layer), before in zip(named, self._before, strict=False)
            if not _is_in(layer, before)
        ]
        raise NotPrivate(
            f"layers are in another mode than when the first round began: {', '.join(others)}. Which layers are in "
            "training mode could be chosen by a look at a batch, or keep what a pass saw, and moves the rows of all "
            "examples. Set modes before optimizer.begin(memory, permit), change none in a forward pass, and after an "
            "evaluation call model.train() and set to eval() again what was so"
        )

    def refuse_other_autocast(self, autocast: torch.dtype | None) -> None:
        """Refuse a pass in another precision than that of the first call.

        Args:
            autocast: The type of the mixed precision of the pass; None without.

        Raises:
            NotPrivate: It is another.
        """
        if not self._autocast:
            self._autocast.append(autocast)
        if autocast != (before := self._autocast[0]):
            now, then = (
                f"in {kind} (torch.autocast)" if kind else "without torch.autocast" for kind in (autocast, before)
            )
            raise NotPrivate(
                f"a forward pass runs {now}, the first one ran {then}. The precision could be chosen by a look at a "
                "batch, and moves the rows of all its examples. Run all passes in training in one precision"
            )


def _is_in(layer: nn.Module, training: bool) -> bool:
    return layer.training is training

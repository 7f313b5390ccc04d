"""Modes: holds which layers are in training mode to those of the trial, and the precision of passes to the first."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from dpcomp.core.errors import NotPrivate
from dpcomp.training.pytorch.checks.precision import switched, switches


class Modes:
    """Refuses flags `training` of the layers of a model and its loss that are others than in the trial.

    **Privacy:** a layer may do another thing by its flag, so what it does by a flag that no trial had is unknown; flags
    that a script sets by a look at a batch move the rows of all its examples, and what a pass sets is memory of its
    examples (PRIVACY_RULES hazards 7 and 29).

    Args:
        module: The model.
        loss: Its loss; only a module has flags.
    """

    def __init__(self, module: nn.Module, loss: Any = None):
        self._parts = [module, loss] if isinstance(loss, nn.Module) else [module]
        self._tried: list[bool] | None = None  # until the trial is over
        self._switches: dict[str, tuple[Any, ...]] = {}  # of the first pass, and of the first step
        self._autocast: list[torch.dtype | None] = []  # of the first pass

    def now(self) -> list[bool]:
        """Return whether each layer is in training mode."""
        return [layer.training is True for layer in self._layers()]

    def hold_to(self, tried: list[bool]) -> None:
        """Hold the flags from now on to those of a trial.

        Args:
            tried: What `now` returned for the copies that were tried.
        """
        self._tried = tried

    @contextmanager
    def as_tried(self) -> Iterator[None]:
        """Set the flags to those of the trial for a while."""
        layers = self._layers()
        flags = [layer.training for layer in layers]
        try:
            for layer, flag in zip(layers, self._tried or flags, strict=True):
                layer.training = flag
            yield
        finally:
            for layer, flag in zip(layers, flags, strict=True):
                layer.training = flag

    def refuse_other(self) -> None:
        """Refuse other flags than those of the trial.

        Raises:
            NotPrivate: Naming the layers.
        """
        layers = self._layers()
        if self._tried is None or (len(layers) == len(self._tried) and all(map(_is_in, layers, self._tried))):
            return
        places = ("the model", "the loss")
        named = [
            (f"layer {name!r} of {place}" if name else place, layer)
            for place, part in zip(places, self._parts, strict=False)
            for name, layer in part.named_modules()
        ]
        others = [
            f"{name} (now in {'training' if layer.training else 'evaluation'})"
            for (name, layer), tried in zip(named, self._tried, strict=False)
            if not _is_in(layer, tried)
        ]
        raise NotPrivate(
            f"layers are in another mode than when make_private tried the model: {', '.join(others)}. What they do in "
            "it was not looked at; and which layers are in training mode could be chosen by a look at a batch, or keep "
            "what a pass saw, and moves the rows of all examples. Set modes before make_private: call model.train(), "
            "then layer.eval() for each layer that is to stay in evaluation. Change none in a forward pass, and after "
            "an evaluation call model.train() and set to eval() again what was so"
        )

    def refuse_other_switches(self, place: Literal["pass", "step"]) -> None:
        """Refuse a pass or a step under other settings of the precision of torch's kernels than the first one.

        Args:
            place: Which of both; a script may have settings of its own around its passes.

        Raises:
            NotPrivate: Naming the settings.
        """
        now = switches()
        if (before := self._switches.setdefault(place, now)) != now:
            raise NotPrivate(
                f"settings of torch's kernels are others than in the first {place}: {', '.join(switched(before))}. "
                "They could be chosen by a look at a batch, and move the rows of all its examples. Set "
                "torch.set_float32_matmul_precision, torch.backends and the like once, before training"
            )

    def _layers(self) -> list[nn.Module]:
        return [layer for part in self._parts for layer in part.modules()]

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

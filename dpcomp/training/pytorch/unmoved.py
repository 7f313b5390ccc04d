"""Unmoved: a guard that only the optimiser's step on released values moves what a model holds."""

import torch
from torch import Tensor, nn

from dpcomp.core.errors import NotPrivate


class Unmoved:
    """Remembers a model's parameters and buffers, and refuses what moved since.

    **Privacy:** an update is the model now minus the model before, so whatever else wrote a parameter would be sent;
    and what a pass writes to a buffer or a frozen parameter makes later gradients depend on several examples
    (PRIVACY_RULES hazards 7 and 28). Values are compared, since a write through `.data` leaves no other trace.

    Args:
        module: The model whose parameters, trainable and frozen, and buffers are watched.
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self.remember()

    def remember(self) -> None:
        """Take the present values as those that were released."""
        self._before = {name: value.detach().clone() for name, value in _held(self._module).items()}

    def moved(self) -> list[str]:
        """Return the names of what has other values than those remembered."""
        now = _held(self._module)
        changed = [name for name, value in now.items() if not _same(value, self._before.get(name))]
        return changed + [name for name in self._before if name not in now]

    def refuse_moved(self) -> None:
        """Refuse a model of which something moved.

        Raises:
            NotPrivate: Naming what moved.
        """
        if changed := self.moved():
            raise NotPrivate(
                f"{changed} moved since the last step, and not by the optimiser: a forward pass, a hook or a callback "
                "wrote values that never went through the clip and the noise. Do not write parameters and buffers in "
                "training (Embedding(max_norm=None), no data-dependent first weights, no running statistics); load "
                "weights before optimizer.begin(memory, permit)"
            )


def _held(module: nn.Module) -> dict[str, Tensor]:
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name.removeprefix("_module."): value for name, value in named.items()}


def _same(now: Tensor, before: Tensor | None) -> bool:
    if before is None or now.shape != before.shape or now.dtype != before.dtype:
        return False
    now, before = now.detach(), before.to(now.device)
    # A NaN that was there before has not moved.
    return torch.equal(now, before) or bool(((now == before) | ((now != now) & (before != before))).all())

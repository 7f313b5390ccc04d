"""Own losses: the gradients of each example's own loss with respect to its outputs, for all examples in one map."""

from typing import Any

from torch import Tensor
from torch.func import grad, vmap

from dpcomp.training.pytorch.rows.engine import Loss
from dpcomp.training.pytorch.rows.isolated import rebuilt
from dpcomp.training.pytorch.rows.passes import Pass
from dpcomp.training.pytorch.rows.structures import columns, tensors


def own_losses(loss: Loss, one: Pass, targets: Any, copies: int) -> list[Tensor]:
    """Return the gradients of each example's own loss with respect to the outputs that a pass used.

    Args:
        loss: The mean loss of a batch.
        one: A pass that a backward pass has reached.
        targets: The targets of its examples.
        copies: Of an example in a batch of its own.

    Returns:
        An (n, …) tensor an output.

    Raises:
        ValueError: Outputs or targets have columns, which no map cuts into examples.
    """
    batch = one.outputs, targets
    if columns(batch):  # each example would get those of all
        raise ValueError("a map takes no strings")
    parts = tensors(batch)
    floating = [place for place, part in enumerate(tensors(one.outputs)) if part.is_floating_point()]
    used = [floating[number] for number in one.cotangents]
    each = [bool(part.ndim) for part in parts]

    def loss_of_one(held: list[Tensor], given: list[Tensor]) -> Tensor:
        own = dict(enumerate(given)) | dict(zip(used, held, strict=True))
        example = rebuilt(batch, [part.expand(copies, *part.shape) if each[k] else part for k, part in own.items()])
        return loss(*example)

    axes = [0 if has_axis else None for has_axis in each]
    return vmap(grad(loss_of_one), in_dims=([0] * len(used), axes))([parts[place] for place in used], parts)

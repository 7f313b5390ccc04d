"""Public rows: what can be seen of the assumption that they are fresh draws."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from dpcomp.core.errors import NotPrivate
from dpcomp.training.pytorch.rows.structures import tensors


class PublicRows:
    """Remembers the rows of public passes, and refuses those that come again, in a later step or in their pass.

    **Privacy:** public rows join the rows of examples by position. Of a public set in a fixed order, removing one
    example joins all later ones to other rows, which moves the clipped sum by more than one clip norm.
    """

    def __init__(self):
        self._seen: dict[bytes, int] = {}
        self._step = 0

    def refuse_repeated(self, calls: list[Any], *, first: bool) -> None:
        """Note the rows of a micro-batch's public passes, and refuse rows that were there before.

        Rows without floating-point values may repeat by chance, and rows that are all alike pair the same with any
        example: these are let by.

        Args:
            calls: The inputs of each pass.
            first: Whether this is the first micro-batch of its step.

        Raises:
            NotPrivate: Naming the tensor that came again.
        """
        self._step += first
        for call in calls:
            parts = [part.detach().cpu().contiguous() for part in tensors(call) if part.ndim]
            if not any(part.is_floating_point() for part in parts) or all(map(_constant, parts)):
                continue
            here: set[bytes] = set()
            for i in range(len(parts[0])):
                digest = hashlib.blake2b(digest_size=16)
                for part in parts:
                    digest.update(part[i].reshape(-1).view(torch.uint8).numpy().tobytes())
                row = digest.digest()
                step = self._seen.setdefault(row, self._step)
                if step != self._step or row in here:
                    raise NotPrivate(
                        f"row {i} of a pass in public_rows(), a tensor of shape {tuple(parts[0].shape)}, was there "
                        "before, in an earlier step or in this pass: rows of a fixed public set join other examples "
                        "where one is removed, so an example would count more than once. Draw fresh rows in each "
                        "step, as a generator does, or train on a public set in a script of its own, before "
                        "make_private"
                    )
                here.add(row)


def _constant(part: Tensor) -> bool:
    return bool((part == part[:1]).all())

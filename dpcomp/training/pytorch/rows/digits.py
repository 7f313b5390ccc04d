"""Digits: which differences between numbers their types can hold, and the same values with more of them."""

from typing import Any

import torch

from dpcomp.training.pytorch.rows.passes import Pass
from dpcomp.training.pytorch.rows.structures import mapped

LEAST = torch.finfo(torch.float32).tiny  # below it, float32 has fewer digits the smaller a number is
SHORT = (torch.float16, torch.bfloat16)


def least_difference(one: Pass) -> float:
    """Return below which difference cotangents have no more digits; a row that it moves is another by itself."""
    wide = any(part.dtype == torch.float64 for part in one.cotangents.values())
    return torch.finfo(torch.float64).tiny if wide else LEAST


def short_digits(one: Pass) -> tuple[float, float]:
    """Return the relative rounding and the smallest normal number of the 16 bits in which a loss has its outputs.

    In mixed precision it may compute in 16 bits on outputs of 32. Both numbers are 0 where nothing has 16 bits.
    """
    kinds = {part.dtype for part in one.cotangents.values()} | {one.autocast}
    short = [torch.finfo(kind) for kind in SHORT if kind in kinds]
    return max((kind.eps for kind in short), default=0.0), max((kind.tiny for kind in short), default=0.0)


def widened(value: Any) -> Any:
    """Return a structure whose floating-point tensors are of float64."""
    return mapped(lambda part: part.double() if part.is_floating_point() else part, value)

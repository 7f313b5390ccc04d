"""Distances between gradients: whether two are alike, in their own precision or in float64."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dpcomp.training.pytorch.rows.passes import floating

LARGE = 1e6  # above it, float32 may overflow in one order of the same operations and not in another
SMALL = 1e-10  # below it, the squares of what is tolerated of a norm may be zero in float32


def largest_finite(values: Tensor) -> float:
    """Return the largest magnitude among the finite values: an example that is not finite must hide nothing."""
    return float(values.detach().nan_to_num(0.0, 0.0, 0.0).abs().max()) if values.numel() else 0.0


def norm_of(parts: list[Tensor]) -> float:
    """Return the Euclidean norm of a gradient, over all its parts."""
    flat = [part.reshape(-1) for part in parts]
    squares = list(map(torch.dot, flat, flat))
    return math.sqrt(float(sum(squares[1:], squares[0]))) if squares else 0.0


def distance_of(mine: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the Euclidean norm of the difference of two gradients."""
    return norm_of([a - b for a, b in zip(mine, theirs, strict=True)])


def alike(mine: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> bool:
    """Return whether two gradients are alike in the precision in which they are given; False where that is unsure."""
    if any(a.shape != b.shape for a, b in zip(mine, theirs, strict=True)):
        return False
    own = list(theirs)
    apart = torch._foreach_sub(list(mine), own)  # pyright: ignore[reportPrivateImportUsage]
    norms = map(torch._foreach_norm, (apart, own))  # pyright: ignore[reportPrivateImportUsage]
    distance, norm = (float(torch.linalg.vector_norm(torch.stack(parts))) for parts in norms)
    # A half, since norms of float32 read low. Where each square is zero, so are both numbers.
    return SMALL <= norm < math.inf and distance <= 0.5 * tolerance * norm


def all_close(mine: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """Return whether all values are close beside the largest of the second; False where that is unsure."""
    if mine.shape != theirs.shape or not mine.numel():
        return False
    apart = float(torch.linalg.vector_norm(mine - theirs, math.inf))
    return apart <= 0.5 * tolerance * float(torch.linalg.vector_norm(theirs, math.inf)) < math.inf


def share_apart(mine: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the norm of the difference as a share of the larger norm; the clip blanks what is not finite."""
    norms = norm_of(mine), norm_of(theirs)
    if not all(map(math.isfinite, norms)):
        return 0.0 if math.isfinite(norms[0]) == math.isfinite(norms[1]) else math.inf
    apart = distance_of(mine, theirs)
    return apart / max(norms) if apart else 0.0


def distance_text(mine: list[Tensor], theirs: list[Tensor]) -> str:
    """Say how far the first is from the second."""
    apart, norm = distance_of(mine, theirs), norm_of(theirs)
    if norm == 0:
        return f"of norm {apart:.3g} where that of the example alone is zero"
    if not math.isfinite(apart):
        return "finite in one of them only"
    return f"by {apart / norm:.3g} of its norm"


def all_finite(parts: list[Tensor]) -> bool:
    """Return whether all values of a gradient are finite, and their squares too."""
    return math.isfinite(norm_of(parts))


def one_overflowed(own: Any, mine: list[Tensor], theirs: list[Tensor]) -> bool:
    """Return whether only one of two is finite, for an example whose own values are so large that both are right.

    An error would tell that the example is there (PRIVACY_RULES hazard 6). One that is not finite though its example is
    an ordinary one was mixed with others.
    """
    large = any(not torch.isfinite(part).all() or largest_finite(part) > LARGE for part in floating(own))
    return large and not (all_finite(mine) and all_finite(theirs))


def differs(mine: list[Tensor], theirs: list[Tensor], tolerance: float, floor: float) -> bool:
    """Return whether two gradients differ; where both have values that are not finite, the clip blanks both.

    A difference below the floor is none: it may be one digit of numbers that have no more, in a model that has
    diverged. The clip enlarges no row, so one that is smaller moves no sum.
    """
    norms = norm_of(mine), norm_of(theirs)
    if not all(map(math.isfinite, norms)):
        return math.isfinite(norms[0]) != math.isfinite(norms[1])
    return not distance_of(mine, theirs) <= max(tolerance * norms[1], floor)

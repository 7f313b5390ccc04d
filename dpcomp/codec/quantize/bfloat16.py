"""Steps and scales as bfloat16, the upper half of a float32: two bytes that are the same number on every machine."""

import numpy as np
from jaxtyping import Float32, Float64, UInt16

from dpcomp.core.errors import CorruptPayload

LARGEST = 0x7F7F  # the largest finite bfloat16
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def round_to_bfloat16(scales: Float64[np.ndarray, "layers"]) -> UInt16[np.ndarray, "layers"]:
    """Round each non-negative number to the nearest finite bfloat16, within 2⁻⁸ of it; return the bits as uint16."""
    words = scales.astype(np.float32).view(np.uint32)
    return np.minimum((words + 0x8000) >> 16, LARGEST).astype(np.uint16)


def round_up_to_bfloat16(steps: Float64[np.ndarray, "layers"]) -> UInt16[np.ndarray, "layers"]:
    """Round each non-negative number up to the next bfloat16, at most to the largest finite one; return the bits."""
    capped = np.minimum(steps, LARGEST_FLOAT32)
    words = capped.astype(np.float32).view(np.uint32)
    words += words.view(np.float32) < capped  # the next float32 up
    words += 0xFFFF  # carries into the upper half, if the lower one has a bit
    words >>= 16
    return np.minimum(words, LARGEST).astype(np.uint16)


def widen_bfloat16(halves: UInt16[np.ndarray, "layers"]) -> Float32[np.ndarray, "layers"]:
    """Return the float32s whose upper halves these are."""
    words = halves.astype(np.uint32)
    words <<= 16
    return words.view(np.float32)


def read_scales(side: bytes) -> Float32[np.ndarray, "layers"]:
    """Read the scale or step of each layer from side information.

    Args:
        side: Two bytes a layer, in the order of the layers: a bfloat16, the lower byte first (little-endian).

    Returns:
        (layers,) float32 scales, from 0.

    Raises:
        CorruptPayload: A scale is negative or not finite.
    """
    halves = np.frombuffer(side, dtype="<u2")
    if halves.size and np.maximum.reduce(halves) > LARGEST:
        raise CorruptPayload("a layer's scale or step is negative or not finite, which no sender writes")
    return widen_bfloat16(halves)

"""The test that all values of a vector are finite, in one pass over it."""

import numpy as np
from jaxtyping import Float

FEW = 2**16  # values up to which a flag for each, in a core's own cache, takes less time than setting how errors show


def all_finite(vector: Float[np.ndarray, "n"]) -> bool:
    """Return whether all values are finite. A sum shows it at the price of reading them, and needs no other memory."""
    if vector.size <= FEW:
        return bool(np.isfinite(vector).all())
    with np.errstate(over="ignore", invalid="ignore"):
        total = vector.sum()
    return bool(np.isfinite(total) or np.isfinite(vector).all())  # a finite vector may have an infinite sum

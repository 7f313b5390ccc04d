"""The test that all values of a vector are finite, in one pass over it."""

import numpy as np
from jaxtyping import Float


def all_finite(vector: Float[np.ndarray, "n"]) -> bool:
    """Return whether all values are finite. A sum shows it at the price of reading them, and needs no other memory."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = vector.sum()
    return bool(np.isfinite(total) or np.isfinite(vector).all())  # a finite vector may have an infinite sum

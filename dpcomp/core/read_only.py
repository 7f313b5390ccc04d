"""Read-only and immutable arrays: for what is handed to parts that others write, and for released values."""

from typing import Any

import numpy as np
from jaxtyping import Shaped


def read_only(array: Any) -> Any:
    """Return a view of a NumPy array that cannot be written to; any other value, such as None, as it is."""
    if not isinstance(array, np.ndarray):
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def immutable(array: Shaped[np.ndarray, "n"]) -> Shaped[np.ndarray, "n"]:
    """Return an array over the same memory which no flag of it, or of its base, makes writeable.

    Whoever calls this gives up the given array: what was written into it would show in the result.

    Args:
        array: A contiguous row that nobody else holds.
    """
    # By frombuffer: np.ndarray looks through a memoryview, and its base would be the array that can be written to.
    return np.frombuffer(array.data.toreadonly(), dtype=array.dtype)

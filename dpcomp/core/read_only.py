"""Read-only arrays, for what is handed to parts that others write."""

from typing import Any

import numpy as np


def read_only(array: Any) -> Any:
    """Return a view of a NumPy array that cannot be written to; any other value, such as None, as it is."""
    if not isinstance(array, np.ndarray):
        return array
    view = array.view()
    view.flags.writeable = False
    return view

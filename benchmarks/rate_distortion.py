"""Rate against distortion: what benchmarks/codec.py measured, between two limits."""

from typing import Any

import numpy as np
from jaxtyping import Float32
from matplotlib.figure import Figure

from dpcomp.update import Layout


def draw(points: list[dict[str, Any]], values: Float32[np.ndarray, "d"], layout: Layout) -> Figure:
    return Figure()

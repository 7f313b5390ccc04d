"""Selection: the positions of the largest 1 % of a long vector, in copies of the vector."""

import numpy as np
import torch

import dpcomp as dp
from benchmarks.harness.rows import Goal, Row, compared
from benchmarks.harness.turns import Effort, take_turns

COORDINATES = 10**8
FRACTION = 0.01


def selection(effort: Effort) -> list[Row]:
    """Measure `TopK.select` at 10⁸ coordinates beside a copy, torch.topk and a partition by NumPy."""
    d = effort.size(COORDINATES, 10**6)
    k = round(FRACTION * d)
    vector = np.random.default_rng(0).standard_normal(d, dtype=np.float32)
    buffer, tensor = vector.copy(), torch.from_numpy(vector)
    top, context = dp.TopK(FRACTION), dp.PublicContext(layout=dp.Layout.of(d))
    works = {
        "dpcomp": lambda: top.select(vector, dp.Everywhere(), context),
        "a copy of the vector": lambda: np.copyto(buffer, vector),
        "torch.topk, unsorted": lambda: torch.topk(tensor.abs(), k, sorted=False),
        "NumPy, argpartition": lambda: np.argpartition(np.abs(vector), d - k)[d - k :],
    }
    times = {name: [1e3 * each for each in seconds] for name, seconds in take_turns(works, effort).items()}
    ours = times.pop("dpcomp")
    return [
        compared(
            f"top-k 1 % of {d:,} coordinates",
            "ms",
            ours,
            peer,
            theirs,
            goal=Goal(most=1.5) if number == 0 else None,
        )
        for number, (peer, theirs) in enumerate(times.items())
    ]

"""Normal draws of a release: a stream cipher's, beside generators that a guesser of seeds can invert."""

import numpy as np
import torch

import dpcomp as dp
from benchmarks.harness.rows import Goal, Row, compared
from benchmarks.harness.turns import Effort, take_turns

DRAWS = 10**7


def noise(effort: Effort) -> list[Row]:
    """Measure nanoseconds a normal, in draws as large as a large model."""
    draws = effort.size(DRAWS, 10**5)
    secret, generator = dp.SecretSeed(), np.random.default_rng(0)
    works = {
        "dpcomp": lambda: secret.standard_normal(draws, "noise", 0, 0, 0, 0),
        "torch.randn, float32 (Mersenne twister)": lambda: torch.randn(draws),
        "torch.randn, float64": lambda: torch.randn(draws, dtype=torch.float64),
        "NumPy, float64 (PCG64)": lambda: generator.standard_normal(draws),
    }
    times = {name: [1e9 * each / draws for each in seconds] for name, seconds in take_turns(works, effort).items()}
    ours = times.pop("dpcomp")
    return [
        compared(
            f"noise: {draws:,} normals, float64",
            "ns",
            ours,
            peer,
            theirs,
            goal=Goal(of="figure", most=5.0) if number == 0 else None,
        )
        for number, (peer, theirs) in enumerate(times.items())
    ]

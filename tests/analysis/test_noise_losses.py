import math

import pandas as pd
import pytest

from analysis.tables.noise_losses import crossing


def energies(*, top_k, random):
    noises = (0.0, 0.25, 1.0, 4.0)
    rows = [
        {"noise_multiplier": noise, "order": order, "payload_bytes": each}
        for order, sizes in (("noise first", top_k), ("support first", random))
        for noise, each in zip(noises, sizes, strict=True)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


@pytest.mark.parametrize(
    ("top_k", "noise"),
    [
        ((100, 200, 800, 900), 0.5),  # from ½ to 2 times 400 between ¼ and 1: half-way of the logarithms
        ((100, 500, 800, 900), 0.0),
        ((500, 600, 700, 800), 0.0),
        ((100, 200, 300, 399), math.inf),
        ((100, 200, 400, 800), 1.0),
    ],
)
def test_the_noise_from_which_on_a_random_support_takes_fewer_bytes(top_k, noise):
    assert crossing(energies(top_k=top_k, random=(400,) * 4)) == pytest.approx(noise)

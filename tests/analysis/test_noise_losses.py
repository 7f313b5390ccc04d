import math

import pandas as pd
import pytest

from analysis.tables.noise_losses import CODERS, at_equal_density, crossing


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


CASE = {"task": "a", "batch": 1, "phase": "early", "seed": 0, "coordinates": 1000, "density": 0.01}
SETTING = {"order": "noise first", "trust": "nobody", "link": "uplink", "feedback": 0, "bits": 4, "kept": 10}


def coded(*, noise, index_bits, entropies, other_bits=60.0):
    """One payload: `entropies` are of the support, by layer, given the last one, and both."""
    names = ("support_entropy_bits", "support_entropy_bits_by_layer")
    names += ("conditional_entropy_bits", "conditional_entropy_bits_by_layer")
    sent = {"payload_bytes": (index_bits + other_bits) / 8, "index_bits": index_bits, "sent_overlap": 0.5}
    return CASE | SETTING | {"noise_multiplier": noise} | sent | dict(zip(names, entropies, strict=True))


def test_the_loss_of_a_coder_is_that_of_what_it_may_use():
    rows = [
        coded(noise=0.0, index_bits=20, entropies=(80, 40, 30, 20)),
        coded(noise=8.0, index_bits=90, entropies=(80, 75, 85, 90), other_bits=50.0),
    ]
    supports = [CASE | {"noise_multiplier": z, "expected_overlap": 0.5, "expected_index_bits": 4.0} for z in (0.0, 8.0)]
    table = at_equal_density(pd.DataFrame(rows), pd.DataFrame(supports)).set_index("noise_multiplier")
    assert table.loc[8.0, "loss"] == pytest.approx(100 * (1 - 80 / 140))
    # A coder that knows the last support need not use it: 80 and not 85 bits, and 75 where it knows the layers too.
    expected = {"neither": 140 / 130, "layers": 100 / 125, "memory": 90 / 130, "both": 80 / 125}
    for coder in CODERS:
        assert table.loc[8.0, f"coder_{coder}"] == pytest.approx(100 * (1 - expected[coder]))
        assert table.loc[0.0, f"coder_{coder}"] == 0

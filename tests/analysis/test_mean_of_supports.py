"""The law of a mean over supports, held against supports that are drawn."""

import numpy as np
import pytest

import dpcomp as dp
from analysis.theory.mean_of_supports import excess_second_moment

D, ROUNDS = 300, 150


def measured(k, places, rounds=ROUNDS):
    """Return the excess of means over rounds, in which each client's support is dealt to its place."""
    signal, moment = np.random.default_rng(0).standard_normal(D), 0.0
    for key in range(1, rounds + 1):
        mean = np.zeros(D)
        for place in places:
            indices = dp.Dealt(seed=key, k=k, places=(place,)).indices(D)
            mean[indices] += signal[indices] * D / (k * len(places))
        moment += mean @ mean / (signal @ signal) / rounds
    return moment - 1


def test_a_common_support():
    expected = excess_second_moment(density=0.1, clients=4, supports="common")
    assert measured(30, [0]) == pytest.approx(expected, rel=0.15)


def test_own_supports():
    together = D // 30  # places of one permutation: clients that far apart have independent ones
    expected = excess_second_moment(density=0.1, clients=4, supports="own")
    assert measured(30, [0, together, 2 * together, 3 * together]) == pytest.approx(expected, rel=0.15)


def test_dealt_supports():
    expected = excess_second_moment(density=0.1, clients=4, supports="dealt")
    assert measured(30, [0, 1, 2, 3]) == pytest.approx(expected, rel=0.15)
    assert excess_second_moment(density=0.25, clients=4, supports="dealt") == 0
    assert measured(75, [0, 1, 2, 3], rounds=10) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("wrong", [{"density": 0.0}, {"density": 1.1}, {"clients": 0}, {"density": 0.5, "clients": 3}])
def test_what_has_no_meaning_is_refused(wrong):
    with pytest.raises(ValueError, match=r"density|clients"):
        excess_second_moment(**{"density": 0.1, "clients": 2, "supports": "dealt", **wrong})

"""Poisson sampling: no unit is drawn more often than at the rate that is charged."""

import math

import numpy as np
import pytest

import dpcomp as dp


class Uniform:
    """A stream that draws chosen numbers."""

    def __init__(self, *drawn):
        self.drawn = np.array(drawn)

    def random(self, n):
        assert n == len(self.drawn)
        return self.drawn


@pytest.mark.parametrize("rate", [2.0**-40, 1e-12, 3e-10, 0.001, 0.1, 1 / 3, 0.5, 0.75, 1 - 2.0**-53, 1.0])
def test_no_more_draws_are_below_the_rate_than_its_share(rate):
    below = math.floor(rate * 2**53)  # numbers of 53 bits: as many as the rate has, rounded down
    last, first_above = (below - 1) * 2.0**-53, min(below, 2**53 - 1) * 2.0**-53
    chosen = dp.Poisson(rate).draw(2, Uniform(last, first_above))
    assert chosen.tolist() == ([0, 1] if rate == 1 else [0])
    assert below * 2.0**-53 <= rate


@pytest.mark.parametrize("rate", [5e-324, 1e-320, 1e-300, 2.0**-54, 9e-13])
def test_a_rate_that_cannot_be_drawn_is_refused(rate):
    with pytest.raises(ValueError, match=r"Poisson\(rate=.*draws have 53 bits.*give the share"):
        dp.Poisson(rate)


def test_draws_of_common_rates_are_what_they_were():
    for rate in (0.01, 0.25, 0.9):
        uniform = dp.SecretSeed(3).stream("sample").random(10_000)
        drawn = dp.Poisson(rate).draw(10_000, dp.SecretSeed(3).stream("sample"))
        np.testing.assert_array_equal(drawn, np.flatnonzero(uniform < rate))

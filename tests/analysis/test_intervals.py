import math

import numpy as np
import pytest

from analysis.measures.intervals import mean_interval


def test_the_interval_holds_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).standard_normal((4000, 3))
    held = [abs(mean) <= half for mean, half in map(mean_interval, draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


def test_one_value_has_no_interval():
    mean, half = mean_interval([2.5])
    assert mean == 2.5
    assert math.isnan(half)

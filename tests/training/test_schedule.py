"""Learning rates by round: known points of the curve, and a run that follows them."""

import math

import numpy as np
import pytest

from dpcomp.training.schedule import Cosine, public_rate, rate_of


def test_the_curve_rises_in_a_line_and_falls_along_half_a_cosine():
    curve = Cosine(peak=0.4, rounds=10, warm_up=3)
    rates = [curve.rate(number) for number in range(10)]
    np.testing.assert_allclose(rates[:4], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(rates[4:], [0.2 * (1 + math.cos(math.pi * step / 7)) for step in range(1, 7)])
    assert curve.rate(9) == curve.rate(10) == curve.rate(99) > 0


def test_without_a_warm_up_it_begins_at_its_peak():
    assert Cosine(peak=0.4, rounds=2).rate(0) == 0.4


def test_a_number_is_the_rate_of_all_rounds():
    assert rate_of(0.3, 7) == 0.3
    assert rate_of(Cosine(peak=0.3, rounds=8), 4) == pytest.approx(0.15)


def test_a_sender_is_told_the_rate_of_a_schedule_and_no_other():
    assert public_rate(0.3, 7) == 1.0
    assert public_rate(Cosine(peak=0.3, rounds=8), 4) == pytest.approx(0.15)


@pytest.mark.parametrize("wrong", [{"peak": 0.0}, {"peak": math.nan}, {"warm_up": 8}, {"warm_up": -1}, {"rounds": 0}])
def test_a_curve_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="Cosine"):
        Cosine(**{"peak": 0.1, "rounds": 8, **wrong})

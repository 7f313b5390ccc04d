"""Bounds of rates: exact where exact values are known, and covering."""

import math

import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from dpcomp.audit.bounds import Rates, lower_bounds


def rates(detections, false_alarms, runs=1000, confidence=0.99999):
    return Rates(detections=detections, false_alarms=false_alarms, runs=runs, confidence=confidence)


def test_the_bounds_are_those_of_clopper_and_pearson():
    found = rates(300, 40)
    assert found.detection_at_least == pytest.approx(beta.ppf(5e-6, 300, 701))
    assert found.false_alarm_at_most == pytest.approx(beta.ppf(1 - 5e-6, 41, 960))


def test_the_bounds_of_no_and_of_all_successes_are_those_of_the_closed_form():
    extreme = rates(1000, 0)
    assert extreme.detection_at_least == pytest.approx(5e-6 ** (1 / 1000))
    assert extreme.false_alarm_at_most == pytest.approx(1 - 5e-6 ** (1 / 1000))
    nothing = rates(0, 1000)
    assert (nothing.detection_at_least, nothing.false_alarm_at_most) == (0, 1)
    assert (nothing.mu, nothing.epsilon(1e-5)) == (0, 0)


@pytest.mark.parametrize("probability", [0.001, 0.03, 0.5, 0.97])
def test_a_bound_exceeds_the_probability_no_more_often_than_the_confidence_says(probability):
    runs = 200
    too_high = lower_bounds(runs, 0.98) > probability
    assert binom.pmf(np.arange(runs + 1), runs, probability)[too_high].sum() <= 0.01


def test_mu_and_epsilon_are_those_of_the_bounds_and_below_those_of_the_truth():
    mu, runs = 2.0, 100_000
    detections, false_alarms = (round(runs * norm.sf(threshold)) for threshold in (-1.0, 1.0))
    found = rates(detections, false_alarms, runs)
    assert 1.9 < found.mu < mu
    expected = math.log((found.detection_at_least - 1e-5) / found.false_alarm_at_most)
    assert found.epsilon(1e-5) == pytest.approx(expected)


def test_epsilon_looks_at_both_directions():
    few_missed = rates(1000, 500)
    assert few_missed.epsilon(1e-5) == pytest.approx(
        math.log((1 - few_missed.false_alarm_at_most - 1e-5) / (1 - few_missed.detection_at_least))
    )


@pytest.mark.parametrize("wrong", [{"detections": 11}, {"false_alarms": -1}, {"runs": 0}, {"confidence": 1.0}])
def test_counts_and_confidences_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"a count lies between|a probability in"):
        Rates(**{"detections": 5, "false_alarms": 5, "runs": 10, "confidence": 0.9} | wrong)

"""The score: it finds what differs, among much that does not."""

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.audit import ClaimOfReleases
from dpcomp.audit.observations import feature_matrix
from dpcomp.audit.score import trained_test

CLAIM = ClaimOfReleases(cost=dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0))).cost)
CONFIDENCE = 1 - 1e-5


def error(present, absent, test):
    """The mean of both errors on data that it was not trained on."""
    missed = 1 - test.detections(present) / len(present)
    return (missed + test.detections(absent) / len(absent)) / 2


def trained(present, absent):
    half = len(present) // 2
    test = trained_test(present[:half], absent[:half], CLAIM, CONFIDENCE)
    return test, error(present[half:], absent[half:], test)


@pytest.mark.parametrize("noise_features", [0, 100])
def test_it_comes_near_the_best_test_of_a_shifted_gaussian(noise_features):
    stream = np.random.default_rng(0)
    absent, present = stream.standard_normal((2, 2000, 10 + noise_features))
    present[:, :4] += 1.0  # μ = 2: the best test errs in 15.9 % of cases
    _, wrong = trained(present, absent)
    assert wrong < 0.2


def test_it_takes_away_noise_that_two_features_share():
    stream = np.random.default_rng(0)
    noise = stream.standard_normal((2, 400, 1))
    absent = np.concatenate([noise[0], noise[0], stream.standard_normal((400, 20))], axis=1)
    present = np.concatenate([noise[1] + 0.1, noise[1] - 0.1, stream.standard_normal((400, 20))], axis=1)
    test, wrong = trained(present, absent)
    assert wrong == 0
    assert set(test.heaviest([f"{place}" for place in range(22)], 2)) == {"0", "1"}


def test_a_constant_that_differs_in_its_last_digits_is_found_and_a_constant_is_nothing():
    absent = np.ones((400, 3))
    assert trained(absent, absent)[1] == 0.5
    present = absent + np.array([0, 1e-6, 0])
    assert trained(present, absent)[1] == 0


def test_a_rare_and_huge_value_is_found():
    stream = np.random.default_rng(0)
    absent, present = stream.standard_normal((2, 1000, 5))
    present[::5, 2] = 1e12
    assert trained(present, absent)[1] == pytest.approx(0.4, abs=0.02)


def test_values_that_are_not_finite_are_features():
    observations = {"value": np.array([[1.0, np.nan], [np.inf, 2.0]]), "length": np.array([[3.0], [4.0]])}
    names, matrix = feature_matrix(observations)
    assert names == ("value[0]", "value[1]", "length", "values that are not finite")
    assert np.isfinite(matrix).all()
    assert matrix[:, -1].tolist() == [1, 1]

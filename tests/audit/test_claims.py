"""What claims allow: the curves are those that are proven, and a right mechanism is hardly ever contradicted."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

import dpcomp as dp
from dpcomp.audit import ClaimOfGuarantee, ClaimOfReleases
from dpcomp.audit.bounds import Rates, lower_bounds

RATES = np.array([1e-4, 0.003, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])


def claim_of(noise=1.0, rate=None, steps=1):
    sampling = None if rate is None else dp.Poisson(rate)
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(noise)), sampling=sampling)
    return ClaimOfReleases(cost=pipeline.cost, steps=steps)


def unsafe_claim():
    return ClaimOfReleases(cost=dp.Pipeline(mechanism=dp.unsafe("for the test", dp.Clip(1.0))).cost)


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (2.0, 4), (0.5, 3)])
def test_the_curve_without_sampling_is_that_of_gaussian_dp(noise, steps):
    claim = claim_of(noise, steps=steps)
    charged = noise / (1 + 1e-5)  # what rounding may add to the clip norm is charged
    expected = norm.cdf(norm.ppf(RATES) + math.sqrt(steps) / charged)
    assert [claim.most_detections(rate) for rate in RATES] == pytest.approx(expected)


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.1), (0.4, 0.5), (3.0, 0.02)])
def test_the_curve_of_a_sampled_release_lies_closely_above_all_tests(noise, rate):
    thresholds = np.linspace(-2, 3, 21) * noise + 0.5
    false_alarms = norm.sf(thresholds / noise)
    detections = rate * norm.sf((thresholds - 1) / noise) + (1 - rate) * false_alarms
    allowed = np.array([claim_of(noise, rate).most_detections(each) for each in false_alarms])
    assert (allowed >= detections - 1e-12).all()
    assert (allowed <= detections + 0.01).all()


def test_more_steps_less_noise_and_more_sampling_allow_more():
    for false_alarms in (0.01, 0.2):
        allowed = [
            claim.most_detections(false_alarms)
            for claim in (claim_of(1.0, 0.1), claim_of(1.0, 0.1, 5), claim_of(0.7, 0.1, 5), claim_of(0.7, 0.3, 5))
        ]
        assert allowed == sorted(allowed)
        assert len(set(allowed)) == 4


def false_alarm_probability(claim, false_alarm_rate, runs, confidence):
    """The exact probability that an audit contradicts a claim that is as tight as it may be, at one threshold."""
    counts = np.arange(runs + 1)
    bounds = lower_bounds(runs, confidence)
    detected = binom.pmf(counts, runs, claim.most_detections(false_alarm_rate))
    alarmed = binom.pmf(counts, runs, false_alarm_rate)
    allowed = np.array([claim.most_detections(1 - bounds[runs - count]) for count in counts])
    return float(sum(p * detected[bounds > most].sum() for p, most in zip(alarmed, allowed, strict=True)))


@pytest.mark.parametrize("claim", [claim_of(1.0), claim_of(0.3), claim_of(0.5, 0.3)], ids=str)
@pytest.mark.parametrize("confidence", [0.9, 1 - 1e-5])
def test_a_claim_that_is_kept_is_contradicted_no_more_often_than_the_confidence_says(claim, confidence):
    for rate in (0.001, 0.05, 0.3, 0.6, 0.95):
        assert false_alarm_probability(claim, rate, 100, confidence) <= 1 - confidence


@pytest.mark.parametrize("claim", [claim_of(1.0), claim_of(0.5, 0.3)], ids=str)
def test_what_is_shown_exceeds_the_claim_only_if_the_counts_contradict_it(claim):
    for detections in (0, 60, 200, 350, 500):
        for false_alarms in (0, 150):
            rates = Rates(detections=detections, false_alarms=false_alarms, runs=500, confidence=0.999)
            kept = rates.detection_at_least <= claim.most_detections(rates.false_alarm_at_most)
            if kept:
                assert claim.shown_epsilon(rates, 1e-5) <= claim.epsilon(1e-5)
            elif claim.cost.sampling == "none":
                assert claim.shown_epsilon(rates, 1e-5) > claim.epsilon(1e-5)


def test_many_runs_show_nearly_what_is_claimed():
    claim, runs = claim_of(1.0), 10**6
    detections, false_alarms = (round(runs * norm.sf(threshold)) for threshold in (-0.5, 0.5))
    rates = Rates(detections=detections, false_alarms=false_alarms, runs=runs, confidence=1 - 1e-5)
    assert 0.95 * claim.epsilon(1e-5) < claim.shown_epsilon(rates, 1e-5) <= claim.epsilon(1e-5)


def test_a_mechanism_without_a_guarantee_claims_nothing_that_could_be_contradicted():
    claim = unsafe_claim()
    assert claim.epsilon(1e-5) == math.inf
    assert claim.most_detections(0.0) == 1
    rates = Rates(detections=500, false_alarms=0, runs=500, confidence=0.999)
    assert claim.shown_epsilon(rates, 1e-5) == rates.epsilon(1e-5)


def test_a_guarantee_allows_what_epsilon_and_delta_allow():
    guarantee = claim_of(1.0).cost.guarantee(1, 1e-5)
    claim = ClaimOfGuarantee(guarantee=guarantee)
    more = math.exp(guarantee.epsilon)
    assert claim.most_detections(1e-3) == pytest.approx(more * 1e-3 + 1e-5)
    assert claim.most_detections(0.5) == pytest.approx(1 - (0.5 - 1e-5) / more)
    for rate in RATES:  # a point of the curve says less than the whole
        assert claim.most_detections(rate) >= claim_of(1.0).most_detections(rate)
    with pytest.raises(ValueError, match="audit at the guarantee's δ"):
        claim.epsilon(1e-6)


def test_no_step_is_nothing_to_audit():
    with pytest.raises(ValueError, match="nothing to audit"):
        claim_of(steps=0)

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from analysis.theory.remote_rate import RemoteSource

LAYERS = RemoteSource(
    variances=(4.0, 1.0, 0.25, 0.01), noise_variances=(1.0, 1.0, 0.5, 1.0), sizes=(100, 1000, 50, 5000)
)


def test_one_layer_is_the_closed_form():
    source, s2, sigma2 = RemoteSource(variances=(2.0,), noise_variances=(3.0,), sizes=(7,)), 2.0, 3.0
    estimate, floor = s2**2 / (s2 + sigma2), s2 * sigma2 / (s2 + sigma2)
    for rate in (0.0, 0.1, 1.0, 6.0):
        assert source.distortion(rate) == pytest.approx(floor + estimate * 4**-rate, rel=1e-12)
    assert source.noise_floor == pytest.approx(floor)


def test_without_noise_it_is_the_gaussian_source_itself():
    source = RemoteSource(variances=(2.0,), noise_variances=(0.0,), sizes=(7,))
    assert source.noise_floor == 0
    assert source.distortion(1.5) == pytest.approx(2.0 / 8)
    assert source.rate(0.25) == pytest.approx(1.5)
    assert source.rate(0.0) == math.inf


@pytest.mark.parametrize("rate", [0.0, 1e-4, 0.01, 0.1, 0.5, 2.0, 8.0])
def test_rate_and_distortion_are_inverse(rate):
    assert LAYERS.rate(LAYERS.distortion(rate)) == pytest.approx(rate, rel=1e-6, abs=1e-12)
    shares = np.array(LAYERS.sizes) / sum(LAYERS.sizes)
    assert shares @ LAYERS.layer_rates(rate) == pytest.approx(rate, abs=1e-12)


def test_the_ends_of_the_curve():
    shares = np.array(LAYERS.sizes) / sum(LAYERS.sizes)
    variance = shares @ np.array(LAYERS.variances)
    assert LAYERS.distortion(0.0) == pytest.approx(variance)
    assert LAYERS.rate(2 * variance) == 0
    assert LAYERS.distortion(30.0) == pytest.approx(LAYERS.noise_floor, rel=1e-12)
    rates = np.linspace(0, 3, 40)
    distortions = [LAYERS.distortion(float(rate)) for rate in rates]
    assert (np.diff(distortions) < 0).all() and (np.diff(distortions, n=2) > 0).all()


@pytest.mark.parametrize("rate", [0.02, 0.2, 1.0])
def test_no_other_division_of_the_rate_is_better(rate):
    shares = np.array(LAYERS.sizes) / sum(LAYERS.sizes)
    variances, noises = np.array(LAYERS.variances), np.array(LAYERS.noise_variances)
    estimates = variances**2 / (variances + noises)
    computed = minimize(
        lambda rates: shares @ (estimates * 4.0**-rates),
        x0=np.full(4, rate),
        bounds=[(0, None)] * 4,
        constraints={"type": "eq", "fun": lambda rates: shares @ rates - rate},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert LAYERS.distortion(rate) - LAYERS.noise_floor == pytest.approx(computed.fun, rel=1e-5)
    assert LAYERS.distortion(rate) - LAYERS.noise_floor <= computed.fun * (1 + 1e-9)


def test_a_test_channel_after_the_estimate_has_the_error_that_is_promised():
    s2, sigma2, rate, n = 1.5, 2.5, 0.7, 10**6
    source, draws = RemoteSource(variances=(s2,), noise_variances=(sigma2,), sizes=(1,)), np.random.default_rng(0)
    clean = draws.normal(scale=math.sqrt(s2), size=n)
    estimate = (clean + draws.normal(scale=math.sqrt(sigma2), size=n)) * s2 / (s2 + sigma2)
    kept = 1 - 4**-rate
    coded = kept * estimate + draws.normal(scale=math.sqrt(estimate.var() * kept * (1 - kept)), size=n)
    bits = -math.log2(1 - np.corrcoef(estimate, coded)[0, 1] ** 2) / 2
    assert bits == pytest.approx(rate, abs=0.005)
    errors = (clean - coded) ** 2
    assert abs(errors.mean() - source.distortion(rate)) < 4.5 * errors.std() / math.sqrt(n)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: RemoteSource(variances=(), noise_variances=(), sizes=()), "one or more layers"),
        (lambda: RemoteSource(variances=(1.0,), noise_variances=(1.0, 1.0), sizes=(1,)), "each of"),
        (lambda: RemoteSource(variances=(0.0,), noise_variances=(1.0,), sizes=(1,)), "positive"),
        (lambda: RemoteSource(variances=(1.0,), noise_variances=(math.inf,), sizes=(1,)), "finite"),
        (lambda: LAYERS.distortion(-1.0), "rate = -1"),
        (lambda: LAYERS.layer_rates(math.inf), "floor"),
        (lambda: LAYERS.rate(0.0), "below"),
    ],
)
def test_impossible_values_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()

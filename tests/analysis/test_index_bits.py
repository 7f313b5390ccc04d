import math

import numpy as np
import pytest
from scipy.special import gammaln, ndtr
from scipy.stats import entropy

from analysis.theory.index_bits import (
    binary_entropy,
    dithered_excess_bits,
    efficiency_loss,
    noise_floor_rate,
    prediction_bits,
    temporal_index_bits,
)


def log2_binomial(n, k):
    return (gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)) / math.log(2)


@pytest.mark.parametrize("density", [1e-4, 0.01, 0.1, 0.5, 0.8])
def test_a_random_support_costs_its_number_of_possibilities(density):
    d = 10**9
    k = round(density * d)
    assert temporal_index_bits(density=density, overlap=density) == pytest.approx(log2_binomial(d, k) / k, rel=1e-4)


@pytest.mark.parametrize("overlap", [0.0, 0.01, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("density", [1e-3, 0.01, 0.1, 0.5])
def test_a_support_beside_the_last_costs_what_stays_and_what_comes(density, overlap):
    d = 10**9
    k = round(density * d)
    stays = round(overlap * k)
    counted = (log2_binomial(k, stays) + log2_binomial(d - k, k - stays)) / k
    assert temporal_index_bits(density=density, overlap=overlap) == pytest.approx(counted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("density", [1e-3, 0.01, 0.1, 0.6])
def test_at_chance_the_last_support_is_worth_nothing_and_anywhere_else_something(density):
    chance = binary_entropy(density) / density
    assert temporal_index_bits(density=density, overlap=density) == pytest.approx(chance, rel=1e-12)
    for overlap in np.linspace(max(0.0, 2 - 1 / density) + 1e-9, 1, 50):
        assert temporal_index_bits(density=density, overlap=float(overlap)) <= chance * (1 + 1e-12)


def test_the_loss_of_a_pattern_that_becomes_random():
    loss = efficiency_loss(density=0.01, value_bits=8, overlap=0.8, noisy_overlap=0.01)
    assert round(100 * loss, 1) == 32.8
    by_hand = 1 - (8 + temporal_index_bits(density=0.01, overlap=0.8)) / (8 + binary_entropy(0.01) / 0.01)
    assert loss == pytest.approx(by_hand, rel=1e-12)


def test_the_loss_grows_as_the_noise_takes_the_overlap():
    losses = [
        efficiency_loss(density=0.01, value_bits=4, overlap=0.9, noisy_overlap=float(overlap))
        for overlap in np.linspace(0.9, 0.01, 30)
    ]
    assert losses[0] == 0
    assert (np.diff(losses) > 0).all()
    assert efficiency_loss(density=0.01, value_bits=4, overlap=0.5, noisy_overlap=0.9) < 0
    assert efficiency_loss(density=0.01, value_bits=0, overlap=1.0, noisy_overlap=1.0) == 0


def test_the_noise_floor_rate_times_d_has_a_limit_of_order_n():
    n, eta, z = 100, 0.1, 2.0
    bits = [
        d * noise_floor_rate(clients=n, noise_share=eta, noise_multiplier=z, coordinates=d)
        for d in (10**3, 10**5, 10**8)
    ]
    limit = n / (2 * math.log(2) * eta * z**2)
    assert bits == sorted(bits)
    assert bits[-1] == pytest.approx(limit, rel=1e-4)
    assert noise_floor_rate(clients=1, noise_share=1, noise_multiplier=1, coordinates=1) == 0.5


@pytest.mark.parametrize("eta", [0.01, 0.3, 2.0])
def test_dithered_quantisation_that_hides_under_the_noise_takes_the_noise_floor_rate(eta):
    """The error of n clients' sum is η of its noise; the entropy of a level, its dither known, is within 0.255 bits."""
    n, d, z, rounds = 8, 16, 1.5, 20_000
    draws = np.random.default_rng(0)
    clients = draws.standard_normal((n, rounds * d)) / math.sqrt(d)  # of norm 1, as after a clip to 1
    step = math.sqrt(12 * eta * z**2 / n)
    dither = draws.uniform(-0.5, 0.5, size=clients.shape)
    errors = (step * (np.rint(clients / step + dither) - dither) - clients).sum(axis=0)
    assert errors.var() == pytest.approx(eta * z**2, rel=0.02)
    dithers = (np.arange(400) + 0.5) / 400 - 0.5
    edges = (np.arange(-200, 201) + 0.5 - dithers[:, None]) * step * math.sqrt(d)
    bits = entropy(np.diff(ndtr(edges), axis=1), base=2, axis=1).mean()
    rate = noise_floor_rate(clients=n, noise_share=eta, noise_multiplier=z, coordinates=d)
    assert rate < bits < rate + 0.255


def test_the_excess_of_a_dithered_quantiser_is_that_of_its_levels():
    """Levels are counted for 400 dithers, and not integrated over X + U."""
    dithers = (np.arange(400) + 0.5) / 400 - 0.5
    for ratio in (4e-4, 0.1, 10.0):
        edges = (np.arange(-40, 41) + 0.5 - dithers[:, None]) / math.sqrt(ratio / 12)
        bits = entropy(np.diff(ndtr(edges), axis=1), base=2, axis=1).mean()
        found = dithered_excess_bits(signal_to_error=ratio)
        assert found == pytest.approx(bits - math.log2(1 + ratio) / 2, rel=0.03)
        assert 0 < found < 0.2547


@pytest.mark.parametrize(("snr", "clients", "correlation"), [(10.0, 5, 0.9), (1.0, 5, 1.0), (0.1, 50, 0.8)])
def test_a_predicted_update_leaves_the_innovation_that_was_predicted(snr, clients, correlation):
    rng, d = np.random.default_rng(0), 400_000
    last = rng.standard_normal(d)
    now = correlation * last + math.sqrt(1 - correlation**2) * rng.standard_normal(d)
    update = now + rng.standard_normal(d) / math.sqrt(snr)
    broadcast = last + rng.standard_normal(d) / math.sqrt(snr * clients)
    gain = update @ broadcast / (broadcast @ broadcast)
    saved = math.log2(np.var(update) / np.var(update - gain * broadcast)) / 2
    assert saved == pytest.approx(
        prediction_bits(snr=snr, clients=clients, correlation=correlation), abs=4 / math.sqrt(d)
    )


def test_where_noise_rules_prediction_saves_by_the_square_of_the_snr():
    saved = [prediction_bits(snr=snr, clients=10) for snr in (1e-4, 1e-3)]
    assert saved[1] / saved[0] == pytest.approx(100, rel=0.02)
    assert prediction_bits(snr=0.0, clients=10) == 0
    assert prediction_bits(snr=math.inf, clients=10, correlation=0.5) == pytest.approx(math.log2(4 / 3) / 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: binary_entropy(1.1), "1.1"),
        (lambda: temporal_index_bits(density=0.0, overlap=0.5), "density"),
        (lambda: temporal_index_bits(density=0.1, overlap=1.2), "overlap = 1.2"),
        (lambda: temporal_index_bits(density=0.8, overlap=0.5), "0.75"),
        (lambda: efficiency_loss(density=0.1, value_bits=-1, overlap=0.5, noisy_overlap=0.1), "value_bits = -1"),
        (lambda: noise_floor_rate(clients=1, noise_share=0, noise_multiplier=1, coordinates=1), "noise_share = 0"),
        (lambda: dithered_excess_bits(signal_to_error=0.0), "signal_to_error = 0"),
        (lambda: prediction_bits(snr=-1, clients=3), "snr = -1"),
        (lambda: prediction_bits(snr=math.inf, clients=3), "finite snr"),
    ],
)
def test_impossible_values_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()

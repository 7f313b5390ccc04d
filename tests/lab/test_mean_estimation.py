import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from scipy.integrate import quad
from scipy.stats import norm

from dpcomp.core.errors import ConfigError
from dpcomp.core.randomness import PublicSeed, SecretSeed
from dpcomp.lab.cli import main
from dpcomp.lab.mean_estimation.measure import measure_all, measured
from dpcomp.lab.mean_estimation.method import Round
from dpcomp.lab.mean_estimation.methods import METHODS
from dpcomp.lab.mean_estimation.methods.csgm import Csgm, SampledCoordinates
from dpcomp.lab.mean_estimation.methods.eden import Eden, lloyd_max
from dpcomp.lab.mean_estimation.methods.exact_noise import ExactNoise
from dpcomp.lab.mean_estimation.methods.gaussian import GaussianFloat32
from dpcomp.lab.mean_estimation.methods.noisy_sign import NoisySign
from dpcomp.lab.mean_estimation.methods.sqkr import Sqkr
from dpcomp.lab.mean_estimation.poisson_private import poisson_private_bits
from dpcomp.lab.mean_estimation.setting import INPUTS, SIGNS, VALUES, Setting
from dpcomp.lab.mean_estimation.table import PPR, frame_of

# Few clients and many rounds: averages over rounds show a wrong scale or a bias within a second a method.
CLIENTS, DIMENSIONS, ROUNDS = 3, 256, 50
SETTING = Setting(clients=CLIENTS, dimensions=DIMENSIONS, epsilon=8.0)
VECTORS = VALUES.vectors(SETTING, seed=0)

# One of each class, at the number where most can be wrong; `make test-slow` takes all.
CHOSEN = ("Gaussian, float32", "EDEN, 2 bits", "DRIVE, 1 bit", "own mask, float32, k = 10", "own mask, DRIVE, k = 64")
CHOSEN += ("own mask, noisy sign, k = 8", "CSGM, γ = 0.2")
FAMILIES = [method.family for method in METHODS]


def with_slow(methods):
    return [
        pytest.param(
            method,
            marks=[] if method.name in CHOSEN or FAMILIES.count(method.family) == 1 else [pytest.mark.slow],
            id=named(method),
        )
        for method in methods
    ]


def named(method):
    return f"{method.trust}-{method.name}" if hasattr(method, "trust") else None


def estimates(method, setting, vectors, rounds):
    plan = method.plan(setting)
    for number in range(rounds):
        round = Round(plan=plan, number=number, seed=PublicSeed(1), secret=SecretSeed(1))
        yield method.decode([method.encode(vector, client, round) for client, vector in enumerate(vectors)], round)


@pytest.mark.parametrize("method", with_slow(METHODS))
def test_the_squared_error_is_that_of_the_closed_form(method):
    found = measured(method, SETTING, VECTORS, rounds=ROUNDS, seed=0)
    # A sum of d squares has the relative spread √(2/d).
    assert np.mean(found.errors) == pytest.approx(found.expected_error, rel=5 * math.sqrt(2 / DIMENSIONS / ROUNDS))


@pytest.mark.parametrize("method", with_slow(method for method in METHODS if method.unbiased))
def test_the_estimate_is_unbiased_where_that_is_claimed(method):
    setting = replace(SETTING, epsilon=40.0)  # with less noise, a bias shows
    vectors, plan = SIGNS.vectors(setting, seed=0), method.plan(setting)
    mean = vectors.mean(axis=0)
    share = np.mean([mean @ estimate / (mean @ mean) for estimate in estimates(method, setting, vectors, 20)])
    spread = math.sqrt(method.expected_error(vectors, plan) / DIMENSIONS / 20) / np.linalg.norm(mean)
    assert spread < 0.12  # of its own mask of two coordinates; of most others far less
    assert share == pytest.approx(1, abs=max(4 * spread, 1e-6))


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_a_vector_outside_the_ball_moves_no_more_than_one_in_it(method):
    vectors = SIGNS.vectors(SETTING, seed=0)  # norm 1, and √(k/d) on any k coordinates
    (inside,) = estimates(method, SETTING, vectors, 1)
    (outside,) = estimates(method, SETTING, 1000 * vectors, 1)
    np.testing.assert_allclose(outside, inside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_the_guarantee_reaches_the_epsilon_that_was_asked_for(method):
    guarantee = method.plan(SETTING).guarantee
    assert 0.994 * SETTING.epsilon < guarantee.epsilon <= SETTING.epsilon
    assert guarantee.delta == SETTING.delta
    assert guarantee.trust == method.trust


def test_methods_with_noise_at_the_client_have_that_of_the_analytic_gaussian():
    z, epsilon = GaussianFloat32(trust="nobody").plan(SETTING).noise_multiplier, SETTING.epsilon
    # Balle & Wang 2018, Theorem 8.
    delta = norm.cdf(1 / (2 * z) - epsilon * z) - math.exp(epsilon) * norm.cdf(-1 / (2 * z) - epsilon * z)
    assert 0.95 * SETTING.delta < delta < SETTING.delta
    local = [method for method in METHODS if method.trust == "nobody" and not isinstance(method, Sqkr)]
    assert {method.plan(SETTING).noise_multiplier for method in local} == {z}


def test_noise_of_clients_errors_is_accounted_without_one_clients_share():
    noise = ExactNoise().plan(SETTING).noise_multiplier
    whole = GaussianFloat32(trust="server").plan(SETTING).noise_multiplier
    assert noise * math.sqrt(1 - 1 / CLIENTS) == pytest.approx(whole, rel=0.005)


@pytest.mark.parametrize("rate", [0.05, 0.4, 1.0])
def test_csgm_is_accounted_as_a_sampled_gaussian_of_every_coordinate(rate):
    setting = replace(SETTING, epsilon=1.0)
    noise = Csgm(rate=rate).plan(setting).noise_multiplier
    peer = PLDAccountant(value_discretization_interval=1e-4)
    peer.compose(SampledCoordinates(rate=rate, dimensions=DIMENSIONS)(noise))
    assert peer.get_epsilon(setting.delta) == pytest.approx(setting.epsilon, rel=0.01)
    if rate == 1:  # all coordinates, each with sensitivity 1/√d: the Gaussian mechanism
        whole = GaussianFloat32(trust="server").plan(setting).noise_multiplier
        assert noise == pytest.approx(whole * math.sqrt(DIMENSIONS), rel=0.005)


def test_csgm_adds_a_client_to_a_coordinate_with_its_rate_and_no_more_than_the_accounted_size():
    setting, method = replace(SETTING, clients=1), Csgm(rate=0.2)
    round = Round(plan=method.plan(setting), number=0, seed=PublicSeed(0), secret=SecretSeed(0))
    silent = replace(round, plan=replace(round.plan, noise_multiplier=0.0))
    moved = []
    for number in range(50):
        here = replace(silent, number=number)
        moved.append(method.decode([method.encode(np.ones(DIMENSIONS), 0, here)], here) * method.rate)
    moved = np.array(moved)
    assert set(np.unique(np.abs(moved)).round(6)) == {0.0, round_to(1 / math.sqrt(DIMENSIONS))}
    assert (moved != 0).mean() == pytest.approx(method.rate, abs=5 * math.sqrt(0.16 / moved.size))


def round_to(value):
    return float(np.round(value, 6))


def test_sqkr_sends_each_string_with_the_probability_that_epsilon_allows():
    setting = Setting(clients=1, dimensions=2, epsilon=1.5)  # two bits, of two coordinates
    method, vector = Sqkr(), np.full(2, 1 / math.sqrt(2))
    plan = method.plan(setting)
    draws = 1000
    bodies = [
        method.encode(vector, 0, Round(plan=plan, number=number, seed=PublicSeed(0), secret=SecretSeed(0)))
        for number in range(draws)
    ]
    found = np.bincount([body[0] >> 6 for body in bodies], minlength=4) / draws
    truth = math.exp(1.5) / (math.exp(1.5) + 3)
    expected = np.array([(1 - truth) / 3] * 3 + [truth])
    assert math.log(expected.max() / expected.min()) == pytest.approx(plan.guarantee.epsilon)
    assert np.abs(found - expected).max() < 5 * math.sqrt(0.25 / draws)


def test_the_centroids_are_those_of_max():
    for bits, distortion in ((1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)):  # Max 1960, Table I
        borders, centroids = lloyd_max(bits)
        edges = np.array([-math.inf, *borders, math.inf])
        assert 1 - np.square(centroids) @ np.diff(norm.cdf(edges)) == pytest.approx(distortion, rel=1e-3)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Eden(bits=3), 4 + 3 * 256 // 8),
        (NoisySign(), 256 // 8),
        (NoisySign(kept=8), 1),
        (GaussianFloat32(trust="server"), 4 * 256),
    ],
    ids=named,
)
def test_the_bytes_are_those_of_a_body(method, expected):
    assert measured(method, SETTING, VECTORS, rounds=1, seed=0).payload_bytes == expected


def test_the_bound_of_ppr_follows_from_its_divergence():
    setting = Setting(clients=500, dimensions=1000, epsilon=1.0)
    plan = GaussianFloat32(trust="server").plan(setting)
    spread = plan.noise_multiplier / math.sqrt(500)
    sent, proposed = norm(1 / math.sqrt(1000), spread), norm(0, math.hypot(spread, 1 / math.sqrt(1000)))
    nats, _ = quad(lambda x: sent.pdf(x) * (sent.logpdf(x) - proposed.logpdf(x)), -10 * spread, 10 * spread)
    index = 1000 * nats / math.log(2) + math.log2(3.56) / 0.5
    assert poisson_private_bits(plan) == pytest.approx(index + math.log2(index + 1) + 2, rel=1e-3)


@pytest.mark.parametrize("inputs", INPUTS, ids=lambda inputs: inputs.name)
def test_the_vectors_lie_in_the_ball_and_are_flat(inputs):
    vectors = inputs.vectors(SETTING, seed=0)
    assert np.linalg.norm(vectors, axis=1).max() <= 1 + 1e-12
    assert np.abs(vectors).max() <= 1 / math.sqrt(DIMENSIONS) + 1e-12
    assert np.linalg.norm(vectors.mean(axis=0)) > 0.3


def test_results_are_kept_and_another_benchmarks_are_refused(tmp_path):
    path, small = tmp_path / "results.jsonl", Setting(clients=2, dimensions=64, epsilon=1.0)
    methods = (GaussianFloat32(trust="server"), NoisySign())
    first = measure_all(path, methods, [small], [SIGNS], rounds=2, seed=0)
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    again = measure_all(path, methods, [small], [SIGNS], rounds=2, seed=0)
    assert path.read_text().splitlines() == lines
    assert [dict(report) for report in again] == [json.loads(json.dumps(dict(report))) for report in first]
    with pytest.raises(ConfigError, match="made in another way"):
        measure_all(path, methods, [small], [SIGNS], rounds=3, seed=0)
    with pytest.raises(ValueError, match="one name and trust"):
        measure_all(path, (NoisySign(), NoisySign()), [small], [SIGNS], rounds=2, seed=0)
    frame = frame_of(first)
    assert list(frame["method"]) == ["Gaussian, float32", PPR, "noisy sign"]
    assert list(frame["ratio"][:2]) == [1, 1]  # of the same noise
    assert list(frame["computed"]) == [False, True, False]


def test_the_same_seed_gives_the_same_errors():
    one, other, third = (measured(NoisySign(), SETTING, VECTORS, rounds=2, seed=seed).errors for seed in (0, 0, 1))
    assert one == other != third


@pytest.mark.parametrize(
    "wrong", [{"clients": 0}, {"dimensions": 0}, {"epsilon": 0.0}, {"epsilon": math.nan}, {"delta": 1.0}]
)
def test_a_setting_without_meaning_is_refused(wrong):
    with pytest.raises(ValueError):
        replace(SETTING, **wrong)


@dataclass(frozen=True, kw_only=True)
class Zero(NoisySign):
    """Estimates zero, whatever is sent."""

    def decode(self, bodies, round):
        return np.zeros(round.plan.setting.dimensions)


def test_the_closed_form_test_notices_a_method_that_guesses():
    found = measured(Zero(), SETTING, VECTORS, rounds=2, seed=0)
    assert np.mean(found.errors) < 0.1 * found.expected_error


@pytest.mark.slow
def test_the_command_prints_a_table_and_draws_the_figure(tmp_path, capsys):
    sizes = ["--clients", "5", "--dimensions", "256", "--epsilons", "1", "8", "--rounds", "2"]
    assert main(["benchmark", "mean-estimation", *sizes, "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for method in METHODS:
        assert method.name in printed
    assert (tmp_path / "mean_estimation.png").stat().st_size > 10_000
    assert len((tmp_path / "mean_estimation.jsonl").read_text().splitlines()) == 2 * 2 * len(METHODS)

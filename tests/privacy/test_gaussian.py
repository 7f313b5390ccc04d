"""The noise of a release: Gaussian of the right size, added once, and never the same twice."""

import itertools

import numpy as np
import pytest
from scipy.stats import kstest

import dpcomp as dp

Z, C = 1.3, 0.5
PIPELINE = dp.Pipeline(mechanism=(dp.Clip(C), dp.Gaussian(Z)))
MASKED = dp.Pipeline(mechanism=(dp.RandomK(0.25), dp.Clip(C), dp.Gaussian(Z)))


GOLDEN_NOISE = ["0x1.01efee0000000p-1", "0x1.0cce6e0000000p-1", "-0x1.7dab860000000p-1"]


def memory_of(pipeline, d, client=4, run=9):
    return pipeline.init_client(d, seed=dp.PublicSeed(run), client=client)


def pure_noise(secret, d, *, client=4, run=9, round_number=0, steps=1):
    """What each step of one charge releases from nothing."""
    memory, ledger = memory_of(PIPELINE, d, client, run), dp.Ledger()
    permit = ledger.charge(PIPELINE.cost, dp.Address(run, client, round_number), steps)
    return [PIPELINE.noise(PIPELINE.empty_total(memory), memory, secret, permit).values for _ in range(steps)]


@pytest.mark.parametrize(("pipeline", "d"), [(PIPELINE, 10**6), (MASKED, 4 * 10**6)], ids=["everywhere", "masked"])
def test_noise_is_normal_with_the_multiplier_times_the_norm(pipeline, d):
    memory = memory_of(pipeline, d)
    update = pipeline.release([], memory, dp.SecretSeed(), dp.Ledger().charge(pipeline.cost, memory.address))
    assert len(update.values) == 10**6
    assert kstest(update.values.astype(np.float64), "norm", args=(0, Z * C)).pvalue > 1e-6


def test_no_two_steps_clients_rounds_or_runs_share_noise():
    d, secret = 50_000, dp.SecretSeed(11)
    draws = pure_noise(secret, d, steps=2)
    draws += pure_noise(secret, d, round_number=1, steps=2)
    draws += pure_noise(secret, d, client=5)
    draws += pure_noise(secret, d, run=10)
    draws += pure_noise(dp.SecretSeed(12), d)
    assert len(draws) == 7
    for one, other in itertools.combinations(draws, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 6 / np.sqrt(d)
        # By chance about one float32 normal in 10⁷ equals another.
        assert np.count_nonzero(one == other) <= 2


def test_unseeded_noise_is_fresh_even_at_one_address():
    d, secret = 50_000, dp.SecretSeed()
    (one,), (other,) = pure_noise(secret, d), pure_noise(secret, d)
    assert abs(np.corrcoef(one, other)[0, 1]) < 6 / np.sqrt(d)
    assert np.count_nonzero(one == other) <= 4


def test_seeded_noise_repeats_at_one_address_and_step():
    first, second = pure_noise(dp.SecretSeed(3), 1000, steps=2), pure_noise(dp.SecretSeed(3), 1000, steps=2)
    np.testing.assert_array_equal(first, second)


def test_seeded_noise_is_the_same_for_ever():
    (values,) = pure_noise(dp.SecretSeed(3), 3)
    assert [value.hex() for value in values.tolist()] == GOLDEN_NOISE


def test_a_release_is_the_total_and_the_noise_rounded_once():
    d, secret, ledger = 1000, dp.SecretSeed(5), dp.Ledger()
    memory = memory_of(PIPELINE, d)
    total = PIPELINE.clip(np.random.default_rng(0).standard_normal((300, d)), memory)  # in float64, as it stays
    update = PIPELINE.noise(total, memory, secret, ledger.charge(PIPELINE.cost, memory.address))
    normal = secret.stream("noise", 9, 4, 0, 0).standard_normal(d)
    expected = total.vector() + Z * C * normal
    np.testing.assert_array_equal(update.values, expected.astype(np.float32))
    assert update.values.dtype == np.float32
    assert update.claim == PIPELINE.claim
    assert update.address == memory.address


def test_the_noise_does_not_depend_on_the_total():
    d, memory = 200, memory_of(PIPELINE, 200)
    rows = np.random.default_rng(0).standard_normal((5, d)).astype(np.float32)
    released = []
    for blocks in ([], [rows]):
        permit = dp.Ledger().charge(PIPELINE.cost, memory.address)
        released.append(PIPELINE.release(blocks, memory, dp.SecretSeed(6), permit).values.astype(np.float64))
    total = PIPELINE.clip(rows, memory).vector()
    np.testing.assert_allclose(released[1] - released[0], total, atol=1e-6)


@pytest.mark.parametrize("blocks", [[], [np.zeros((0, 8), np.float32)], [np.zeros((3, 8), np.float32)]])
def test_an_empty_batch_and_one_of_zeros_release_the_same_pure_noise(blocks):
    memory = memory_of(PIPELINE, 8)
    update = PIPELINE.release(blocks, memory, dp.SecretSeed(3), dp.Ledger().charge(PIPELINE.cost, memory.address))
    (nothing,) = pure_noise(dp.SecretSeed(3), 8)
    np.testing.assert_array_equal(update.values, nothing)
    assert np.count_nonzero(update.values) == 8


def test_noise_stands_on_the_public_support_alone():
    memory = memory_of(MASKED, 40)
    ones = np.ones((2, 40), np.float32)
    update = MASKED.release([ones], memory, dp.SecretSeed(), dp.Ledger().charge(MASKED.cost, memory.address))
    assert update.support == MASKED.stages[0].public_support(MASKED.channel.context(memory))
    np.testing.assert_array_equal(np.flatnonzero(update.dense()), update.support.indices(40))


def test_added_noise_is_scaled_by_the_multiplier_and_the_norm():
    added = dp.Gaussian(2.0).add(np.array([1.0, -1.0]), np.array([0.5, 3.0]), 4.0)
    np.testing.assert_array_equal(added, [5.0, 23.0])


@pytest.mark.parametrize("noise_multiplier", [-0.1, float("nan"), float("inf")])
def test_a_noise_multiplier_is_finite_and_not_negative(noise_multiplier):
    with pytest.raises(ValueError, match="noise multiplier"):
        dp.Gaussian(noise_multiplier)


@pytest.mark.parametrize("wrong", ["1", None, True])
def test_a_noise_multiplier_or_a_rate_that_is_no_number_is_refused_by_name(wrong):
    with pytest.raises(
        TypeError, match=r"Gaussian\(noise_multiplier\) is .*: give 0, or a number from 1e-09 to 1e\+09"
    ):
        dp.Gaussian(wrong)
    with pytest.raises(TypeError, match=r"Poisson\(rate\) is .*: give a probability above 0, up to 1"):
        dp.Poisson(wrong)

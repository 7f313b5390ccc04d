"""The noise of a release: Gaussian of the right size, added once, and never the same twice."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

import dpcomp as dp
from dpcomp.privacy.gaussian import LARGEST_STDDEV, SMALLEST_STDDEV, on_public_grid, public_grid

Z, C = 1.3, 0.5
PIPELINE = dp.Pipeline(mechanism=(dp.Clip(C), dp.Gaussian(Z)))
MASKED = dp.Pipeline(mechanism=(dp.RandomK(0.25), dp.Clip(C), dp.Gaussian(Z)))


GOLDEN_NOISE = ["0x1.3393300000000p-1", "0x1.38e3000000000p-3", "-0x1.2a31000000000p-4"]
GRID = 2.0**-1 * 2.0**-20  # of σ = 0.65


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


def test_a_release_is_the_total_and_the_noise_on_the_public_grid():
    d, secret, ledger = 1000, dp.SecretSeed(5), dp.Ledger()
    memory = memory_of(PIPELINE, d)
    total = PIPELINE.clip(np.random.default_rng(0).standard_normal((300, d)), memory)  # in float64, as it stays
    update = PIPELINE.noise(total, memory, secret, ledger.charge(PIPELINE.cost, memory.address))
    normal = secret.standard_normal(d, "noise", 9, 4, 0, 0)
    expected = total.vector() + Z * C * normal
    np.testing.assert_array_equal(update.values, (np.rint(expected / GRID) * GRID).astype(np.float32))
    before = expected.astype(np.float32)  # as it was released without the grid
    assert (np.abs(update.values - before.astype(np.float64)) <= GRID / 2 + np.spacing(np.abs(before))).all()
    assert update.noise_stddev == Z * C
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


STDDEVS = st.floats(SMALLEST_STDDEV, LARGEST_STDDEV)


@given(stddev=STDDEVS)
def test_the_grid_is_a_power_of_two_about_a_millionth_of_the_noise(stddev):
    step = public_grid(stddev)
    assert np.frexp(step)[0] == 0.5
    assert step * 2**20 <= stddev < step * 2**21
    assert np.float32(step) == step
    assert step**2 / 12 <= 1e-13 * stddev**2  # what a uniform rounding error adds to the variance


@given(stddev=STDDEVS, cell=st.integers(-(2**40), 2**40), inside=st.lists(st.floats(-0.499, 0.499), min_size=2))
def test_all_values_of_a_grid_cell_are_released_alike(stddev, cell, inside):
    values = (cell + np.array(inside)) * public_grid(stddev)  # 2⁴⁰ cells are far beyond what float32 tells apart
    with np.errstate(over="ignore"):
        released = on_public_grid(values, stddev).astype(np.float32)
    assert len({value.tobytes() for value in released}) == 1  # bytes: -0.0 would tell the half of the cell


@pytest.mark.parametrize("stddev", [1e-9, 0.7, 1e9])
def test_a_released_value_is_the_nearest_point_of_the_grid_as_float32(stddev):
    values = stddev * np.random.default_rng(0).standard_normal(10_000)
    released, step = on_public_grid(values, stddev), public_grid(stddev)
    np.testing.assert_array_equal(released / step, np.round(released / step))
    assert np.abs(released - values).max() <= step / 2
    assert np.var(released - values) == pytest.approx(step**2 / 12, rel=0.05)


@pytest.mark.parametrize(("norm", "z"), [(1e-20, 1e-9), (1e-20, 1.0), (1e20, 1.0), (1e20, 1e9)])
def test_releases_at_the_ends_of_the_range_are_noise_of_the_right_size(norm, z):
    pipeline = dp.Pipeline(mechanism=(dp.Clip(norm), dp.Gaussian(z)))
    memory = memory_of(pipeline, 4000)
    permit = dp.Ledger().charge(pipeline.cost, memory.address)
    update = pipeline.release([], memory, dp.SecretSeed(), permit)
    assert update.noise_stddev == norm * z
    assert kstest(update.values.astype(np.float64) / (norm * z), "norm").pvalue > 1e-6


@pytest.mark.parametrize("l2", [1e-33, 1e31, float("inf"), float("nan")])
def test_noise_that_float32_cannot_hold_is_refused_when_the_pipeline_is_made(l2):
    @dataclass(frozen=True)
    class Scaled:
        l2: float

        def claim(self, before, where):
            return dp.Bounded(l2=self.l2)

        def apply(self, value, context):
            return value

    with pytest.raises(ValueError, match="standard deviation"):
        dp.Pipeline(mechanism=(dp.Clip(1.0), Scaled(l2), dp.Gaussian(1.0)))


@pytest.mark.parametrize("z", [1e-3, 0.5, 1.1, 8.0, 1e9])
def test_the_event_charges_what_floating_point_may_add_to_the_clip_norm(z):
    pipeline = dp.Pipeline(mechanism=(dp.Clip(C), dp.Gaussian(z)))
    assert pipeline.cost.event == GaussianDpEvent(z / (1 + 1e-5))
    ledger = dp.Ledger()
    memory = memory_of(pipeline, 3)
    update = pipeline.release([], memory, dp.SecretSeed(), ledger.charge(pipeline.cost, memory.address))
    assert update.noise_stddev == z * C
    assert ledger.guarantee(1e-5).epsilon == pipeline.guarantee(1, 1e-5).epsilon

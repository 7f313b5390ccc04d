"""A clip norm that adapts: the sum and the count release together what is charged, and the norm finds its place."""

import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import privacy_loss_distribution as pld

import dpcomp as dp
from dpcomp.federated import Server, TrustedRelease
from dpcomp.federated.server.aggregation import ClippedSum
from dpcomp.federated.server.cohort import Cohort
from dpcomp.pipeline.mechanism import count_stddev_of, noise_stddev_of
from dpcomp.privacy.adaptive_clip import count_stddev, sum_multiplier
from dpcomp.privacy.claim import ROUNDING
from dpcomp.privacy.units.unit_gradients import SumOfTotals

SEED, D = dp.PublicSeed(3), 6
TRUSTED = {"unit": "client", "trust": "server"}


def pipeline_of(noise=1.0, rate=None, *, masks=(), codec=dp.Codec(), **clip):
    stage = dp.AdaptiveClip(**({"initial": 1.0} | clip))
    sampling = None if rate is None else dp.Poisson(rate)
    return dp.Pipeline(mechanism=(*masks, stage, dp.Gaussian(noise)), codec=codec, sampling=sampling, **TRUSTED)


def memory_of(chosen, norm=None, layout=D):
    memory = chosen.init_server(layout, SEED)
    return memory if norm is None else replace(memory, clip_norm=norm)


def released(chosen, total, memory, ledger=None, secret=None):
    permit = (ledger or dp.Ledger()).charge(chosen.cost, memory.address)
    return chosen.noise(total, memory, dp.SecretSeed() if secret is None else secret, permit)


def test_the_split_of_the_noise_is_that_of_the_paper():
    assert sum_multiplier(1.0, 5.0) == pytest.approx((1 - 1 / 100) ** -0.5) == pytest.approx(1.005, abs=1e-4)
    for z, sigma in ((0.3, 0.16), (1.0, 5.0), (2.0, 1.1), (4.0, 40.0), (1.0, 0.6)):
        assert 1 / sum_multiplier(z, sigma) ** 2 + 1 / (2 * sigma) ** 2 == pytest.approx(1 / z**2, rel=1e-12)
    assert count_stddev(0.7, None) == 5 * 0.7
    for sigma in (0.5, 0.49, 0.5000001):
        with pytest.raises(ValueError, match="leaves nothing to the sum"):
            sum_multiplier(1.0, sigma)


@pytest.mark.parametrize(("z", "sigma"), [(1.0, 5.0), (1.0, 0.55), (0.5, 0.4), (2.3, 1.2), (0.8, 30.0)])
def test_what_is_charged_is_the_exact_cost_of_the_pair(z, sigma):
    """By another road: the two Gaussians composed, each with the noise that its part really gets."""
    chosen = pipeline_of(z, count_noise=sigma)
    alone = pld.from_gaussian_mechanism(noise_stddev_of(chosen) / (1 + ROUNDING), value_discretization_interval=1e-3)
    count = pld.from_gaussian_mechanism(count_stddev_of(chosen) / 0.5, value_discretization_interval=1e-3)
    for delta in (1e-3, 1e-6):
        pair = alone.compose(count).get_epsilon_for_delta(delta)
        assert chosen.guarantee(1, delta).epsilon == pytest.approx(pair, rel=3e-3)
        assert chosen.guarantee(1, delta).epsilon >= pair * (1 - 2e-3)


@pytest.mark.parametrize("rate", [None, 0.1])
def test_it_costs_what_a_fixed_clip_costs_and_is_amplified_once(rate):
    chosen = pipeline_of(1.2, rate, count_noise=0.7)
    fixed = dp.Pipeline(
        mechanism=(dp.Clip(1.0), dp.Gaussian(1.2)), sampling=None if rate is None else dp.Poisson(rate), **TRUSTED
    )
    event = GaussianDpEvent(1.2 / (1 + ROUNDING))
    assert chosen.cost.event == fixed.cost.event == (event if rate is None else PoissonSampledDpEvent(rate, event))
    assert chosen.guarantee(50, 1e-5).epsilon == fixed.guarantee(50, 1e-5).epsilon
    assert any("noisy count" in clause for clause in chosen.guarantee(1, 1e-5).assumptions)


@pytest.mark.parametrize("sigma", [0.6, 5.0, None])
def test_sum_and_count_get_the_noise_that_is_charged_and_not_the_same(sigma):
    z, norm, d, times = 1.0, 3.0, 200, 400
    chosen = pipeline_of(z, count_noise=sigma)
    memory = memory_of(chosen, norm, d)
    permit = dp.Ledger().charge(chosen.cost, memory.address, steps=times)
    draws = [chosen.noise(chosen.empty_total(memory), memory, dp.SecretSeed(), permit) for _ in range(times)]
    sums = np.array([draw.values for draw in draws], dtype=np.float64) / norm
    counts = np.array([draw.noisy_count for draw in draws])
    assert sums.std() == pytest.approx(sum_multiplier(z, sigma), rel=0.0126)  # 80,000 draws: 5 deviations
    assert counts.std() == pytest.approx(count_stddev(z, sigma), rel=0.18)  # 400 draws: 5 deviations
    assert abs(counts.mean()) < 5 * count_stddev(z, sigma) / math.sqrt(times)
    correlations = [np.corrcoef(counts, column)[0, 1] for column in sums.T[:20]]
    assert max(np.abs(correlations)) < 5 / math.sqrt(times)
    assert draws[0].noise_stddev == pytest.approx(norm * sum_multiplier(z, sigma))


def test_the_pair_tells_neighbours_apart_as_well_as_one_gaussian_of_what_is_charged():
    """The best test there is, on real releases: its two means lie 1/z of its deviations apart, and no more."""
    z, sigma, norm, times = 0.5, 0.3, 3.0, 600
    chosen = pipeline_of(z, count_noise=sigma)
    memory, scores = memory_of(chosen, norm, 1), []
    for client, block in enumerate((np.zeros((0, 1), np.float32), np.full((1, 1), norm, np.float32))):
        permit = dp.Ledger().charge(chosen.cost, replace(memory.address, round=client), steps=times)
        draws = [chosen.noise(chosen.clip(block, memory), memory, dp.SecretSeed(client), permit) for _ in range(times)]
        sums = np.array([draw.values[0] for draw in draws]) / norm
        counts = np.array([draw.noisy_count for draw in draws])
        scores.append(sums / sum_multiplier(z, sigma) ** 2 + counts / (2 * sigma**2))
    apart = (scores[1].mean() - scores[0].mean()) / np.concatenate([score - score.mean() for score in scores]).std()
    assert apart == pytest.approx(1 / z, abs=5 * math.sqrt(2 / times) + 0.05)


UNITS = [
    *([0.0] * D, [1e-30] * D, [1e30] * D, [3e38] * D, [np.nan] * D, [np.inf, *[0.0] * (D - 1)], [-np.inf] * D),
    *([2.0, *[0.0] * (D - 1)], [np.nextafter(np.float32(2), np.float32(3)), *[0.0] * (D - 1)], [0.1] * D),
]


@pytest.mark.parametrize("norm", [1e-20, 2.0, 1e20])
@pytest.mark.parametrize("masks", [(), (dp.RandomK(0.5),)])
def test_one_client_moves_the_sum_by_one_norm_and_the_count_by_a_half(norm, masks):
    chosen = pipeline_of(masks=masks)
    memory = memory_of(chosen, norm)
    others = chosen.clip(np.random.default_rng(0).normal(0, min(norm, 1e30), (5, D)).astype(np.float32), memory)
    for unit in UNITS:
        with_one = others + chosen.clip(np.array([unit], np.float32), memory)
        moved = np.linalg.norm(with_one.vector() - others.vector())
        assert moved <= 1 + ROUNDING
        assert abs((with_one.within - with_one.units / 2) - (others.within - others.units / 2)) == 0.5


def test_units_within_the_norm_are_counted():
    chosen = pipeline_of()
    memory = memory_of(chosen, 2.0)
    lengths = np.array([0.0, 1.0, 2.0, np.nextafter(np.float32(2), np.float32(3)), 5.0, np.nan, np.inf], np.float32)
    total = chosen.clip(np.stack([lengths, *[np.zeros_like(lengths)] * (D - 1)], axis=1), memory)
    assert (total.units, total.within, total.not_finite) == (7, 3, 2)
    whole = SumOfTotals(chosen.empty_total(memory))
    for row in range(3):
        whole.add(chosen.clip(np.full((2, D), row / 3, np.float32), memory))
    assert (whole.total().units, whole.total().within) == (6, 6)


def test_a_count_that_was_changed_is_not_released():
    chosen = pipeline_of()
    memory = memory_of(chosen)
    total = chosen.clip(np.ones((2, D), np.float32), memory)
    for changed in (replace(total, within=10**6), replace(total, units=0)):
        with pytest.raises(dp.NotPrivate, match="changed or copied"):
            released(chosen, changed, memory)
    object.__setattr__(total, "within", 10**6)
    with pytest.raises(dp.NotPrivate, match="changed or copied"):
        released(chosen, total, memory)


def test_a_round_is_charged_once_before_either_is_drawn_and_never_released_twice():
    chosen, ledger = pipeline_of(rate=0.5), dp.Ledger(budget=dp.Budget(epsilon=4.0, delta=1e-5))
    memory = memory_of(chosen)
    release = TrustedRelease(pipeline=chosen, secret=dp.SecretSeed(), ledger=ledger, divisor=10.0)
    drawn = []

    class Spied(dp.SecretSeed):
        def standard_normal(self, count, purpose, *place):
            drawn.append((purpose, ledger.charged(memory.address)))
            return super().standard_normal(count, purpose, *place)

    done = ClippedSum(replace(release, secret=Spied()), memory)
    assert done.next_clip_norm is None
    done.mean()
    assert drawn == [("noise", True), ("count noise", True)]
    assert ledger.guarantee(1e-5).steps == 1
    norm = done.next_clip_norm
    again = ClippedSum(replace(release, secret=Spied()), memory)
    with pytest.raises(dp.BudgetExhausted):
        again.mean()
    assert len(drawn) == 2 and again.next_clip_norm is None and norm is not None
    total = chosen.clip(np.ones((1, D), np.float32), memory)
    released(chosen, total, memory)
    with pytest.raises(dp.NotPrivate):  # the same batch again
        released(chosen, total, memory)


def test_the_norm_follows_from_the_released_count_and_public_numbers_alone():
    stage = dp.AdaptiveClip(initial=1.0, quantile=0.3, learning_rate=0.5)
    assert stage.norm_after(2.0, 0.0, 10.0) == pytest.approx(2.0 * math.exp(-0.5 * (0.5 - 0.3)))
    assert stage.norm_after(2.0, -5.0, 10.0) == pytest.approx(2.0 * math.exp(0.5 * 0.3))
    assert stage.norm_after(1.0, 1e9, 1.0) == pytest.approx(1e-20) and stage.norm_after(
        1.0, -1e9, 1.0
    ) == pytest.approx(1e20)
    chosen = pipeline_of(quantile=0.3, learning_rate=0.5)
    memory = memory_of(chosen, 2.0)
    made = released(chosen, chosen.clip(np.ones((3, D), np.float32), memory), memory)
    assert chosen.clip_norm_after(made, memory, 10.0) == replace(stage).norm_after(2.0, made.noisy_count, 10.0)
    plain = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), **TRUSTED)
    total = plain.empty_total(memory_of(plain))
    assert plain.clip_norm_after(released(plain, total, memory_of(plain)), memory_of(plain), 10.0) is None
    grid = 2.0 ** (math.frexp(5.0)[1] - 1 - 20)
    assert made.noisy_count / grid == round(made.noisy_count / grid)  # its low bits tell nothing


@pytest.mark.parametrize("initial", [0.1, 5.0, 10.0])
def test_norms_from_4_to_6_are_found_at_their_middle(initial):
    chosen, draw, m = pipeline_of(1.0, initial=initial, count_noise=5.0), np.random.default_rng(7), 100
    memory, norms = memory_of(chosen), []
    for number in range(100):
        directions = draw.normal(size=(m, D))
        units = directions / np.linalg.norm(directions, axis=1, keepdims=True) * draw.uniform(4, 6, (m, 1))
        made = released(chosen, chosen.clip(units.astype(np.float32), memory), memory, secret=dp.SecretSeed(number))
        memory = replace(memory, clip_norm=chosen.clip_norm_after(made, memory, m))
        norms.append(memory.clip_norm)
    assert 4.5 <= norms[-1] <= 5.5
    assert all(4.5 <= norm <= 5.5 for norm in norms[60:])


def test_a_server_moves_its_norm_saves_it_and_clips_by_it(tmp_path):
    chosen = pipeline_of(0.01, initial=0.5, count_noise=0.05, learning_rate=1.0)
    made, ledger = [], dp.Ledger()

    def server():
        return Server(
            chosen.channel,
            chosen.init_server(D, SEED, run_id=b"the ends"),
            np.zeros(D, np.float32),
            trusted_release=TrustedRelease(pipeline=chosen, secret=dp.SecretSeed(0), ledger=ledger, divisor=1.0),
            folder=tmp_path,
        )

    with_folder = server()
    for _ in range(3):
        with_folder.close_round()  # nobody came: −0/1 + ½ of the count, so C shrinks to the quantile of nobody
        made.append(with_folder.memory.clip_norm)
    assert len(set(made)) == 3
    with_folder.close()
    again = server()
    assert again.memory.clip_norm == made[-1]
    again.close()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"unit": "example", "trust": "nobody"}, dp.NotPrivate, "trusted server alone"),
        ({"unit": "client", "trust": "nobody"}, dp.NotPrivate, "trusted server alone"),
        ({"mechanism": (dp.Gaussian(1.0), dp.AdaptiveClip(initial=1.0))}, ValueError, "directly before"),
        (
            {"mechanism": (dp.AdaptiveClip(initial=1.0), dp.RandomK(0.5), dp.Gaussian(1.0))},
            ValueError,
            "directly before",
        ),
        ({"mechanism": (dp.Clip(1.0), dp.AdaptiveClip(initial=1.0), dp.Gaussian(1.0))}, ValueError, "clipped once"),
        ({"mechanism": (dp.AdaptiveClip(initial=1.0),)}, ValueError, "directly before"),
        (
            {"mechanism": (dp.AdaptiveClip(initial=1.0, count_noise=0.5), dp.Gaussian(1.0))},
            ValueError,
            "nothing to the sum",
        ),
        ({"mechanism": dp.unsafe("a look", dp.AdaptiveClip(initial=1.0), dp.Gaussian(1.0))}, ValueError, "unsafe"),
        (
            {"codec": dp.Codec(quantize=dp.ExactGaussian(cohort=4)), "downlink": dp.Codec(), "feedback": False},
            dp.NotPrivate,
            "another quantiser",
        ),
    ],
)
def test_where_its_claim_would_not_hold_it_is_refused(arguments, error, said):
    given = {"mechanism": (dp.AdaptiveClip(initial=1.0), dp.Gaussian(1.0)), **TRUSTED, **arguments}
    with pytest.raises(error, match=said):
        dp.Pipeline(**given)


def test_a_subclass_a_client_and_a_memory_without_a_norm_are_refused():
    class Other(dp.AdaptiveClip):
        pass

    with pytest.raises(TypeError, match="subclass"):
        dp.Pipeline(mechanism=(Other(initial=1.0), dp.Gaussian(1.0)), **TRUSTED)
    chosen = pipeline_of()
    with pytest.raises(dp.NotPrivate, match="ServerMemory"):
        chosen.clip(np.ones((1, D), np.float32), chosen.init_client(D, SEED, 0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial": 0.0},
        {"initial": 1e21},
        {"quantile": 1.1},
        {"quantile": -0.1},
        {"learning_rate": 0.0},
        {"count_noise": 0.0},
        {"count_noise": float("nan")},
    ],
)
def test_numbers_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dp.AdaptiveClip(**({"initial": 1.0} | wrong))
    with pytest.raises(TypeError):
        dp.AdaptiveClip(**({"initial": 1.0} | dict.fromkeys(wrong, "1")))


def test_it_is_written_to_toml_calibrated_and_named_by_both_ends():
    chosen = pipeline_of(count_noise=3.0)
    assert dp.Pipeline.from_toml(chosen.to_toml()) == chosen
    assert chosen.channel.identity != pipeline_of(count_noise=4.0).channel.identity

    def make(noise):
        return pipeline_of(noise, 0.2)

    found = dp.calibrate(make, epsilon=2.0, delta=1e-5, steps=100)
    assert 1.98 <= found.guarantee(100, 1e-5).epsilon <= 2.0


def test_the_draw_of_the_cohort_is_that_of_the_pipeline():
    """What amplifies both at once is one draw: the count sees who the sum sees."""
    chosen = pipeline_of(rate=0.3)
    release = TrustedRelease(pipeline=chosen, secret=dp.SecretSeed(0), ledger=dp.Ledger(), divisor=3.0)
    server = Server(
        chosen.channel, chosen.init_server(D, SEED), np.zeros(D, np.float32), trusted_release=release, clients=10
    )
    expected = Cohort(sampling=dp.Poisson(0.3), secret=release.secret).draw(10, server.memory)
    assert server.cohort() == expected.tolist()

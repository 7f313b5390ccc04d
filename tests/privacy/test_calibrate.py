import pytest

import dpcomp as dp
from dpcomp.privacy.cost import Cost
from tests.cpu_time import cpu_loops


def noise_first(rate):
    sampling = dp.Poisson(rate) if rate else None
    return lambda z: dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(z)), sampling=sampling)


@pytest.mark.parametrize(
    ("rate", "steps", "epsilon"),
    [(0.02, 300, 4.0), (0.02, 10_000, 0.1), (0.25, 150, 8.0), (0.02, 1_000, 50.0), (None, 100, 1.0), (1.0, 1, 0.5)],
)
def test_it_ends_just_below_the_target_after_few_guarantees(rate, steps, epsilon, monkeypatch):
    looked_at, guarantee = [], Cost.guarantee
    monkeypatch.setattr(
        Cost, "guarantee", lambda cost, *args, **kw: looked_at.append(cost) or guarantee(cost, *args, **kw)
    )
    pipeline = dp.calibrate(noise_first(rate), epsilon=epsilon, delta=1e-5, steps=steps)
    assert len(looked_at) <= 5  # each takes up to a second; RDP, which brackets the answer, takes next to nothing
    assert 0.995 * epsilon <= pipeline.guarantee(steps, 1e-5).epsilon <= epsilon


def test_a_larger_budget_needs_less_noise():
    noises = [
        dp.calibrate(noise_first(0.05), epsilon=epsilon, delta=1e-5, steps=50).stages[1].noise_multiplier
        for epsilon in (1.0, 2.0, 4.0)
    ]
    assert noises == sorted(noises, reverse=True)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_a_target_that_is_none_is_refused(epsilon):
    with pytest.raises(ValueError, match="finite number above 0"):
        dp.calibrate(noise_first(0.02), epsilon=epsilon, delta=1e-5, steps=10)


def test_no_steps_need_no_noise():
    with pytest.raises(ValueError, match="nothing needs noise"):
        dp.calibrate(noise_first(0.02), epsilon=1.0, delta=1e-5, steps=0)


def test_a_pipeline_that_no_noise_can_save_is_named():
    def unsafe(z):
        return dp.Pipeline(mechanism=dp.unsafe("to see", dp.Clip(1.0), dp.Gaussian(z)))

    with pytest.raises(ValueError, match="no noise multiplier"):
        dp.calibrate(unsafe, epsilon=1.0, delta=1e-5, steps=10)


@pytest.mark.parametrize(("rate", "steps", "epsilon"), [(0.02, 300, 4.0), (0.00107, 347, 0.72), (0.25, 150, 8.0)])
def test_one_percent_less_noise_breaks_the_target(rate, steps, epsilon):
    noise = dp.calibrate(noise_first(rate), epsilon=epsilon, delta=1e-5, steps=steps).stages[1].noise_multiplier
    assert noise_first(rate)(0.99 * noise).guarantee(steps, 1e-5).epsilon > epsilon


def test_a_calibration_takes_a_fraction_of_a_second():
    with cpu_loops() as loops:
        dp.calibrate(noise_first(0.00107), epsilon=0.72, delta=1.1e-5, steps=347)
    assert loops.count < 60  # six on an idle core


def test_noise_that_another_part_bounds_is_searched_below_the_bound():
    def with_count(z):
        mechanism = (dp.AdaptiveClip(initial=1.0, count_noise=2.0), dp.Gaussian(z))
        return dp.Pipeline(mechanism=mechanism, unit="client", trust="server", sampling=dp.Poisson(0.1))

    pipeline = dp.calibrate(with_count, epsilon=2.0, delta=1e-6, steps=50)
    assert 0.995 * 2 <= pipeline.guarantee(50, 1e-6).epsilon <= 2
    with pytest.raises(ValueError, match=r"up to 3\.99\d* reaches .* refuses more: AdaptiveClip\(count_noise=2\)"):
        dp.calibrate(with_count, epsilon=0.1, delta=1e-6, steps=1000)


def test_a_pipeline_that_no_noise_makes_is_refused_with_its_own_words():
    with pytest.raises(ValueError, match="Clip"):
        dp.calibrate(lambda z: dp.Pipeline(mechanism=(dp.Clip(-1.0), dp.Gaussian(z))), epsilon=1, delta=1e-6, steps=1)

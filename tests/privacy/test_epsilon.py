import logging
import math

import numpy as np
import pytest
from dp_accounting import (
    ComposedDpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    NonPrivateDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

import dpcomp as dp
from dpcomp.core.errors import NotPrivate
from dpcomp.privacy.accounting.epsilon import epsilon, rdp_epsilon
from dpcomp.privacy.accounting.events import composed
from dpcomp.privacy.accounting.renyi import ORDERS, rdp_curve
from tests.cpu_time import cpu_loops
from tests.oracles.contour_integral import delta_of, log_moments

FASHION = PoissonSampledDpEvent(2048 / 60_000, GaussianDpEvent(2.15))
CASES = [
    (0.02, 0.7, 300, 1e-5),
    (0.02, 1.0, 10_000, 1e-6),
    (0.2, 0.8, 2_000, 1e-6),
    (0.01, 20.0, 1_000, 1e-5),
    (0.5, 5.0, 10, 1e-9),
    (0.001, 1.0, 300, 1e-7),
]


def sampled(rate, noise, steps):
    return composed(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)


def optimistic(rate, noise, steps, delta, interval):
    """A lower bound of the true ε: dp_accounting's own optimistic estimate."""
    losses = privacy_loss_distribution.from_gaussian_mechanism(
        noise,
        sampling_prob=rate,
        pessimistic_estimate=False,
        use_connect_dots=False,
        value_discretization_interval=interval,
    )
    return losses.self_compose(steps).get_epsilon_for_delta(delta)


def test_the_yardstick_of_tramer_and_boneh():
    value, accountant = epsilon(composed(FASHION, 1172), 1e-5)
    assert accountant == "PLD"
    assert 2.385 < value <= 2.39
    assert rdp_epsilon(composed(FASHION, 1172), 1e-5) == pytest.approx(2.61, abs=0.005)


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta"),
    [(0.02, 0.7, 300, 1e-5), (0.5, 5.0, 10, 1e-9), (0.2, 1.0, 50, 1e-6), (0.001, 0.6, 100, 1e-7)],
)
def test_epsilon_lies_between_the_optimistic_bound_and_rdp(rate, noise, steps, delta):
    value, _ = epsilon(sampled(rate, noise, steps), delta)
    below = optimistic(rate, noise, steps, delta, interval=value / 20 / steps)
    assert below <= value <= rdp_epsilon(sampled(rate, noise, steps), delta)
    assert value <= 1.05 * below


@pytest.mark.parametrize(("rate", "noise", "steps", "delta"), CASES)
def test_epsilon_is_within_one_percent_of_a_fine_pessimistic_grid(rate, noise, steps, delta):
    value, _ = epsilon(sampled(rate, noise, steps), delta)
    fine = privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=math.sqrt(2.4e-4 * value / steps)
    )
    assert value == pytest.approx(fine.self_compose(steps).get_epsilon_for_delta(delta), rel=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Optimal order is the")  # Opacus says it of the orders that it starts from
@pytest.mark.parametrize(("rate", "noise", "steps", "delta"), CASES)
def test_opacus_prv_is_of_the_same_opinion(rate, noise, steps, delta):
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    second_opinion = accountant.get_epsilon(delta, eps_error=0.005)
    assert epsilon(sampled(rate, noise, steps), delta)[0] == pytest.approx(second_opinion, rel=0.01, abs=0.011)


def test_a_small_delta_over_many_steps_is_not_drowned_in_the_rounding_of_the_fft():
    # Composed in float64 the same grid reads 2.71; the truth was found to be 2.747 by an exponentially tilted FFT.
    value, _ = epsilon(sampled(1e-3, 1.0, 100_000), 1e-11)
    assert 2.746 < value < 2.760


@pytest.mark.parametrize(("noise", "steps", "delta"), [(1.0, 1, 1e-5), (2.0, 1000, 1e-5), (50.0, 10, 1e-9)])
def test_unsampled_gaussians_have_their_closed_form(noise, steps, delta):
    truth = get_epsilon_gaussian(noise / math.sqrt(steps), delta)
    for event in (composed(GaussianDpEvent(noise), steps), sampled(1.0, noise, steps)):
        assert truth <= epsilon(event, delta)[0] <= truth * (1 + 1e-6) + 1e-9


@settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.generate))
@example(noise=19358.081744885436, steps=10, exponent=-189.6454)
@example(noise=872650.7832453967, steps=1, exponent=-181.0423)
@example(noise=196391.3173720421, steps=1, exponent=-134.4169)
@given(noise=st.floats(0, 6).map(lambda power: 10**power), steps=st.integers(1, 300), exponent=st.floats(-195, -3))
def test_a_rate_next_to_one_costs_no_less_than_the_closed_form_however_little_that_is(noise, steps, exponent):
    # The first grids are coarse beside such losses, and no order is near the best one: the tilt is doubled and doubled.
    truth = epsilon(composed(GaussianDpEvent(noise), steps), 10**exponent)[0] / (1 + 1e-6) - 1e-11
    assert epsilon(sampled(1 - 2**-53, noise, steps), 10**exponent)[0] >= truth * (1 - 1e-9)


@pytest.mark.parametrize(
    "event",
    [
        *(GaussianDpEvent(noise) for noise in (math.nan, math.inf, -1.0, 1e-200, 1e200)),
        *(PoissonSampledDpEvent(0.1, GaussianDpEvent(noise)) for noise in (math.nan, math.inf, -1.0, 1e-200, 1e200)),
        *(PoissonSampledDpEvent(rate, GaussianDpEvent(1.0)) for rate in (math.nan, 0.0, -0.5, 1.5)),
        *(SelfComposedDpEvent(GaussianDpEvent(1.0), count) for count in (-3, 2.9, math.nan)),
    ],
    ids=repr,
)
def test_numbers_that_no_accountant_can_account_for_are_refused_before_anything_is_charged(event):
    for adaptive in (False, True):
        with pytest.raises((ValueError, TypeError), match=r"an event"):
            epsilon(ComposedDpEvent([event, FASHION]), 1e-5, adaptive=adaptive)
    ledger = dp.Ledger()
    with pytest.raises((ValueError, TypeError), match=r"an event|cannot record"):
        ledger.charge(dp.Cost(event=event, unit="example", trust="nobody", sampling="none"), dp.Address(0, 1, 2))
    assert not ledger.mark.count


NASTY = [
    (1e-3, 1.0, 10**7, 1e-10),
    (0.5, 1e-3, 10**5, 1e-5),
    (0.5, 0.5, 1_000, 1e-5),
    (1e-6, 1e4, 10**6, 1e-5),
    (0.01, 0.01, 100, 1e-5),
    (0.01, 1.0, 100, 0.9),
    (0.01, 1.0, 100, 1e-300),
    (1.0, 1e-3, 10**7, 1e-5),
]


@pytest.mark.parametrize(("rate", "noise", "steps", "delta"), NASTY)
def test_every_input_has_an_answer_in_bounded_time(rate, noise, steps, delta):
    with cpu_loops() as loops:
        value, _ = epsilon(sampled(rate, noise, steps), delta)
    assert loops.count < 400  # 40 at most on an idle core
    assert 0 <= value <= rdp_epsilon(sampled(rate, noise, steps), delta)


def test_nothing_costs_nothing_and_no_noise_costs_everything():
    assert epsilon(composed(FASHION, 0), 1e-5)[0] == 0
    assert epsilon(composed(NonPrivateDpEvent(), 3), 1e-5)[0] == math.inf
    assert epsilon(composed(GaussianDpEvent(0.0), 3), 1e-5)[0] == math.inf
    assert rdp_epsilon(sampled(0.1, 0.0, 3), 1e-5) == math.inf


@settings(max_examples=12, deadline=None, phases=(Phase.generate,))
@given(
    rate=st.floats(0.001, 0.3),
    noise=st.floats(0.8, 20),
    steps=st.integers(1, 500),
    exponent=st.floats(-10, -3),
)
def test_more_noise_and_a_larger_delta_never_cost_more_and_more_steps_and_rate_never_less(rate, noise, steps, exponent):
    here = epsilon(sampled(rate, noise, steps), 10**exponent)[0]
    slack = 1 + 2e-3  # of the grid
    assert epsilon(sampled(rate, 1.3 * noise, steps), 10**exponent)[0] <= slack * here
    assert epsilon(sampled(rate, noise, steps), 3 * 10**exponent)[0] <= slack * here
    assert slack * epsilon(sampled(rate, noise, 2 * steps), 10**exponent)[0] >= here
    assert slack * epsilon(sampled(min(1.0, 1.5 * rate), noise, steps), 10**exponent)[0] >= here
    assert epsilon(sampled(rate, noise, steps), 10**exponent, adaptive=True)[0] >= here


def test_mixed_events_that_were_chosen_from_results_are_accounted_by_rdp_alone():
    mixed = ComposedDpEvent([sampled(0.02, 1.0, 100), sampled(0.02, 2.0, 100)])
    value, accountant = epsilon(mixed, 1e-5, adaptive=True)
    assert accountant == "RDP"
    assert value == rdp_epsilon(mixed, 1e-5)
    assert value > epsilon(mixed, 1e-5)[0] > epsilon(sampled(0.02, 1.0, 100), 1e-5)[0]


def test_the_same_event_in_pieces_costs_what_it_costs_in_one():
    pieces = ComposedDpEvent([sampled(0.02, 1.0, 40), sampled(0.02, 1.0, 60)])
    assert epsilon(pieces, 1e-5) == epsilon(sampled(0.02, 1.0, 100), 1e-5)


def test_nothing_is_logged(caplog):
    with caplog.at_level(logging.DEBUG, logger="absl"):
        epsilon(sampled(0.0123, 0.77, 321), 1e-5)
    assert not caplog.records


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, 2.0])
def test_a_delta_out_of_range_is_refused(delta):
    with pytest.raises(ValueError, match="δ lies in"):
        epsilon(FASHION, delta)


@pytest.mark.parametrize("steps", [1.5, True, "3"])
def test_steps_are_whole_numbers(steps):
    with pytest.raises(TypeError, match="whole number"):
        composed(FASHION, steps)
    with pytest.raises(ValueError, match="is -1: give a whole number from 0 on"):
        composed(FASHION, -1)


def test_what_is_not_known_is_not_accounted_for():
    with pytest.raises(NotPrivate, match="not accounted for"):
        epsilon(LaplaceDpEvent(1.0), 1e-5)


def test_answers_are_cached_by_event(monkeypatch):
    first = epsilon(sampled(0.0317, 1.234, 700), 1e-6)
    assert np.isfinite(first[0])
    monkeypatch.setattr(
        "dpcomp.privacy.accounting.epsilon.epsilon_on_grid", lambda *_: pytest.fail("it was computed again")
    )
    assert epsilon(sampled(0.0317, 1.234, 700), 1e-6) == first


def hold_to_the_integral(parts, delta, tilt):
    """δ at the ε that dpcomp says is at most δ, and at an ε 1 % smaller it is above, by an integral without a grid."""
    event = ComposedDpEvent([sampled(rate, noise, steps) for (rate, noise), steps in parts.items()])
    value, accountant = epsilon(event, delta)
    assert accountant == "PLD"
    at, also_at = (delta_of(value, parts, theta) for theta in (tilt, tilt / 2))
    assert at == pytest.approx(also_at, rel=1e-3)  # the integral does not depend on its line
    assert at <= delta < delta_of(0.99 * value, parts, tilt)


@pytest.mark.parametrize(
    ("parts", "delta", "tilt"),
    [
        ({(0.01, 1.0): 10_000}, 1e-5, 1.5),
        ({(2048 / 60_000, 2.15): 1172}, 1e-5, 3.0),
        ({(0.5, 1.0): 1000}, 1e-5, 0.1),
        ({(1e-3, 1.0): 100_000}, 1e-11, 3.0),
        ({(0.02, 1.5): 1000, (0.02, 1.0): 1000}, 1e-5, 1.5),
        ({(0.05, 3.0): 400, (0.2, 6.0): 300, (1.0, 9.0): 20}, 1e-7, 3.0),
    ],
)
def test_epsilon_is_above_the_truth_by_less_than_one_percent(parts, delta, tilt):
    hold_to_the_integral(parts, delta, tilt)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "delta", "tilt"),
    [
        ({(1e-4, 1.0): 10**5}, 1e-5, 4.0),
        ({(1e-4, 1.0): 10**7}, 1e-6, 3.0),
        ({(1e-5, 1.0): 10**6}, 1e-6, 7.0),
        ({(1e-5, 0.6): 10**7}, 1e-7, 2.0),
        ({(1e-6, 0.5): 10**5}, 1e-8, 2.0),
        ({(0.00107, 0.72): 347}, 1e-5, 2.0),
        ({(1e-4, 0.8): 10**5, (2e-4, 1.0): 10**5}, 1e-6, 3.0),
    ],
)
def test_epsilon_of_millions_of_steps_at_tiny_rates_is_within_one_percent_in_seconds(parts, delta, tilt):
    with cpu_loops() as loops:
        hold_to_the_integral(parts, delta, tilt)
    assert loops.count < 1000


def delta_of_one_release(value, rate, noise):
    """δ of a single sampled Gaussian, the larger of removing and adding a unit, in closed form."""
    removed = added = 0.0
    if (ratio := math.exp(value) - 1 + rate) > 0:
        x = noise**2 * math.log(ratio / rate) + 0.5
        removed = rate * ndtr((1 - x) / noise) - ratio * ndtr(-x / noise)
    if (ratio := math.exp(-value) - 1 + rate) > 0:
        x = noise**2 * math.log(ratio / rate) + 0.5
        added = ratio * ndtr(x / noise) * math.exp(value) - rate * math.exp(value) * ndtr((x - 1) / noise)
    return max(removed, added)


@settings(max_examples=25, deadline=None)
@given(rate=st.floats(0.001, 0.99), noise=st.floats(0.3, 8.0), exponent=st.floats(-12, -2))
def test_epsilon_of_one_release_is_its_closed_form(rate, noise, exponent):
    value, _ = epsilon(sampled(rate, noise, 1), 10**exponent)
    assert delta_of_one_release(value, rate, noise) <= 10**exponent * (1 + 1e-9)
    if value > 1e-6:
        assert delta_of_one_release(0.99 * value, rate, noise) > 10**exponent


@settings(max_examples=10, deadline=None, phases=(Phase.generate,))
@given(rate=st.floats(0.01, 0.5), noise=st.floats(0.7, 5.0), steps=st.integers(1, 100), exponent=st.floats(-8, -4))
def test_epsilon_is_never_below_the_optimistic_bound(rate, noise, steps, exponent):
    value, _ = epsilon(sampled(rate, noise, steps), 10**exponent)
    assert value >= optimistic(rate, noise, steps, 10**exponent, interval=max(value, 1e-3) / 50 / steps)


@settings(max_examples=8, deadline=None, phases=(Phase.generate,))
@given(rate=st.floats(1e-6, 0.95), noise=st.floats(0.4, 30.0))
def test_the_renyi_curve_is_that_of_the_reference_at_whole_orders_and_above_the_truth_between_them(rate, noise):
    curve, orders = rdp_curve(rate, noise), np.array(ORDERS)
    whole = (orders == np.round(orders)) & (orders < 300)
    event = PoissonSampledDpEvent(rate, GaussianDpEvent(noise))
    reference = RdpAccountant(orders[whole].tolist()).compose(event)._rdp
    np.testing.assert_allclose(curve[whole], reference, rtol=1e-9, atol=2e-14)
    some = [0, 3, 8, 19]  # 1.02, 1.2, 1.7 and 2.9
    truth = log_moments(rate, noise, orders[some]).real / (orders[some] - 1)
    assert (curve[some] >= truth * (1 - 1e-9) - 1e-14).all()
    assert (curve[some] <= truth * (1 + 1e-9) + 1e-10).all()
    assert (np.diff(curve) >= -1e-9 * curve[1:] - 1e-10).all()  # a divergence grows with its order


@pytest.mark.parametrize("steps", [10_000, 10_001])
def test_epsilon_of_ten_thousand_steps_takes_milliseconds(steps):
    rdp_curve.cache_clear()
    with cpu_loops() as loops:
        epsilon(sampled(0.01, 1.0, steps), 1.01e-5)
    assert loops.count < 8  # about one on an idle core

"""Plans: what was fixed before the first release composes as a fixed schedule, and what departs as a filter."""

import pytest
from dp_accounting import ComposedDpEvent
from hypothesis import given, settings
from hypothesis import strategies as st

import dpcomp as dp
from dpcomp.privacy.accounting.epsilon import epsilon, rdp_epsilon
from dpcomp.privacy.accounting.events import composed
from dpcomp.privacy.cost import ADAPTIVE, FIXED
from tests.cpu_time import cpu_loops

DELTA, RATES = 1e-5, [0.003, 0.05, 0.4, 1.0]


def cost(noise_multiplier, rate=0.02, unit="example"):
    mechanism = (dp.Clip(1.0), dp.Gaussian(noise_multiplier))
    return dp.Pipeline(mechanism=mechanism, sampling=dp.Poisson(rate) if rate < 1 else None, unit=unit).cost


LOUD, SOFT, PLAIN = cost(1.5), cost(1.0), cost(8.0, rate=1.0)
PLAN = dp.Plan([(LOUD, 60), (SOFT, 40), (LOUD, 5), (PLAIN, 1)])


def charged(ledger, charges, client=3):
    for number, (what, steps) in enumerate(charges):
        ledger.charge(what, dp.Address(0, client, number), steps)
    return ledger.guarantee(DELTA)


def before(charges):
    """Return how many steps come before each charge."""
    return [sum(steps for _, steps in charges[:number]) for number in range(len(charges))]


def by_filter(charges):
    return epsilon(ComposedDpEvent([composed(what.event, steps) for what, steps in charges]), DELTA, adaptive=True)[0]


def test_a_plan_composes_as_a_fixed_schedule_and_a_departure_as_a_filter():
    followed = charged(dp.Ledger(plan=PLAN), PLAN.releases)
    assert followed.epsilon == PLAN.guarantee(DELTA).epsilon < 0.95 * by_filter(PLAN.releases)
    assert (followed.accountant, followed.steps, FIXED in followed.assumptions) == ("PLD", 106, True)
    for departed in (
        [*PLAN.releases, (LOUD, 1)],  # more than was planned
        [(SOFT, 40), (LOUD, 65), (PLAIN, 1)],  # in another order
        [(LOUD, 61), (SOFT, 40)],  # across the end of a part
        [(LOUD, 60), (SOFT, 39), (LOUD, 1), (SOFT, 1)],  # and back again
        [(LOUD, 60), (LOUD, 40)],  # the first part again, where the second one was planned
        [(SOFT, 40)],  # a later part alone
    ):
        guarantee = charged(dp.Ledger(plan=PLAN), departed)
        assert guarantee.epsilon == pytest.approx(by_filter(departed), rel=1e-12)
        assert ADAPTIVE in guarantee.assumptions
    assert charged(dp.Ledger(), PLAN.releases).epsilon == pytest.approx(by_filter(PLAN.releases), rel=1e-12)


def test_a_part_of_a_plan_costs_what_a_plan_of_that_part_would():
    pieces = [(LOUD, 25), (LOUD, 35), (SOFT, 10)]
    part = dp.Plan(pieces)
    assert charged(dp.Ledger(plan=PLAN), pieces).epsilon == part.guarantee(DELTA).epsilon
    assert part.releases == PLAN.first(70) == ((LOUD, 60), (SOFT, 10))
    assert PLAN.first(0) == ()
    assert (PLAN.steps, part.steps) == (106, 70)


def test_each_client_follows_or_departs_for_itself():
    ledger = dp.Ledger(plan=PLAN)
    charged(ledger, PLAN.releases, client=1)
    assert charged(ledger, PLAN.first(70), client=2).epsilon == PLAN.guarantee(DELTA).epsilon
    departed = [(SOFT, 40), (LOUD, 60)]
    assert charged(ledger, departed, client=3).epsilon == pytest.approx(by_filter(departed))


@settings(max_examples=25, deadline=None)
@given(charges=st.lists(st.tuples(st.sampled_from([LOUD, SOFT]), st.integers(1, 4)), min_size=1, max_size=4))
def test_what_is_charged_composes_as_fixed_only_if_it_is_the_beginning_of_the_plan(charges):
    plan = dp.Plan([(LOUD, 3), (SOFT, 3)])
    single = [what for what, steps in charges for _ in range(steps)]
    at = zip(charges, before(charges), strict=True)
    across = any(what == LOUD and done < 3 < done + steps for (what, steps), done in at)
    follows = single == ([LOUD] * 3 + [SOFT] * 3)[: len(single)] and not across
    guarantee = charged(dp.Ledger(plan=plan), charges)
    assert (FIXED in guarantee.assumptions, ADAPTIVE in guarantee.assumptions) == (follows, not follows)
    assert follows or guarantee.epsilon == pytest.approx(by_filter(charges), rel=1e-12)


def test_a_budget_holds_a_departure_to_the_filter_even_where_one_event_alone_was_charged():
    within = by_filter([(LOUD, 70)])
    budget = dp.Budget(0.99 * within, DELTA)
    assert LOUD.guarantee(70, DELTA).epsilon < budget.epsilon  # a schedule that was fixed in advance would fit
    ledger = dp.Ledger(budget=budget, plan=PLAN)
    ledger.charge(LOUD, dp.Address(0, 1, 0), 60)
    with pytest.raises(dp.BudgetExhausted):
        ledger.charge(LOUD, dp.Address(0, 1, 1), 10)
    dp.Ledger(budget=budget).charge(LOUD, dp.Address(0, 1, 0), 70)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("begun", [0, 1, 3])
def test_what_many_charges_would_leave_is_what_each_of_them_leaves(begun, steps):
    plan = dp.Plan([(cost(2.0), 7), (cost(1.0), 6)])
    for charges in range(6):
        for noise in (2.0, 1.0):
            ledger, real = dp.Ledger(plan=plan), dp.Ledger(plan=plan)
            for number in range(begun):
                for each in (ledger, real):
                    each.charge(cost(2.0), dp.Address(0, 3, number))
            for number in range(charges):
                real.charge(cost(noise), dp.Address(1, 3, number), steps=steps)
            epsilon = real.guarantee(DELTA).epsilon
            assert ledger.within(dp.Budget(epsilon + 1e-9, DELTA), cost(noise), 3, steps, charges=charges)
            if charges or begun:
                assert not ledger.within(dp.Budget(epsilon * 0.999, DELTA), cost(noise), 3, steps, charges=charges)


def test_a_plan_stays_with_the_ledger_and_is_recorded_before_any_charge(tmp_path):
    path = tmp_path / "ledger.db"
    with dp.Ledger.create(path, plan=PLAN) as ledger:
        charged(ledger, PLAN.first(70))
    with dp.Ledger(path) as ledger:
        assert ledger.plan == PLAN
        ledger.charge(SOFT, dp.Address(0, 3, 10), 30)
        whole = ledger.guarantee(DELTA)
    assert whole.epsilon == dp.Plan(PLAN.first(100)).guarantee(DELTA).epsilon
    record = dp.Ledger.read(path)
    assert (record.plan, record.guarantee(DELTA)) == (PLAN, whole)
    with dp.Ledger(path, plan=PLAN) as ledger:
        assert ledger.guarantee(DELTA) == whole
    for other in (dp.Plan([(LOUD, 3)]), dp.Plan([*PLAN.releases, (SOFT, 1)])):
        with pytest.raises(dp.DpcompError, match="recorded when a ledger is created"):
            dp.Ledger(path, plan=other)
    dp.Ledger.create(tmp_path / "without.db").close()
    with pytest.raises(dp.DpcompError, match="has no plan, not Plan"):
        dp.Ledger(tmp_path / "without.db", plan=PLAN)


def test_a_budget_allows_the_first_releases_of_a_plan_that_fit_and_no_more():
    budget = dp.Budget(0.9 * PLAN.guarantee(DELTA).epsilon, DELTA)
    ledger, done = dp.Ledger(budget=budget, plan=PLAN), 0
    try:
        for what in [what for what, steps in PLAN.releases for _ in range(steps)]:
            ledger.charge(what, dp.Address(0, 1, done))
            done += 1
    except dp.BudgetExhausted:
        assert 10 < done < PLAN.steps
    assert dp.Plan(PLAN.first(done)).guarantee(DELTA).epsilon <= budget.epsilon
    assert dp.Plan(PLAN.first(done + 1)).guarantee(DELTA).epsilon > budget.epsilon
    with pytest.raises(dp.BudgetExhausted):
        ledger.charge(cost(1.01), dp.Address(0, 1, done))  # departs: Rényi DP of what is spent is beyond the budget
    generous = dp.Budget(20.0, DELTA)
    assert charged(dp.Ledger(budget=generous, plan=PLAN), PLAN.releases).epsilon == PLAN.guarantee(DELTA).epsilon


@settings(max_examples=15, deadline=None)
@given(
    releases=st.lists(
        st.tuples(st.floats(0.7, 6.0), st.sampled_from([0.003, 0.05, 0.4, 1.0]), st.integers(1, 300)),
        min_size=2,
        max_size=4,
    ),
    exponent=st.floats(-9, -4),
)
def test_a_plan_costs_less_than_a_filter_and_more_than_each_of_its_parts(releases, exponent):
    delta = 10**exponent
    plan = dp.Plan([(cost(noise, rate), steps) for noise, rate, steps in releases])
    whole = plan.guarantee(delta).epsilon
    event = ComposedDpEvent([composed(what.event, steps) for what, steps in plan.releases])
    assert whole <= rdp_epsilon(event, delta) * (1 + 1e-9)
    for what, steps in plan.releases:
        assert what.guarantee(steps, delta).epsilon <= whole * (1 + 3e-3)
    backwards = dp.Plan(plan.releases[::-1]).guarantee(delta).epsilon
    assert backwards == pytest.approx(whole, rel=1e-9)


def test_a_plan_of_many_different_releases_has_an_answer_soon():
    plan = dp.Plan([(cost(2.0 - number / 300), 10) for number in range(300)])
    with cpu_loops() as loops:
        value = plan.guarantee(DELTA).epsilon
    assert loops.count < 200  # 20 on an idle core
    grouped = dp.Plan([(cost(2.0 - (number + 0.5) / 60), 50) for number in range(60)]).guarantee(DELTA).epsilon
    assert grouped <= value <= 1.02 * grouped


@pytest.mark.parametrize(
    ("releases", "error", "words"),
    [
        ([], ValueError, "nothing is planned"),
        ([LOUD], TypeError, "is no release"),
        ([(LOUD, 0)], ValueError, "steps"),
        ([(LOUD, 1.5)], TypeError, "whole number"),
        ([(LOUD.event, 3)], TypeError, "is no release"),
        ([(LOUD, 3), (cost(1.0, rate=1.0, unit="client"), 3)], ValueError, "different units or trusts"),
    ],
)
def test_what_is_no_plan_is_refused(releases, error, words):
    with pytest.raises(error, match=words):
        dp.Plan(releases)


def test_a_ledger_takes_plans_alone():
    with pytest.raises(TypeError, match=r"give a dp\.Plan"):
        dp.Ledger(plan=PLAN.releases)

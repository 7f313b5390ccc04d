"""Budgets: the charge that would exceed one is refused before anything is spent."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from hypothesis import given, settings
from hypothesis import strategies as st

import dpcomp as dp
from dpcomp.privacy.ledger.budget import admissible_steps
from dpcomp.privacy.ledger.cost_text import cost_as_text
from dpcomp.privacy.ledger.ledger_file import append
from tests.cpu_time import cpu_loops

BUDGET = dp.Budget(epsilon=2.0, delta=1e-5)


def pipeline(noise_multiplier, rate=0.1):
    return dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(noise_multiplier)), sampling=dp.Poisson(rate))


def charged(ledger, number, kind, steps=1, client=3):
    return ledger.charge(kind.cost, dp.Address(5, client, number), steps=steps)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([0.01, 0.1, 1.0]), st.floats(0.8, 5.0), st.floats(0.3, 8.0))
def test_the_last_admissible_step_fits_and_the_next_does_not(rate, noise, epsilon):
    kind, budget = pipeline(noise, rate), dp.Budget(epsilon, 1e-5)
    most = admissible_steps(kind.cost.event, budget)
    assert kind.guarantee(most, 1e-5).epsilon <= epsilon < kind.guarantee(most + 1, 1e-5).epsilon


def test_what_has_no_guarantee_has_no_admissible_step():
    ledger = dp.Ledger(budget=BUDGET)
    with pytest.raises(dp.BudgetExhausted, match="nothing was charged"):
        charged(ledger, 0, dp.Pipeline(mechanism=dp.unsafe("a look")))


def test_a_planned_event_is_charged_to_the_last_step_and_no_further():
    kind, ledger = pipeline(1.0), dp.Ledger(budget=BUDGET)
    most = admissible_steps(kind.cost.event, BUDGET)
    charged(ledger, 0, kind, most - 1)
    with pytest.raises(dp.BudgetExhausted, match=f"to {most + 1} steps"):
        charged(ledger, 1, kind, 2)
    charged(ledger, 1, kind)
    with pytest.raises(dp.BudgetExhausted, match="beyond"):
        charged(ledger, 2, kind)
    charged(ledger, 2, kind, client=4)  # has a budget of its own
    assert ledger.guarantee(1e-5) == kind.guarantee(most, 1e-5)
    assert ledger.guarantee(1e-5).epsilon <= BUDGET.epsilon


def test_events_chosen_on_the_way_are_charged_while_their_renyi_dp_allows_it():
    ledger, kinds = dp.Ledger(budget=BUDGET), [pipeline(2.0), pipeline(1.3, 0.2), pipeline(4.0)]
    for number in range(10_000):
        try:
            charged(ledger, number, kinds[number % 3])
        except dp.BudgetExhausted:
            break
    spent = ledger.guarantee(1e-5)
    assert (spent.accountant, spent.steps) == ("RDP", number)
    assert spent.epsilon <= BUDGET.epsilon
    unbounded = dp.Ledger()
    for again in range(number + 1):
        charged(unbounded, again, kinds[again % 3])
    assert unbounded.guarantee(1e-5).epsilon > BUDGET.epsilon
    with pytest.raises(dp.BudgetExhausted):
        charged(ledger, number, kinds[number % 3])


def test_a_plan_that_was_used_up_leaves_nothing_for_another_event():
    kind, ledger = pipeline(1.0), dp.Ledger(budget=BUDGET)
    charged(ledger, 0, kind, admissible_steps(kind.cost.event, BUDGET))
    with pytest.raises(dp.BudgetExhausted):
        charged(ledger, 1, pipeline(50.0))


def test_the_budget_stays_with_the_charges(tmp_path):
    path, kind = tmp_path / "ledger.db", pipeline(1.0)
    with dp.Ledger.create(path, BUDGET) as ledger:
        charged(ledger, 0, kind, admissible_steps(kind.cost.event, BUDGET))
    with dp.Ledger(path) as ledger:
        assert ledger.budget == BUDGET
        with pytest.raises(dp.BudgetExhausted):
            charged(ledger, 1, kind)
    with pytest.raises(dp.DpcompError, match="never changed"):
        dp.Ledger(path, dp.Budget(20.0, 1e-5))
    with dp.Ledger(path, BUDGET) as ledger:
        assert ledger.guarantee(1e-5).steps == admissible_steps(kind.cost.event, BUDGET)


def test_a_budget_that_was_exceeded_before_it_was_set_is_refused(tmp_path):
    path, kind = tmp_path / "ledger.db", pipeline(1.0)
    with dp.Ledger.create(path) as ledger:
        charged(ledger, 0, kind, admissible_steps(kind.cost.event, BUDGET) + 1)
    with pytest.raises(dp.BudgetExhausted, match="client 3 has spent more"):
        dp.Ledger(path, BUDGET)
    with dp.Ledger(path) as ledger:
        assert ledger.budget is None
    larger = dp.Budget(20.0, 1e-5)
    dp.Ledger(path, larger).close()
    with dp.Ledger(path) as ledger:
        assert ledger.budget == dp.Ledger.read(path).budget == larger


def test_an_address_that_was_refused_is_not_charged_and_may_be_charged_less():
    kind, ledger = pipeline(1.0), dp.Ledger(budget=BUDGET)
    most = admissible_steps(kind.cost.event, BUDGET)
    with pytest.raises(dp.BudgetExhausted):
        charged(ledger, 0, kind, most + 1)
    assert charged(ledger, 0, kind, most).steps == most


def test_a_budget_holds_for_threads_that_charge_at_once():
    kind, ledger = pipeline(1.0), dp.Ledger(budget=BUDGET)
    most, given = admissible_steps(kind.cost.event, BUDGET), []

    def charge_all(worker):
        for number in range(most):
            try:
                given.append(charged(ledger, worker * most + number, kind))
            except dp.BudgetExhausted:
                return

    threads = [threading.Thread(target=charge_all, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) == ledger.guarantee(1e-5).steps == most


def test_killed_at_any_charge_the_ledger_never_forgets_and_never_exceeds(tmp_path):
    path, kind = tmp_path / "ledger.db", pipeline(20.0, rate=1.0)  # without sampling, the budget takes no time
    script = (
        "import sys, dpcomp as dp\n"
        "kind = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(20.0)), sampling=dp.Poisson(1.0))\n"
        "ledger = dp.Ledger(sys.argv[1])\n"
        "for number in range(int(sys.argv[2]), 10_000):\n"
        "    ledger.charge(kind.cost, dp.Address(5, 3, number))\n"
        "    print(number, flush=True)\n"
    )
    dp.Ledger.create(path, dp.Budget(20.0, 1e-5)).close()
    told = -1
    for lines in (1, 3):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path), str(told + 2)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(lines):
            told = int(process.stdout.readline())
        process.kill()
        told = max([told, *map(int, process.stdout.read().split())])
        process.wait()
        process.stdout.close()
        with dp.Ledger(path) as ledger:
            rounds = {entry.address.round for entry in dp.Ledger.read(path).entries}
            assert told in rounds
            assert rounds <= set(range(told + 2))  # at most one more than was told
            assert (
                ledger.guarantee(1e-5).steps == len(rounds) <= admissible_steps(kind.cost.event, dp.Budget(20.0, 1e-5))
            )


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0.0, 1e-5), (-1.0, 1e-5), (float("inf"), 1e-5), (1.0, 0.0), (1.0, 1.0)]
)
def test_a_budget_is_a_finite_epsilon_and_a_delta(epsilon, delta):
    with pytest.raises(ValueError, match=r"ε|δ"):
        dp.Budget(epsilon, delta)


@pytest.mark.parametrize("epsilon", [8, np.float32(8), np.float64(8), np.int64(8), np.uint8(8)])
def test_a_budget_takes_the_numbers_that_other_parts_take(epsilon):
    budget = dp.Budget(epsilon, np.float64(1e-5))
    assert budget == dp.Budget(8.0, 1e-5)
    assert type(budget.epsilon) is float


@pytest.mark.parametrize("epsilon", [True, "8", None, np.array(8.0)])
def test_a_budget_is_a_number(epsilon):
    with pytest.raises(TypeError, match="ε, a finite number above 0"):
        dp.Budget(epsilon, 1e-5)


def test_steps_beyond_what_a_database_counts_are_never_admitted():
    event = PoissonSampledDpEvent(1e-5, GaussianDpEvent(1000.0))
    assert admissible_steps(event, dp.Budget(1e4, 1e-5)) == 10**12


@pytest.mark.slow
def test_two_hundred_thousand_charges_stay_fast(tmp_path):
    path, kind = tmp_path / "ledger.db", pipeline(1.0)
    with dp.Ledger.create(path) as ledger:
        mark, row = ledger.mark, cost_as_text(kind.cost)
        with ledger._database.changing() as connection:
            for number in range(200_000):
                mark = append(connection, "ledger", mark, "charges", "5", number % 50, number, 1, *row)
    with dp.Ledger(path, dp.Budget(5e3, 1e-5)) as ledger:
        charged(ledger, 200_001, kind)  # of this event, the admissible steps are found once
        with cpu_loops() as loops:
            for number in range(200_002, 200_202):
                charged(ledger, number, kind, client=number % 50)
        assert loops.count < 64
        with cpu_loops() as loops:
            assert ledger.guarantee(1e-5).steps > 4_000
        assert loops.count < 160

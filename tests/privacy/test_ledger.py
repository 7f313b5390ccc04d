import math
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

import dpcomp as dp
from tests.cpu_time import cpu_loops

PIPELINE = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1))
HERE = dp.Address(5, 3, 0)


def test_an_address_is_charged_once():
    ledger = dp.Ledger()
    ledger.charge(PIPELINE.cost, HERE)
    with pytest.raises(dp.BudgetExhausted, match="charged before"):
        ledger.charge(PIPELINE.cost, HERE)
    with pytest.raises(dp.BudgetExhausted, match=r"follow a broadcast.*that client's number.*fresh dp\.Ledger\(\)"):
        ledger.charge(PIPELINE.cost, HERE)
    assert ledger.guarantee(1e-5).steps == 1


def test_a_charge_is_on_disk_before_the_permit_is_used(tmp_path):
    path = tmp_path / "ledger.db"
    with dp.Ledger(path) as ledger:
        ledger.charge(PIPELINE.cost, HERE, steps=3)
    with dp.Ledger(path) as ledger:
        assert ledger.guarantee(1e-5) == PIPELINE.guarantee(3, 1e-5)
        with pytest.raises(dp.BudgetExhausted, match="charged before"):
            ledger.charge(PIPELINE.cost, HERE)


def test_a_charge_survives_a_process_that_is_killed_right_after(tmp_path):
    path = tmp_path / "ledger.db"
    script = (
        "import os, signal, sys, dpcomp as dp\n"
        "pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1))\n"
        "dp.Ledger(sys.argv[1]).charge(pipeline.cost, dp.Address(5, 3, 0), steps=2)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -9
    assert dp.Ledger(path).guarantee(1e-5).steps == 2


def test_one_process_at_a_time_holds_a_ledger(tmp_path):
    path = tmp_path / "ledger.db"
    with dp.Ledger(path):
        script = "import sys, dpcomp as dp; dp.Ledger(sys.argv[1])"
        other = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert other.returncode == 1
    assert "open in another process" in other.stderr


def test_nothing_is_ever_taken_back(tmp_path):
    path = tmp_path / "ledger.db"
    with dp.Ledger(path) as ledger:
        ledger.charge(PIPELINE.cost, HERE)
    with sqlite3.connect(path) as database:
        for statement in ("DELETE FROM charges", "UPDATE charges SET steps = 1"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(statement)
    database.close()


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"not a database, but somebody's notes\n" * 50)
    before = path.read_bytes()
    with pytest.raises(dp.DpcompError, match="is no ledger"):
        dp.Ledger(path)
    assert path.read_bytes() == before
    with pytest.raises(dp.DpcompError, match="cannot be opened"):
        dp.Ledger(tmp_path / "no" / "such" / "folder.db")


def test_a_permit_is_for_its_pipeline_its_client_and_its_steps():
    ledger, secret = dp.Ledger(), dp.SecretSeed(0)
    memory = PIPELINE.init_client(10, seed=dp.PublicSeed(5), client=3)
    permit = ledger.charge(PIPELINE.cost, memory.address, steps=2)
    louder = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(0.5)), sampling=dp.Poisson(0.1))
    with pytest.raises(dp.BudgetExhausted, match="charged for"):
        louder.release([], louder.init_client(10, seed=dp.PublicSeed(5), client=3), secret, permit)
    with pytest.raises(ValueError, match="cannot release for client 4"):
        PIPELINE.release([], PIPELINE.init_client(10, seed=dp.PublicSeed(5), client=4), secret, permit)
    first, second = (PIPELINE.release([], memory, secret, permit) for _ in range(2))
    assert not np.array_equal(first.values, second.values)
    with pytest.raises(dp.BudgetExhausted, match="used up"):
        PIPELINE.release([], memory, secret, permit)


def test_a_permit_is_worth_nothing_in_a_forked_process():
    # In an interpreter of its own: other tests leave threads behind, which do not like to be forked.
    script = (
        "import os, dpcomp as dp\n"
        "pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))\n"
        "permit = dp.Ledger().charge(pipeline.cost, dp.Address(5, 3, 0))\n"
        "if child := os.fork():\n"
        "    os.waitpid(child, 0)\n"
        "permit.spend(pipeline.cost, seeded=False)\n"
        "print('spent')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "spent\n"
    assert "given to another process" in done.stderr


def test_the_guarantee_is_the_largest_of_the_clients():
    ledger = dp.Ledger()
    for client, rounds in ((0, 3), (1, 8), (2, 1)):
        for number in range(rounds):
            ledger.charge(PIPELINE.cost, dp.Address(5, client, number))
    assert ledger.guarantee(1e-5) == PIPELINE.guarantee(8, 1e-5)


def test_an_empty_ledger_has_spent_nothing():
    assert dp.Ledger().guarantee(1e-5).epsilon == 0


def test_an_unsafe_charge_is_remembered_as_such():
    ledger = dp.Ledger()
    ledger.charge(dp.Pipeline(mechanism=dp.unsafe("a look")).cost, HERE)
    assert ledger.guarantee(1e-5).epsilon == math.inf
    assert "a look" in str(ledger.guarantee(1e-5))


def test_units_and_trusts_are_not_mixed():
    ledger = dp.Ledger()
    ledger.charge(PIPELINE.cost, HERE)
    other = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), unit="client")
    with pytest.raises(ValueError, match="keep a ledger for each"):
        ledger.charge(other.cost, dp.Address(5, 3, 1))


@pytest.mark.parametrize(
    ("steps", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError), (10**12 + 1, ValueError)],
)
def test_steps_are_whole_and_at_least_one(steps, error):
    ledger = dp.Ledger()
    with pytest.raises(error, match=f"is {steps}: give a whole number from 1 to 1,000,000,000,000"):
        ledger.charge(PIPELINE.cost, HERE, steps=steps)
    assert not ledger.charged(HERE)


def test_a_ledger_charges_costs_alone():
    with pytest.raises(TypeError, match="a Cost is charged"):
        dp.Ledger().charge(PIPELINE, HERE)


def test_many_charges_stay_fast():
    ledger, costs = dp.Ledger(), []
    for first in range(0, 5_000, 500):
        with cpu_loops() as loops:
            for number in range(first, first + 500):
                ledger.charge(PIPELINE.cost, dp.Address(5, number % 10, number))
        costs.append(loops.count)
    assert min(costs[5:]) < 2 * min(costs[:5])  # no charge looks at all that went before
    assert ledger.guarantee(1e-5).steps == 500

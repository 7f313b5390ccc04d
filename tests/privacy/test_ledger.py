import copy
import math
import pickle
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from datetime import timedelta

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.privacy.cost import guarantee_of
from dpcomp.privacy.ledger import ledger_file
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
    with dp.Ledger.create(path) as ledger:
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
        "dp.Ledger.create(sys.argv[1]).charge(pipeline.cost, dp.Address(5, 3, 0), steps=2)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -9
    with dp.Ledger(path) as ledger:
        assert ledger.guarantee(1e-5).steps == 2


def test_one_process_at_a_time_holds_a_ledger(tmp_path):
    path = tmp_path / "ledger.db"
    with dp.Ledger.create(path):
        path.read_bytes()
        script = "import sys, dpcomp as dp; dp.Ledger(sys.argv[1])"
        other = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert other.returncode == 1
    assert "open in another process" in other.stderr


def test_nothing_is_ever_taken_back(tmp_path):
    path = tmp_path / "ledger.db"
    with dp.Ledger.create(path, dp.Budget(5.0, 1e-5)) as ledger:
        ledger.charge(PIPELINE.cost, HERE)
    with sqlite3.connect(path) as database:
        for statement in (
            "DELETE FROM charges",
            "UPDATE charges SET steps = 1",
            "REPLACE INTO charges SELECT * FROM charges",
            "REPLACE INTO charges SELECT 3, time, run, client, round, 1, event, basis, digest FROM charges",
            "DELETE FROM budgets",
            "UPDATE budgets SET epsilon = 9",
            "INSERT INTO budgets SELECT 3, time, 9, delta, digest FROM budgets",
            "DELETE FROM head",
            "UPDATE head SET count = 0",
            "UPDATE head SET research = 1, count = count + 1",
            "INSERT INTO head SELECT * FROM head",
        ):
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
    with pytest.raises(dp.DpcompError, match="no such folder"):
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


def test_a_path_where_no_ledger_is_makes_none(tmp_path):
    dp.Ledger.create(tmp_path / "client-7.db").close()
    for act in (dp.Ledger, dp.Ledger.read):
        with pytest.raises(dp.DpcompError, match=r"the folder has client-7\.db\. `dp\.Ledger\.create\(path\)` makes"):
            act(tmp_path / "cleint-7.db")
    with pytest.raises(dp.DpcompError, match="exists already"):
        dp.Ledger.create(tmp_path / "client-7.db")
    assert [file.name for file in tmp_path.iterdir()] == ["client-7.db"]


def test_a_ledger_can_be_read_while_it_is_in_use(tmp_path):
    path, budget = tmp_path / "ledger.db", dp.Budget(50.0, 1e-5)
    start = int(time.time())
    with dp.Ledger.create(path, budget) as ledger:
        ledger.charge(PIPELINE.cost, HERE, steps=5)
        ledger.charge(PIPELINE.cost, dp.Address(2**64 - 1, dp.SERVER, 0), steps=17)
        script = "import sys, dpcomp as dp; r = dp.Ledger.read(sys.argv[1]); print(r.mark); print(r.guarantee(1e-5))"
        other = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
        record = dp.Ledger.read(path)
        assert other.stdout == f"{ledger.mark}\n{ledger.guarantee(1e-5)}\n"
        assert (record.mark, record.budget, record.research, record.seeded) == (ledger.mark, budget, False, False)
        assert record.guarantee(1e-5, population=100) == ledger.guarantee(1e-5, population=100)
        assert [(entry.address, entry.steps, entry.cost) for entry in record.entries] == [
            (HERE, 5, PIPELINE.cost),
            (dp.Address(2**64 - 1, dp.SERVER, 0), 17, PIPELINE.cost),
        ]
        for entry in record.entries:
            assert entry.time.utcoffset() == timedelta(0)
            assert start <= entry.time.timestamp() <= time.time()
        ledger.charge(PIPELINE.cost, dp.Address(5, 3, 1))
        assert len(record.entries) == 2
    assert not hasattr(record, "charge")


def durable(path, charges=4):
    with dp.Ledger.create(path, dp.Budget(50.0, 1e-5), research=True) as ledger:
        for number in range(charges):
            permit = ledger.charge(PIPELINE.cost, dp.Address(5, number % 2, number), steps=number + 1)
            permit.spend(PIPELINE.cost, seeded=True)
        return ledger.mark


def tamper(path, *statements):
    """What anybody with SQLite can do: without the triggers, and with them again."""
    with closing(sqlite3.connect(path)) as database:
        triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            database.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            database.execute(statement)
        for _, sql in triggers:
            database.execute(sql)
        database.commit()


@pytest.mark.parametrize(
    "statements",
    [
        ["DELETE FROM charges WHERE round = 1"],
        ["DELETE FROM charges WHERE round = 3"],
        ["DELETE FROM charges"],
        ["DELETE FROM charges WHERE round = 3", "UPDATE head SET count = count - 1"],
        ["UPDATE charges SET steps = 1 WHERE round = 2"],
        ["UPDATE charges SET client = 7 WHERE round = 2"],
        ["UPDATE charges SET time = time + 1 WHERE round = 0"],
        ["UPDATE charges SET event = x'00' WHERE round = 0"],
        ["""UPDATE charges SET event = '{"gaussian": 50.0}' WHERE round = 3"""],
        ["UPDATE budgets SET epsilon = 100"],
        ["DELETE FROM budgets"],
        ["DELETE FROM seeded"],
        ["UPDATE head SET research = 0"],
        ["UPDATE head SET identity = 'another'"],
        ["DELETE FROM head"],
        ["INSERT INTO charges SELECT 9, time, run, 9, 9, 1, event, basis, digest FROM charges WHERE round = 3"],
        ["DROP TABLE seeded"],
    ],
)
def test_an_entry_that_was_changed_is_noticed(tmp_path, statements):
    path = tmp_path / "ledger.db"
    durable(path)
    tamper(path)
    dp.Ledger(path).close()
    with suppress(sqlite3.OperationalError):  # a trigger of a table that is gone
        tamper(path, *statements)
    before = path.read_bytes()
    for act in (dp.Ledger, dp.Ledger.read):
        with pytest.raises(dp.DpcompError, match=r"was changed|is incomplete|cannot be read"):
            act(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("block", [1, 3, 4096])
def test_a_ledger_is_read_alike_in_blocks_of_any_size(tmp_path, monkeypatch, block):
    path, charges = tmp_path / "ledger.db", []
    with dp.Ledger.create(path) as ledger:
        for number in range(14):
            cost = (PIPELINE.cost, dp.Cost(**{**vars(PIPELINE.cost), "sampling": "none"}))[number in (4, 9)]
            charges.append((dp.Address(5 + (number > 6), number % 3, number), 1 + number % 2, cost))
            permit = ledger.charge(cost, *charges[-1][:1], steps=charges[-1][1])
            if number == 12:
                permit.assume(["the divisor 64 is public"])
    monkeypatch.setattr(ledger_file, "BLOCK", block)
    record = dp.Ledger.read(path)
    assert [(entry.address, entry.steps, entry.cost) for entry in record.entries] == charges
    assert record.mark == ledger.mark


@pytest.fixture(scope="module")
def seven_charges(tmp_path_factory):
    path = tmp_path_factory.mktemp("seven") / "ledger.db"
    with dp.Ledger.create(path) as ledger:
        for number in range(7):
            ledger.charge(PIPELINE.cost, dp.Address(5, 0, number))
    return path.read_bytes()


@pytest.mark.parametrize("block", [3, 4096])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE charges SET steps = 1.5 WHERE number = {number}",
        "UPDATE charges SET client = 'seven' WHERE number = {number}",
        "UPDATE charges SET round = round + 100 WHERE number = {number}",
        "UPDATE charges SET digest = 'a,b' WHERE number = {number}",
        "UPDATE charges SET digest = substr(digest, 1, 31) WHERE number = {number}",
        "UPDATE charges SET basis = basis || ' ' WHERE number = {number}",
        "DELETE FROM charges WHERE number = {number}",
        "UPDATE charges SET number = -1 WHERE number = {number}",
        "INSERT INTO charges SELECT -1, time, run, 9, 9, 1, event, basis, digest FROM charges WHERE number = {number}",
    ],
)
def test_a_change_is_noticed_wherever_it_stands_in_a_block(tmp_path, monkeypatch, seven_charges, statement, block):
    path = tmp_path / "ledger.db"
    monkeypatch.setattr(ledger_file, "BLOCK", block)
    for number in (4, 6):
        path.write_bytes(seven_charges)
        tamper(path, statement.format(number=number))
        with pytest.raises(dp.DpcompError, match=r"was changed|is incomplete"):
            dp.Ledger.read(path)


def test_a_ledger_that_another_program_overwrites_takes_no_charge(tmp_path):
    path = tmp_path / "ledger.db"
    durable(path, 2)
    backup = path.read_bytes()
    with dp.Ledger(path) as ledger:
        ledger.charge(PIPELINE.cost, HERE)
        path.write_bytes(backup)
        with pytest.raises(dp.DpcompError, match="changed by another program"):
            ledger.charge(PIPELINE.cost, dp.Address(5, 3, 1))


def test_a_restored_deleted_or_exchanged_ledger_is_older_than_a_mark(tmp_path):
    path = tmp_path / "ledger.db"
    marks = [durable(path, 2)]
    backup = path.read_bytes()
    with dp.Ledger(path) as ledger:
        for number in range(2):
            ledger.charge(PIPELINE.cost, dp.Address(5, 3, number))
            marks.append(ledger.mark)
            for mark in marks:
                ledger.refuse_older_than(mark)
    assert [mark.count for mark in marks] == [5, 6, 7]

    path.write_bytes(backup)
    with dp.Ledger(path) as ledger:
        ledger.refuse_older_than(marks[0])
        with pytest.raises(dp.DpcompError, match=rf"(?s){marks[0].digest}.*{marks[1].digest}.*is older"):
            ledger.refuse_older_than(marks[1])
        for number in range(2, 5):
            ledger.charge(PIPELINE.cost, dp.Address(5, 3, number))
        with pytest.raises(dp.DpcompError, match="has other entries"):
            ledger.refuse_older_than(marks[1])
    path.unlink()
    empty = dp.Ledger.create(tmp_path / "another.db")
    first = empty.mark
    empty.close()
    with dp.Ledger.create(path) as ledger:
        for mark in (*marks, first):
            with pytest.raises(dp.DpcompError, match="Restore the newest ledger"):
                ledger.refuse_older_than(mark)
        ledger.refuse_older_than(ledger.mark)
    memory = dp.Ledger()
    memory.charge(PIPELINE.cost, HERE)
    memory.refuse_older_than(memory.mark)
    with pytest.raises(dp.DpcompError, match="older"):
        dp.Ledger().refuse_older_than(memory.mark)


def test_a_copy_of_the_file_alone_is_complete_after_each_charge(tmp_path):
    path, copy = tmp_path / "ledger.db", tmp_path / "copy.db"
    with dp.Ledger.create(path) as ledger:
        for number in range(100):
            ledger.charge(PIPELINE.cost, dp.Address(5, 3, number))
            if number % 10 == 0:
                copy.write_bytes(path.read_bytes())
                assert dp.Ledger.read(copy).mark == ledger.mark
                with dp.Ledger(copy) as opened:
                    assert opened.guarantee(1e-5) == ledger.guarantee(1e-5)


def test_every_mixture_of_states_of_a_file_is_complete_or_refused(tmp_path):
    # A copy that is made page by page while charges are written, some pages before a charge and some after it.
    path, copied, complete = tmp_path / "ledger.db", tmp_path / "copy.db", 0
    rng, states, counts = np.random.default_rng(0), [], []
    durable(path, 30)
    with dp.Ledger(path) as ledger:
        for number in range(60):
            ledger.charge(PIPELINE.cost, dp.Address(5, 3, number))
            states.append(path.read_bytes())
            counts.append(ledger.mark.count)
    for span in (2, 2, 60):
        for first in range(61 - span):
            moments = first + rng.integers(0, span, len(states[-1]) // 4096)
            copied.write_bytes(
                b"".join(states[moment][4096 * page : 4096 * (page + 1)] for page, moment in enumerate(moments))
            )
            try:
                record = dp.Ledger.read(copied)
            except dp.DpcompError:
                continue
            complete += 1
            assert record.mark.count >= counts[first]
    assert complete


def charge_many(ledger, charges):
    for number in range(charges):
        ledger.charge(PIPELINE.cost, dp.Address(5, 3, number))


def test_a_full_disk_charges_nothing(tmp_path):
    path = tmp_path / "ledger.db"
    ledger = dp.Ledger.create(path)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 4096, before[1]))
        with pytest.raises(dp.DpcompError, match=r"ledger\.db cannot be written .*nothing was changed. Is the disk"):
            charge_many(ledger, 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    charges = ledger.guarantee(1e-5).steps
    assert len(dp.Ledger.read(path).entries) == charges > 0
    assert ledger.charged(dp.Address(5, 3, charges - 1)) and not ledger.charged(dp.Address(5, 3, charges))
    ledger.charge(PIPELINE.cost, dp.Address(5, 3, charges))
    ledger.close()
    with dp.Ledger(path) as ledger:
        assert ledger.guarantee(1e-5).steps == charges + 1


def test_a_numbered_seed_is_for_ledgers_of_research(tmp_path):
    memory = PIPELINE.init_client(10, seed=dp.PublicSeed(5), client=3)
    with dp.Ledger.create(tmp_path / "deployed.db") as ledger:
        permit = ledger.charge(PIPELINE.cost, memory.address)
        with pytest.raises(dp.NotPrivate, match="SecretSeed with a number"):
            PIPELINE.release([], memory, dp.SecretSeed(0), permit)
        assert permit.used == 0
        with pytest.raises(dp.NotPrivate, match="research=True"):
            ledger.refuse_seed(dp.SecretSeed(0))
        ledger.refuse_seed(dp.SecretSeed())
        PIPELINE.release([], memory, dp.SecretSeed(), permit)
        assert "SEEDED" not in str(ledger.guarantee(1e-5))
    path = tmp_path / "research.db"
    with dp.Ledger.create(path, research=True) as ledger:
        ledger.refuse_seed(dp.SecretSeed(0))
        PIPELINE.release([], memory, dp.SecretSeed(0), ledger.charge(PIPELINE.cost, memory.address))
        assert "SEEDED" in str(dp.Ledger.read(path).guarantee(1e-5))
    with dp.Ledger(path) as ledger:
        assert ledger.research
        assert "SEEDED" in str(ledger.guarantee(1e-5))


def test_what_was_assumed_stands_in_every_later_guarantee(tmp_path):
    path = tmp_path / "ledger.db"
    with dp.Ledger.create(path) as ledger:
        before = ledger.mark
        permit = ledger.charge(PIPELINE.cost, HERE)
        permit.assume(["the divisor 64 is public", "rows were checked"])
        marked = ledger.mark
        permit.assume(["rows were checked"])
        assert ledger.mark == marked and marked.count == before.count + 3
        said = ledger.guarantee(1e-5)
    with dp.Ledger(path) as again:
        assert again.guarantee(1e-5) == said
        again.refuse_older_than(marked)
    record = dp.Ledger.read(path)
    assert record.assumed == ("the divisor 64 is public", "rows were checked")
    assert record.guarantee(1e-5) == said
    assert set(record.assumed) <= set(said.assumptions)


@pytest.mark.parametrize("clauses", ["the divisor 64 is public", ["it is public", 64], 64])
def test_what_is_assumed_are_clauses_and_no_letters(clauses):
    ledger = dp.Ledger()
    permit = ledger.charge(PIPELINE.cost, HERE)
    for assume in (permit.assume, ledger.assume):
        with pytest.raises(TypeError):
            assume(clauses)
    assert ledger.mark.count == 1


def test_numbers_of_numpy_find_what_was_charged_and_other_types_are_refused(tmp_path):
    with dp.Ledger.create(tmp_path / "ledger.db") as ledger:
        ledger.charge(PIPELINE.cost, HERE, steps=2)
        record, budget = dp.Ledger.read(tmp_path / "ledger.db"), dp.Budget(1.0, 1e-5)
        assert ledger.charge_at(HERE) == (PIPELINE.cost, 2)
        assert ledger.charge_at(dp.Address(5, 3, 1)) is None
        for number in (3, np.int64(3), np.uint8(3)):
            assert ledger.charged_rounds(np.uint64(5), number) == record.charged_rounds(np.int8(5), number) == {0}
            assert record.guarantee_of(number, 1e-5) == ledger.guarantee(1e-5)
            assert not ledger.within(budget, PIPELINE.cost, number, 10**6)
        for number in ("3", 3.0, True, None):
            for ask in (
                lambda number: ledger.charged_rounds(5, number),
                lambda number: ledger.charged_rounds(number, 3),
                lambda number: record.charged_rounds(5, number),
                lambda number: record.guarantee_of(number, 1e-5),
                lambda number: ledger.within(budget, PIPELINE.cost, number, 1),
                ledger.charged,
                ledger.charge_at,
            ):
                with pytest.raises(TypeError):
                    ask(number)


def test_a_permit_that_no_ledger_gave_is_worth_nothing():
    ledger, other = dp.Ledger(), dp.Ledger()
    with pytest.raises(TypeError, match="is not made but given"):
        dp.Permit(ledger, HERE, PIPELINE.cost, 1000, token=object())
    permit = ledger.charge(PIPELINE.cost, HERE)
    for name in ("steps", "used", "address"):
        with pytest.raises(AttributeError):
            setattr(permit, name, 0)
    for act in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="stays in the process"):
            act(permit)
    forged = dp.Permit(ledger, HERE, PIPELINE.cost, 1000, token=ledger._token)  # a deliberate look inside
    with pytest.raises(TypeError, match="did not give"):
        forged.spend(PIPELINE.cost, seeded=False)
    with pytest.raises(TypeError, match="is not made but given"):
        dp.Permit(other, HERE, PIPELINE.cost, 1000, token=ledger._token)


@pytest.mark.parametrize("bad", [(7, 0), None, "here"])
def test_a_ledger_charges_addresses_alone(bad):
    with pytest.raises(TypeError, match="give an Address"):
        dp.Ledger().charge(PIPELINE.cost, bad)


@pytest.mark.parametrize("budget", [4.0, (4.0, 1e-5)])
def test_a_budget_is_checked_before_a_file_is_made(tmp_path, budget):
    for make in (lambda: dp.Ledger(budget=budget), lambda: dp.Ledger.create(tmp_path / "ledger.db", budget)):
        with pytest.raises(TypeError, match=r"give a dp\.Budget"):
            make()
    assert not list(tmp_path.iterdir())


def test_a_forked_child_can_not_use_the_ledger_of_its_parent(tmp_path):
    script = (
        "import os, sys, dpcomp as dp\n"
        "pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))\n"
        "ledger = dp.Ledger.create(sys.argv[1])\n"
        "ledger.charge(pipeline.cost, dp.Address(5, 3, 0))\n"
        "if child := os.fork():\n"
        "    os.waitpid(child, 0)\n"
        "    ledger.charge(pipeline.cost, dp.Address(5, 3, 1))\n"
        "    sys.exit()\n"
        "acts = (lambda: ledger.charge(pipeline.cost, dp.Address(5, 3, 2)), lambda: ledger.guarantee(1e-5),\n"
        "        lambda: ledger.charged(dp.Address(5, 3, 0)), lambda: dp.Ledger(sys.argv[1]))\n"
        "for act in acts:\n"
        "    try:\n"
        "        act()\n"
        "    except dp.DpcompError:\n"
        "        print('refused', flush=True)\n"
        "print(len(dp.Ledger.read(sys.argv[1]).entries), flush=True)\n"
        "ledger.close()\n"
    )
    path = tmp_path / "ledger.db"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.stdout == "refused\n" * 4 + "1\n", done.stderr
    assert len(dp.Ledger.read(path).entries) == 2
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("events", [1, 2])
def test_the_guarantee_of_many_clients_takes_little_more_than_that_of_one(events):
    """Sixty clients that took part in different numbers of rounds, and thousands of alike histories."""
    kinds = [
        dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(2.0 + kind)), sampling=dp.Poisson(0.05)) for kind in (0, 1)
    ]
    ledger = dp.Ledger()
    for client in range(60):
        for kind in range(events):
            ledger.charge(kinds[kind].cost, dp.Address(0, client, kind), 100 + (client if kind == 0 else 59 - client))
    for client in range(60, 1000):
        ledger.charge(kinds[0].cost, dp.Address(0, client, 0), 50 + client % 7)
    with cpu_loops() as loops:
        guarantee = ledger.guarantee(1e-5)
    assert loops.count < 30  # two on an idle core
    alone = [guarantee_of([(kinds[0].cost, 159)], 1e-5)] if events == 1 else []
    alone = alone or [
        guarantee_of([(kinds[0].cost, 100 + client), (kinds[1].cost, 159 - client)], 1e-5) for client in range(60)
    ]
    assert guarantee == max(alone, key=lambda each: each.epsilon)

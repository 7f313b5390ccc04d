"""`dpcomp ledger`: it says what the ledger says, whatever happens to the file, and changes nothing."""

import csv
import json
import multiprocessing
import os
import shutil
import sqlite3
import struct
import time
from contextlib import closing

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.core.errors import ConfigError
from dpcomp.lab import ledger_report
from dpcomp.lab.cli import main
from dpcomp.privacy.cost import guarantee_of
from dpcomp.privacy.ledger.outlook import largest_spendings, what_if
from tests.cpu_time import cpu_loops
from tests.lab.ledgers import fill
from tests.privacy.killed_ledger import NAME, live


def pipeline(noise=1.0, rate=0.1, **options):
    return dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(noise)), sampling=dp.Poisson(rate), **options)


ONE, OTHER = pipeline(), pipeline(1.1)


def state(folder):
    return {
        file.name: (file.read_bytes(), file.stat().st_mtime_ns) if file.is_file() else None for file in folder.iterdir()
    }


def said(capsys, *arguments):
    status = main(["ledger", *map(str, arguments)])
    output = capsys.readouterr()
    return status, output.out, output.err


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "client-7.db"
    with dp.Ledger.create(path, dp.Budget(8.0, 1e-5)) as ledger:
        for number in range(3):
            permit = ledger.charge(ONE.cost, dp.Address(0, 7, number), steps=5)
        permit.assume(["the divisor 64 is public\x1b[31m"])
        ledger.charge(ONE.cost, dp.Address(0, 9, 0), steps=17)
        ledger.charge(OTHER.cost, dp.Address(2**64 - 1, 9, 1), steps=2)
    return path


def test_the_lines_say_what_the_ledger_says(path, capsys):
    before = state(path.parent)
    status, text, errors = said(capsys, path, "--what-if", "Gaussian(1.1)", "--steps", 100, "--rate", 0.1)
    assert (status, errors) == (0, "")
    record = dp.Ledger.read(path)
    flat = " ".join(text.split())
    assert str(record.guarantee(1e-5)).replace("\x1b", r"\x1b") in flat
    assert record.mark.digest in text and "5 for 2 clients in 2 runs" in text
    assert "tuning" in text and "no setting was chosen by results on the protected data" in flat
    assert max(map(len, text.splitlines())) <= 100
    assert all(letter.isprintable() for letter in text.replace("\n", ""))
    assert state(path.parent) == before


@pytest.mark.parametrize("delta", [1e-7, 1e-5, 0.01])
def test_json_and_csv_have_the_guarantees_of_the_ledger(path, capsys, delta):
    _, text, _ = said(capsys, path, "--json", "--delta", delta)
    report, record = json.loads(text), dp.Ledger.read(path)
    assert report["guarantee"]["epsilon"] == record.guarantee(delta).epsilon
    with dp.Ledger(path) as ledger:
        assert report["guarantee"]["text"] == str(ledger.guarantee(delta))
    _, text, _ = said(capsys, path, "--csv", "--delta", delta)
    rows = {int(row["client"]): row for row in csv.DictReader(text.splitlines())}
    alone = {
        7: guarantee_of([(ONE.cost, 15)], delta).epsilon,
        9: guarantee_of([(ONE.cost, 17), (OTHER.cost, 2)], delta).epsilon,
    }
    assert {client: float(row["epsilon"]) for client, row in rows.items()} == alone
    _, text, _ = said(capsys, path, "--csv", "entries")
    rows = list(csv.DictReader(text.splitlines()))
    assert [(int(row["run"]), int(row["client"]), int(row["round"]), int(row["steps"])) for row in rows] == [
        (entry.address.run, entry.address.client, entry.address.round, entry.steps) for entry in record.entries
    ]


@pytest.mark.parametrize("client", [None, 7, 9, 11])
def test_what_if_is_what_a_copy_says_that_is_charged(path, tmp_path, client):
    record = dp.Ledger.read(path)
    for steps in (1, 40, 120):
        outlook = what_if(record, OTHER.cost, steps, 1e-6, client)
        copy = shutil.copy(path, tmp_path / f"copy-{steps}.db")
        refused = []
        with closing(sqlite3.connect(copy)) as database:  # a budget would refuse, and hide the sum
            database.executescript("DROP TRIGGER budgets_stay;")
        with dp.Ledger(copy) as ledger:
            ledger.budget = None
            for each in (7, 9) if client is None else (client,):
                ledger.charge(OTHER.cost, dp.Address(3, each, 0), steps=steps)
            assert outlook.after == ledger.guarantee(1e-6)
        with dp.Ledger(shutil.copy(path, tmp_path / f"budget-{steps}.db")) as ledger:
            for each in (7, 9) if client is None else (client,):
                try:
                    ledger.charge(OTHER.cost, dp.Address(3, each, 0), steps=steps)
                except dp.BudgetExhausted:
                    refused.append(each)
        assert outlook.refused == tuple(refused)
        assert outlook.before == record.guarantee(1e-6)


def test_the_steps_that_are_left_are_accepted_and_one_more_is_not(path, tmp_path):
    for number, spending in enumerate(largest_spendings(dp.Ledger.read(path), 1e-5)):
        for cost, left in spending.left.items():
            assert left > 0
            for extra in (0, 1):
                copy = shutil.copy(path, tmp_path / f"{number}-{extra}-{cost.event.event.noise_multiplier}.db")
                with dp.Ledger(copy) as ledger:
                    try:
                        ledger.charge(cost, dp.Address(3, spending.clients[0], 0), steps=left + extra)
                    except dp.BudgetExhausted:
                        assert extra
                    else:
                        assert not extra


def test_a_planned_ledger_is_read_as_it_is_kept(tmp_path):
    plan = dp.Plan([(ONE.cost, 20), (OTHER.cost, 30), (ONE.cost, 5)])
    rng, path = np.random.default_rng(0), tmp_path / "planned.db"
    with dp.Ledger.create(path, plan=plan, research=True) as ledger:
        for number in range(30):
            cost = (ONE, OTHER)[int(rng.random() < 0.4)].cost
            ledger.charge(cost, dp.Address(0, number % 5, number), steps=int(rng.integers(1, 21)))
        for number, steps in enumerate((12, 9)):  # one more than the first release has
            ledger.charge(ONE.cost, dp.Address(0, 6, 40 + number), steps)
        assert dp.Ledger.read(path).histories[6].followed is None
        for number, (cost, steps) in enumerate([(ONE.cost, 12), (ONE.cost, 8), (OTHER.cost, 30), (ONE.cost, 5)]):
            ledger.charge(cost, dp.Address(0, 8, 50 + number), steps)
            record = dp.Ledger.read(path)
            assert (
                record.guarantee_of(8, 1e-5).epsilon
                == dp.Plan([*plan.first(record.histories[8].followed)]).guarantee(1e-5).epsilon
            )
            assert {
                client: (dict(history.spent), history.followed) for client, history in record.histories.items()
            } == {client: (dict(history.spent), history.followed) for client, history in ledger._histories.items()}
    assert record.histories[8].followed == 55


def test_steps_beyond_64_bits_add_up(tmp_path):
    path = tmp_path / "long.db"
    dp.Ledger.create(path).close()
    many = 10**12
    fill(path, ((dp.Address(0, 0, number), many, ONE.cost) for number in range(20)))
    record = dp.Ledger.read(path)
    wide = record.entries.histories(None, 20)
    assert sum(wide[0].spent.values()) == 20 * many


@pytest.mark.parametrize("what", ["empty", "text", "database", "future", "log", "folder", "missing"])
def test_what_is_no_ledger_is_refused_and_untouched(path, capsys, what):
    place = path.with_name("found")
    if what == "database":
        with closing(sqlite3.connect(place)) as database:
            database.execute("CREATE TABLE mails (a)")
            database.commit()
    elif what in ("future", "log"):
        held = bytearray(path.read_bytes())
        if what == "future":
            held[60:64] = struct.pack(">I", 99)
        else:
            held[18:20] = b"\2\2"
        place.write_bytes(held)
    elif what == "folder":
        place.mkdir()
    elif what != "missing":
        place.write_bytes(b"" if what == "empty" else b"somebody's notes\n" * 500)
    before = state(path.parent)
    for options in ([], ["--json"], ["--csv", "entries"], ["--what-if", "Gaussian(1)"]):
        status, text, errors = said(capsys, place, *options)
        assert (status, text) == (1, "")
        assert errors.startswith("dpcomp: ") and errors.count("\n") == 1
        assert "mails" not in errors and "notes" not in errors
    assert state(path.parent) == before


def bytes_changed(path, tmp_path, places):
    """Read copies of which one byte is changed; each is refused, or says the same."""
    whole, held, refused = dp.Ledger.read(path), path.read_bytes(), 0
    said_first = whole.guarantee(1e-5)
    copy = tmp_path / "damaged" / "copy.db"
    copy.parent.mkdir()
    for place in places:
        changed = bytearray(held)
        changed[place] ^= 1 << (place % 8)
        copy.write_bytes(changed)
        before = copy.stat().st_mtime_ns
        try:
            record = dp.Ledger.read(copy)
        except dp.DpcompError:
            refused += 1
        else:
            assert list(record.entries) == list(whole.entries)
            assert (record.mark, record.budget, record.assumed) == (whole.mark, whole.budget, whole.assumed)
            assert record.guarantee(1e-5) == said_first
        assert copy.read_bytes() == changed and copy.stat().st_mtime_ns == before
        assert [file.name for file in copy.parent.iterdir()] == ["copy.db"]
    return refused


def test_a_changed_byte_is_refused_or_changes_nothing(path, tmp_path):
    size = path.stat().st_size
    places = [*range(100), *np.random.default_rng(0).integers(0, size, 200).tolist()]
    with closing(sqlite3.connect(path)) as database:
        digest = database.execute("SELECT digest FROM charges").fetchone()[0].encode()
    start = path.read_bytes().index(digest)
    entry = range(start - 100, start + 32)
    assert bytes_changed(path, tmp_path, [*places, *entry]) > len(entry)


@pytest.mark.slow
def test_any_changed_byte_is_refused_or_changes_nothing(path, tmp_path):
    assert bytes_changed(path, tmp_path, range(0, path.stat().st_size, 3)) > 1000


def test_a_ledger_is_read_while_another_process_charges_and_after_it_was_killed(tmp_path, capsys):
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=live, args=(str(tmp_path), theirs, 0), daemon=True)
    process.start()
    theirs.close()
    released = {ours.recv()}
    try:
        for _ in range(3):
            while ours.poll():
                released.add(ours.recv())
            status, text, errors = said(capsys, tmp_path / NAME, "--csv", "entries")
            rows = list(csv.DictReader(text.splitlines()))
            assert (status, errors) == (0, "")
            assert released <= {dp.Address(*(int(row[name]) for name in ("run", "client", "round"))) for row in rows}
    finally:
        process.kill()
        process.join()
    for backup in tmp_path.glob("backup-*"):
        backup.unlink()
    (tmp_path / "half").unlink(missing_ok=True)
    before = state(tmp_path)
    status, text, _ = said(capsys, tmp_path / NAME, "--json")
    assert status == 0 and json.loads(text)["charges"] >= len(released)
    assert state(tmp_path) == before  # a journal that the killed process left is left for the next holder


def test_an_unsafe_and_an_empty_ledger_are_told(tmp_path, capsys):
    path = tmp_path / "odd.db"
    dp.Ledger.create(path).close()
    assert "charges    none" in said(capsys, path)[1]
    assert said(capsys, path, "--figure", tmp_path / "spent.png")[0] == 1
    _, text, _ = said(capsys, path, "--json", "--what-if", "Gaussian(1.0)", "--steps", 3, "--rate", 0.1)
    assert json.loads(text)["what_if"]["after"]["epsilon"] == ONE.guarantee(3, 1e-5).epsilon
    with dp.Ledger(path) as ledger:
        ledger.charge(dp.Pipeline(mechanism=dp.unsafe("a look\x1b[2J")).cost, dp.Address(0, 0, 0))
    status, text, _ = said(capsys, path)
    assert status == 0 and "ε = ∞" in text and r"a look\x1b[2J" in text and "\x1b" not in text
    assert json.loads(said(capsys, path, "--json")[1])["guarantee"]["epsilon"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--what-if", "Laplace(1)"], "Gaussian(1.1)"),
        (["--what-if", "Gaussian()"], "Gaussian(1.1)"),
        (["--what-if", "Gaussian(-1)"], "noise multiplier"),
        (["--what-if", "Gaussian(__import__('os'))"], "Gaussian(1.1)"),
        (["--what-if", "Gaussian(0)"], "adds no noise"),
        (["--what-if", "Gaussian(1)", "--steps", "0"], "--steps 0"),
        (["--what-if", "Gaussian(1)", "--rate", "2"], "sampling rate"),
        (["--what-if", "Gaussian(1)", "--client", "-1"], "client"),
        (["--delta", "2"], "δ"),
        (["--most", "0"], "--most 0"),
        (["--figure", "spent.txt"], ".png"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_in_one_line(path, capsys, options, words):
    status, _, errors = said(capsys, path, *options)
    assert status == 1 and words in errors and errors.count("\n") == 1


def test_no_rate_amplifies_where_the_server_sees_who_sends(tmp_path, capsys):
    path = tmp_path / "clients.db"
    with dp.Ledger.create(path) as ledger:
        ledger.charge(pipeline(unit="client").cost, dp.Address(0, 3, 0))
    status, _, errors = said(capsys, path, "--what-if", "Gaussian(1)", "--rate", 0.1)
    assert status == 1 and "amplifies nothing" in errors
    assert said(capsys, path, "--what-if", "Gaussian(1)")[0] == 0


def test_the_figure_shows_what_was_spent(path, tmp_path, capsys):
    for kind, begins in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        assert said(capsys, path, "--figure", tmp_path / f"spent.{kind}")[0] == 0
        assert (tmp_path / f"spent.{kind}").read_bytes().startswith(begins)
    record = dp.Ledger.read(path)
    values = [record.guarantee_after(count, 1e-5).epsilon for count in range(6)]
    assert values[0] == 0 and values == sorted(values) and values[-1] == record.guarantee(1e-5).epsilon


def many(path, charges):
    dp.Ledger.create(path, dp.Budget(8.0, 1e-5)).close()
    fill(path, ((dp.Address(0, number % 1000, number // 1000), 1, ONE.cost) for number in range(charges)))


def test_many_entries_are_read_fast(tmp_path):
    many(tmp_path / "many.db", 10**5)
    with cpu_loops() as loops:
        record = dp.Ledger.read(tmp_path / "many.db")
        assert record.guarantee(1e-5) == ONE.guarantee(100, 1e-5)
    assert loops.count < 150  # an object for each entry would take a thousand
    assert len(record.entries) == 10**5 and record.entries[-1].address == dp.Address(0, 999, 99)


@pytest.mark.slow
def test_a_million_entries_are_read_in_seconds(tmp_path, capsys):
    many(tmp_path / "many.db", 10**6)
    begun, used = time.monotonic(), time.process_time()
    assert said(capsys, tmp_path / "many.db")[0] == 0
    seconds = time.process_time() - used
    print(f"{seconds:.2f} s of one thread, {time.monotonic() - begun:.2f} s in all, {os.cpu_count()} cores")
    assert seconds < 12  # three on an idle core


def test_the_noise_that_is_printed_can_be_asked_about_as_it_stands(tmp_path, capsys):
    """With other noise it would be accounted for by a filter, and cost far more."""
    mine = pipeline(1.1307568566251145, rate=0.25)
    with dp.Ledger.create(tmp_path / "a.db") as ledger:
        ledger.charge(mine.cost, dp.Address(0, 0, 0), steps=5)
    _, out, _ = said(capsys, tmp_path / "a.db")
    printed = next(word for word in out.split() if word.startswith("Gaussian("))
    assert float(printed[9:-1]) == pytest.approx(1.1307568566251145, rel=1e-11)
    _, out, _ = said(capsys, tmp_path / "a.db", "--what-if", printed, "--steps", 10, "--rate", 0.25)
    assert "PLD" in out.split("what if")[1] and "RDP filter" not in out
    expected = mine.guarantee(steps=15, delta=1e-5)
    _, out, _ = said(capsys, tmp_path / "a.db", "--what-if", printed, "--steps", 10, "--rate", 0.25, "--json")
    assert json.loads(out)["what_if"]["after"]["epsilon"] == pytest.approx(expected.epsilon)


@pytest.mark.parametrize("budget", [None, dp.Budget(epsilon=50.0, delta=1e-5)])
def test_an_incomplete_ledger_has_no_steps_left_and_allows_no_charge(budget, tmp_path):
    with dp.Ledger.create(tmp_path / "ledger.db", budget) as ledger:
        ledger.charge(ONE.cost, dp.Address(0, 7, 0), steps=5)
        ledger.mark_incomplete("a test")
    record = dp.Ledger.read(tmp_path / "ledger.db")
    assert record.incomplete == "a test"
    question = ledger_report.WhatIf(mechanism="Gaussian(1.0)", rate=0.1)
    report = ledger_report.LedgerReport.of(record, question=question)
    assert report.outlook.refused == (7,)
    assert [list(each.left.values()) for each in report.spendings] == [[0]]
    assert np.isinf(
        [report.guarantee.epsilon, report.outlook.after.epsilon, report.spendings[0].guarantee.epsilon]
    ).all()
    text = ledger_report.text(report)
    assert "refuses every charge" in text
    assert "allows it" not in text
    assert "ε ≤" not in text.replace("ε ≤ 50 at", "")
    assert json.loads(ledger_report.json_text(report))["what_if"]["after"]["epsilon"] is None
    assert list(ledger_report.csv_of_clients(report))[1] == "7,5,inf,1e-05,none,0\n"
    with pytest.raises(ConfigError, match="incomplete"):
        ledger_report.figure(record, None, tmp_path / "figure.png")

"""The harness of the benchmarks computes what it says: turns, ratios, goals, records, processes with limits."""

import json
import operator
import os
import time

import pytest

from benchmarks.harness import turns
from benchmarks.harness.page import table_of, with_tables
from benchmarks.harness.processes import Failed, run_alone
from benchmarks.harness.records import Record
from benchmarks.harness.rows import Goal, Row, Spread, compared
from benchmarks.harness.table import cells, digits
from benchmarks.harness.turns import QUICK, Effort, measure_in_turns, take_turns


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what `works` add to it."""
    now = [0.0]
    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    return now


def test_measurements_take_turns():
    order = []
    measures = {name: lambda name=name: order.append(name) or float(len(order)) for name in "AB"}
    assert measure_in_turns(measures, 3) == {"A": [1.0, 3.0, 5.0], "B": [2.0, 4.0, 6.0]}
    assert order == ["A", "B"] * 3


def test_short_work_is_called_as_often_as_a_measurement_needs_and_long_work_once(clock):
    calls = {"short": 0, "long": 0}

    def work(name, seconds):
        calls[name] += 1
        clock[0] += seconds

    works = {"short": lambda: work("short", 0.25), "long": lambda: work("long", 3.0)}
    found = take_turns(works, Effort(turns=5, least_seconds=1.0))
    assert found == {"short": [0.25] * 5, "long": [3.0] * 5}
    assert calls == {"short": 2 + 5 * 4, "long": 2 + 5}


def test_a_ratio_is_of_neighbours_and_not_of_medians():
    # The machine is ten times slower from the third turn on; dpcomp takes twice as long throughout, but for one turn.
    row = compared("x", "s", [2.0, 2.0, 20.0, 20.0, 30.0], "peer", [1.0, 1.0, 10.0, 10.0, 10.0])
    assert row.ratio == Spread(median=2.0, lowest=2.0, highest=3.0)
    assert (row.figure, row.peer_figure) == (
        Spread(median=20.0, lowest=2.0, highest=30.0),
        Spread(median=10.0, lowest=1.0, highest=10.0),
    )
    assert row.turns == 5


def test_figures_of_different_turns_are_not_compared():
    with pytest.raises(ValueError, match="is shorter than"):
        compared("x", "s", [1.0, 2.0], "peer", [1.0])


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal(least=2.0), True),
        (Goal(least=2.01), False),
        (Goal(most=2.0), True),
        (Goal(most=1.99), False),
        (Goal(of="figure", most=6.0), True),
        (Goal(of="figure", most=5.9), False),
        (Goal(of="figure", least=6.1), False),
        (None, None),
    ],
)
def test_a_goal_is_about_the_median_of_the_ratio_or_of_the_figure(goal, met):
    assert compared("x", "s", [6.0, 1.0, 9.0], "peer", [3.0, 1.0, 3.0], goal=goal).met is met


def test_what_was_not_measured_meets_no_goal():
    assert Row(what="x", unit="s", goal=Goal(of="figure", most=1.0), note="not within 1 s").met is False
    assert Row(what="x", unit="s", figure=Spread.of([0.1]), goal=Goal(most=1.0)).met is False


@pytest.mark.parametrize("bounds", [{}, {"least": 1.0, "most": 2.0}])
def test_a_goal_has_one_bound(bounds):
    with pytest.raises(ValueError, match="least= or most="):
        Goal(**bounds)


def test_fewer_than_five_turns_are_refused():
    with pytest.raises(ValueError, match="5 turns"):
        Effort(turns=4)


def rows():
    yield compared("fast", "ms", [1.0, 2.0], "peer", [2.0, 2.0], goal=Goal(least=0.5), settings={"batch": 64})
    yield compared("fast", "ms", [1.0, 2.0], "other", [4.0, 4.0])
    yield Row(what="large", unit="GB", goal=Goal(of="figure", most=3.0), note="more than 6 GB of memory")


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = Record.of("some", "Something", list(rows()), QUICK)
    path = record.write(tmp_path)
    assert path.name == "some.json"
    assert Record.read(path) == record
    assert [row["met"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"]] == [True, None, False]


def test_a_record_of_another_format_is_refused(tmp_path):
    (tmp_path / "some.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match=r"some\.json is no record of format"):
        Record.read(tmp_path / "some.json")


def test_a_record_names_the_machine_by_its_processor_alone():
    machine = Record.of("some", "Something", [], QUICK).machine
    assert set(machine) == {"processor", "cores", "threads"}
    assert os.uname().nodename not in json.dumps(machine)


def test_cells_and_page_show_figures_ratio_goal_and_why_there_is_no_figure():
    first, _, last = rows()
    assert cells(first) == ("1.50 ms", "peer", "2.00 ms", "0.750", "0.500 – 1.00", "≥ 0.5", "met")
    assert cells(last) == ("– (more than 6 GB of memory)", "–", "–", "–", "–", "≤ 3 GB", "not met")
    lines = table_of(Record.of("some", "Something", list(rows()), QUICK)).splitlines()
    assert lines[2] == "| fast | 1.50 ms | peer | 2.00 ms | 0.750 (0.500 – 1.00) | ≥ 0.5: met |"
    assert lines[3] == "|  |  | other | 4.00 ms | 0.375 (0.250 – 0.500) |  |"
    assert {line.count("|") for line in lines[:5]} == {7}


def test_a_page_has_tables_in_their_places_and_says_what_was_not_measured(tmp_path):
    record = Record.of("some", "Something", list(rows()), QUICK)
    record.write(tmp_path)
    page = "Before.\n\n<!-- rows: some -->\n\nBetween `<!-- rows: some -->`.\n\n<!-- rows: other-1 -->\n"
    expected = page.replace("\n<!-- rows: some -->\n", f"\n{table_of(record)}\n")
    missing = "*Not measured yet: `python -m benchmarks other-1`.*"
    assert with_tables(page, tmp_path) == expected.replace("<!-- rows: other-1 -->", missing)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1,234"), (99.96, "100"), (12.34, "12.3"), (0.0512, "0.0512"), (0.0, "0"), (1e-3, "0.00100")],
)
def test_digits_are_three(value, text):
    assert digits(value) == text


def test_a_process_of_its_own_has_one_thread_and_tells_its_peak():
    outcome = run_alone(os.getenv, "OMP_NUM_THREADS")
    assert outcome.value == "1"
    assert outcome.peak_bytes is None or 10**6 < outcome.peak_bytes < 10**10
    assert os.getenv("XLA_FLAGS") is None  # this process is as it was


@pytest.mark.parametrize(
    ("function", "arguments", "limits", "message"),
    [
        (operator.truediv, (1, 0), {}, "ZeroDivisionError: division by zero"),
        (time.sleep, (60,), {"most_seconds": 0.5}, r"not within 0\.5 s"),
        (bytearray, (2 * 10**9,), {"most_bytes": 10**9}, "more than 1 GB of memory"),
        (os._exit, (3,), {}, "exit code 3"),
    ],
)
def test_a_process_that_fails_or_passes_a_limit_says_so(function, arguments, limits, message, capfd):
    with pytest.raises(Failed, match=message):
        run_alone(function, *arguments, **limits)

"""The tables of the guide on the benchmark of federated learning have the numbers of the tracked results."""

import re
from pathlib import Path

import pytest

from dpcomp.lab.federated_benchmark.methods import METHODS, REFERENCE
from dpcomp.lab.federated_benchmark.outcome import outcomes_of
from dpcomp.lab.federated_benchmark.setting import DIGITS, FASHION_MNIST
from dpcomp.lab.federated_benchmark.table import accuracy_text, difference_text, frame_of, ratios
from dpcomp.lab.results.results_file import ResultsFile

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "federated-benchmark.md").read_text(encoding="utf-8")


def measured(setting):
    """Return the frame of the methods in a setting."""
    reports = ResultsFile(path=ROOT / "results" / "federated_benchmark" / f"{setting.task}.jsonl").read()
    return frame_of(outcomes_of(reports, METHODS, setting), REFERENCE.name)


def line_of(row):
    """Return the line of a method in a table of the page."""
    smaller = (f"{ratio:,.0f} ×" if ratio >= 10 else f"{ratio:.1f} ×" for ratio in ratios(row))
    cells = (
        f"{row['method']} \\*" if row["ours"] else row["method"],
        *(accuracy_text(row), difference_text(row).replace("-", "−") or "–"),
        *(f"{row[way]:,.0f}" for way in ("uplink", "downlink")),
        *smaller,
        f"{row['rate']:g}",
    )
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("setting", [DIGITS, FASHION_MNIST], ids=lambda setting: setting.task)
def test_the_page_has_the_results_of_every_method(setting):
    frame = measured(setting)
    assert set(frame["seeds"]) == {len(setting.seeds)}
    lines = PAGE.splitlines()
    for row in frame.to_dict("records"):
        assert line_of(row) in lines
    assert len(frame) == len(METHODS)


def test_the_page_says_what_the_setting_is():
    text = " ".join(PAGE.split())
    assert f"{DIGITS.clients} clients" in text
    assert f"{DIGITS.rounds} rounds of one local step" in text
    assert f"probability {DIGITS.sampling_rate:g}" in text
    assert f"an MLP of {DIGITS.dimensions:,} parameters" in text
    assert f"ε ≤ {DIGITS.epsilon:g} at δ = 10⁻⁴" in text
    assert f"{DIGITS.held_out} training examples that are held out" in text
    assert re.search(r"\bthree seeds\b", text)
    assert len(DIGITS.seeds) == 3

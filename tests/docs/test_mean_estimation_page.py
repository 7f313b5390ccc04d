"""The table of the guide on mean estimation has the numbers of the tracked results."""

from pathlib import Path

from analysis.figures.mean_estimation import CLIENTS, DIMENSIONS, FIGURE
from dpcomp.lab.mean_estimation.methods import METHODS
from dpcomp.lab.mean_estimation.setting import DELTA
from dpcomp.lab.mean_estimation.table import WHO

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "mean-estimation.md").read_text(encoding="utf-8")
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)


def test_the_page_has_the_results_of_every_method():
    frame = FIGURE.read(ROOT / "experiments" / "configs" / FIGURE.source)
    assert set(frame["delta"]) == {DELTA}
    assert f"n = {CLIENTS}, d = {DIMENSIONS}" in PAGE
    for (trust, name), rows in frame.groupby(["trust", "method"]):
        of_epsilon = rows.set_index("epsilon")
        ratios = [of_epsilon.loc[epsilon, "ratio"] for epsilon in EPSILONS]
        cells = " | ".join("1" if rows["computed"].all() else f"{ratio:.2f}" for ratio in ratios)
        start = f"| {WHO[trust]} | {name}{'' if rows['unbiased'].all() else ' *'} | "
        (line,) = (line for line in PAGE.splitlines() if line.startswith(start))
        assert line.endswith(f" | {cells} |")
    assert len(frame) == len(EPSILONS) * (len(METHODS) + 1)  # PPR is computed


def test_the_measured_errors_are_those_of_the_closed_forms():
    frame = FIGURE.read(ROOT / "experiments" / "configs" / FIGURE.source)
    measured = frame[~frame["computed"]]
    assert (measured["error"] / measured["expected_error"] - 1).abs().max() < 0.1

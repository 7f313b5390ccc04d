import pandas as pd
import pytest

from analysis.tables.latex_numbers import (
    Column,
    of_table,
    of_trials,
    plain,
    slug,
    spread,
)


def trials(**columns):
    rows = {"seed": [0, 1, 2], "payload_bytes": 1234.4, "compression_ratio": 84.5, "uplink_bytes": 2**20}
    rows["total_ratio"] = 42.25
    return pd.DataFrame(rows | columns)


def test_a_mean_stands_with_the_deviation_between_seeds():
    found = of_trials("t", trials(method="dense", test_accuracy=[0.8, 0.82, 0.81]), ["method"])
    assert found["t.dense.accuracy"] == r"81.0\,(1.0)"
    assert found["t.dense.mean"] == "81.0"
    assert found["t.dense.bytes"] == "1{,}234"
    assert found["t.dense.seeds"] == "3"


def test_a_difference_is_taken_seed_by_seed():
    both = pd.concat(
        [
            trials(method="dense", test_accuracy=[0.5, 0.7, 0.9]),
            trials(method="top 1 %", test_accuracy=[0.4, 0.6, 0.8]).iloc[::-1],
        ]
    )
    found = of_trials("t", both, ["method"], reference="dense")
    assert found["t.top_1.difference"] == r"-10.0 \pm 0.0"
    assert found["t.dense.difference"] == r"0.0 \pm 0.0"


def test_a_difference_has_the_interval_of_its_seeds():
    both = pd.concat(
        [
            trials(method="dense", test_accuracy=[0.5, 0.7, 0.9]),
            trials(method="other", test_accuracy=[0.51, 0.72, 0.93]),
        ]
    )
    found = of_trials("t", both, ["method"], reference="dense")
    assert found["t.other.difference"] == r"2.0 \pm 2.5"  # Student's 4.30 ÷ √3 deviations


def test_one_seed_has_no_deviation():
    assert Column().text([1.25]) == "1.2"
    assert Column().text([-0.04]) == "0.0"
    assert of_trials("t", trials(m="a", test_accuracy=0.5).iloc[:1], ["m"])["t.a.accuracy"] == "50.0"


@pytest.mark.parametrize(
    ("label", "name"), [("top 0.1 %, feedback", "top_0_1_feedback"), (0.001, "0_001"), ("ε ≤ 4", "eps_4"), (8.0, "8")]
)
def test_labels_become_names(label, name):
    assert slug(label) == name


def test_rows_of_a_table_become_numbers_by_their_labels():
    table = pd.DataFrame({"task": ["a"], "z": [0.5], "loss": [31.04], "loss_deviation": [2.55]})
    found = of_table("loss", table, ["task", "z"], {"both": spread("loss", "loss_deviation"), "one": plain("loss", 0)})
    assert found == {"loss.a.0_5.both": r"31.0\,(2.5)", "loss.a.0_5.one": "31"}

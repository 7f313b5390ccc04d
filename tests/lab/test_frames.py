import numpy as np
import pandas as pd
import pytest

from dpcomp.lab.results.frames import columns_of_rounds, curves, summary


def a_report(seed, accuracies, payload):
    rounds = len(accuracies)
    return {
        "seed": seed,
        "coordinates": 1000,
        "guarantee": {"epsilon": 2.0},
        "curves": {
            "round": list(range(1, rounds + 1)),
            "test_accuracy": accuracies,
            "payload_bytes": [payload] * rounds,
            "uplink_bytes": [3 * payload] * rounds,
            "downlink_bytes": [100] * rounds,
        },
    }


REPORTS = {"a": [a_report(0, [None, 0.5], 40), a_report(1, [0.1, 0.7], 40)], "b": [a_report(0, [0.2, None], 400)]}


def test_curves_have_a_row_a_round_of_every_method_and_seed():
    table = curves(REPORTS)
    assert len(table) == 6
    assert table[(table["method"] == "a") & (table["seed"] == 1)]["test_accuracy"].tolist() == [0.1, 0.7]


def test_a_summary_has_a_row_a_trial_with_its_last_accuracy_and_its_bytes():
    table = summary(REPORTS).set_index(["method", "seed"])
    assert table.loc[("a", 0), "test_accuracy"] == 0.5
    assert table.loc[("b", 0), "test_accuracy"] == 0.2
    assert table.loc[("a", 1), "compression_ratio"] == pytest.approx(100)
    assert table.loc[("b", 0), "uplink_bytes"] == 2400


@pytest.mark.parametrize("rounds", [0, 1, 59, 60, 61, 7201])
def test_wall_times_are_kept_by_blocks_with_their_sum_and_what_is_computed_is_not_kept(rounds):
    seconds = [1.0 + number % 7 for number in range(rounds)]
    table = pd.DataFrame(
        {"round": range(1, rounds + 1), "seconds": seconds, "payload_bytes": 40.0, "compression_ratio": 100.0}
    )
    kept = columns_of_rounds(table)
    assert set(kept) == {"round", "seconds", "payload_bytes"}
    assert len(kept["seconds"]) == rounds
    assert np.sum(kept["seconds"]) == pytest.approx(sum(seconds), rel=1e-2)
    assert (kept["seconds"] == seconds) is (rounds <= 60)
    again = curves({"a": [{"seed": 0, "coordinates": 1000, "curves": kept}]})
    assert again["compression_ratio"].tolist() == [100.0] * rounds

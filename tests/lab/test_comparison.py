import json

import pandas as pd
import pytest

from dpcomp.lab.results.comparison import compare, rounds_behind
from tests.lab.test_frames import a_report


def finished(folder, report):
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (folder / "DONE").touch()


def test_the_best_tuning_at_the_lowest_seed_counts_with_all_its_seeds(tmp_path):
    (tmp_path / "sparse.toml").touch()
    (tmp_path / "unfinished.toml").touch()
    finished(tmp_path / "sparse" / "learning_rate=1" / "seed-0", a_report(0, [0.6], 40))
    finished(tmp_path / "sparse" / "learning_rate=2" / "seed-0", a_report(0, [0.7], 40))
    finished(tmp_path / "sparse" / "learning_rate=2" / "seed-1", a_report(1, [0.5], 60))
    (tmp_path / "sparse" / "learning_rate=4" / "seed-0").mkdir(parents=True)
    table = compare(tmp_path)
    assert len(table) == 1
    row = table.iloc[0]
    assert (row["method"], row["tuning"], row["tried"], row["seeds"]) == ("sparse", "learning_rate=2", 2, 2)
    assert row["accuracy_percent"] == pytest.approx(60)
    assert row["deviation"] == pytest.approx(100 * 0.02**0.5)
    assert row["payload_bytes"] == 50


def test_a_folder_without_trials_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="run its configs first"):
        compare(tmp_path)


@pytest.mark.parametrize(
    ("last", "behind"), [(0.5, 290.0), (0.6, 200.0), (0.75, 50.0), (0.8, 0.0), (0.9, float("nan"))]
)
def test_a_method_stands_where_the_reference_stood_some_rounds_ago(last, behind):
    reference = pd.Series([0.5, 0.6, 0.7, 0.8], index=[10, 100, 200, 300])
    assert rounds_behind(pd.Series([0.1, last], index=[100, 300]), reference) == pytest.approx(behind, nan_ok=True)
    assert pd.isna(rounds_behind(pd.Series([last]), None))


def test_the_reference_is_the_dense_method_beside_it(tmp_path):
    for name, accuracies in (("dense", [0.4, 0.6]), ("a_sparse_one", [0.3, 0.5]), ("deeper/alone", [0.1, 0.5])):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / f"{name}.toml").touch()
        finished(tmp_path / name / "seed-0", a_report(0, accuracies, 40))
    table = compare(tmp_path).set_index("method")["rounds_behind"]
    assert table["dense"] == 0
    assert 0 < table["a_sparse_one"] < 2
    assert pd.isna(table["deeper/alone"])

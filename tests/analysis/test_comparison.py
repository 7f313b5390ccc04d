import json

import pytest

from analysis.comparison import compare
from tests.analysis.test_results import a_report


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

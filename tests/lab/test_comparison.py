"""Methods side by side: which trials count, and what is printed of them."""

import pandas as pd
import pytest

from dpcomp.core.errors import ConfigError
from dpcomp.lab.cli import main
from dpcomp.lab.results.results_file import FORMAT, results_of
from dpcomp.lab.sweep.comparison import compare, rounds_behind
from dpcomp.lab.sweep.plan import outcomes, standing_of
from tests.lab.test_frames import a_report

CONFIG = """
task = "digits"
delta = 1e-4
seeds = [0, 1]
federation = { clients = 2, rounds = 2 }
tune = { learning_rate = [1.0, 2.0, 4.0] }

[pipeline]
mechanism = [{ Clip = { norm = 1.0 } }, { Gaussian = { noise_multiplier = 1.0 } }]
"""
UNTUNED = CONFIG.replace("tune = { learning_rate = [1.0, 2.0, 4.0] }", "").replace("[0, 1]", "[0]")


def config_in(folder, name, text=CONFIG):
    config = folder / f"{name}.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(text, encoding="utf-8")
    return config


def finished(config, accuracies, **more):
    """Leave results of these trials: name → test accuracy by round."""
    standing = standing_of(config)
    trials = {trial.name: trial for point in standing.points for trial in point.every}
    reports = [
        a_report(trials[name].seed, values, 40)
        | {"format": FORMAT, "trial": name, "config": trials[name].experiment.settings, "versions": {"commit": None}}
        | more
        for name, values in accuracies.items()
    ]
    results_of(config).replace([*results_of(config).read(), *reports])


@pytest.fixture
def config(tmp_path):
    config = config_in(tmp_path, "sparse")
    finished(
        config, {"learning_rate=1/seed-0": [0.6], "learning_rate=2/seed-0": [0.7], "learning_rate=2/seed-1": [0.5]}
    )
    return config


def test_the_best_tuning_of_the_first_seed_counts_with_all_its_seeds(config):
    config_in(config.parent, "unfinished")
    table = compare(config.parent)
    assert len(table) == 1
    row = table.iloc[0]
    assert (row["method"], row["tuning"], row["tried"], row["seeds"]) == ("sparse", "learning_rate=2", 2, 2)
    assert row["accuracy_percent"] == pytest.approx(60)
    assert row["deviation"] == pytest.approx(100 * 0.02**0.5)
    assert row["payload_bytes"] == 40
    assert compare(config).equals(table)


def both(config):
    """What `table` and what a sweep and the figures take for a config's tuning, tried, and seeds; None if nothing."""
    try:
        row = compare(config).iloc[0]
        of_table = (row["tuning"], row["tried"], row["seeds"])
    except ConfigError:
        of_table = None
    try:
        (outcome,) = outcomes(config)
        of_sweep = (outcome.tuning, outcome.tried, len(outcome.reports))
    except ConfigError:
        of_sweep = None
    return of_table, of_sweep


@pytest.mark.parametrize(
    ("before", "after", "counts", "note"),
    [
        ("[1.0, 2.0, 4.0]", "[1.0, 2.0, 4.0]", ("learning_rate=2", 2, 2), None),
        ("[1.0, 2.0, 4.0]", "[1.0, 4.0]", ("learning_rate=1", 1, 1), "2 results do not count: the config has no such"),
        ("[0, 1]", "[0]", ("learning_rate=2", 2, 1), "1 result does not count: the config has no such trial"),
        ("delta = 1e-4", "delta = 1e-6", None, "3 results do not count: the config differs from theirs in delta"),
        ("rounds = 2", "rounds = 3", None, "3 results do not count: the config differs from theirs in federation"),
    ],
)
def test_table_sweep_and_figures_count_the_same_trials(config, capsys, before, after, counts, note):
    text = config.read_text()
    assert before in text
    config.write_text(text.replace(before, after), encoding="utf-8")
    assert both(config) == (counts, counts)
    notes = standing_of(config).notes()
    assert len(notes) == (note is not None)
    assert main(["table", str(config.parent)]) == (counts is None)
    printed = capsys.readouterr().err
    if note is not None:
        assert note in notes[0]
        assert notes[0] in printed


def test_states_of_the_code_that_differ_are_named(config, capsys):
    finished(config, {"learning_rate=4/seed-0": [0.1]}, versions={"commit": "abc-dirty"})
    other = config_in(config.parent, "other", UNTUNED)
    finished(other, {"seed-0": [0.1]}, recorded_in="def")
    assert main(["table", str(config.parent)]) == 0
    assert "abc-dirty (1), no commit named (3), recorded in def (1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("epsilon", "shown"), [(2.391, "2.40"), (2.394999, "2.40"), (0.12344, "0.124"), (8.0, "8.00"), (None, "∞")]
)
def test_no_printed_epsilon_is_smaller_than_the_proven_one(config, capsys, epsilon, shown):
    finished(config, {"learning_rate=4/seed-0": [0.9]}, guarantee={"epsilon": epsilon})
    assert main(["table", str(config)]) == 0
    header, row = capsys.readouterr().out.splitlines()
    place = header.index("epsilon") + len("epsilon")
    assert row[:place].split()[-1] == shown


def test_a_folder_without_trials_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="holds no config"):
        compare(tmp_path)
    config_in(tmp_path, "sparse")
    with pytest.raises(ConfigError, match="sweep it first"):
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
        finished(config_in(tmp_path, name, UNTUNED), {"seed-0": accuracies})
    table = compare(tmp_path).set_index("method")["rounds_behind"]
    assert table["dense"] == 0
    assert 0 < table["a_sparse_one"] < 2
    assert pd.isna(table["deeper/alone"])


def test_the_reference_of_a_grid_is_its_own_dense_point_wherever_it_stands(tmp_path):
    grid = '[grid.method]\nsparse = { "pipeline.feedback" = true }\ndense = { "pipeline.feedback" = false }\n'
    finished(config_in(tmp_path, "dense", UNTUNED), {"seed-0": [0.1, 0.2]})
    config = config_in(tmp_path, "both", UNTUNED + grid)
    finished(config, {"method=sparse/seed-0": [0.3, 0.5], "method=dense/seed-0": [0.4, 0.6]})
    table = compare(tmp_path).set_index("method")["rounds_behind"]
    assert 0 < table["both/method=sparse"] < 1
    assert table["both/method=dense"] == 0


def test_methods_of_one_config_are_called_by_their_labels_and_of_several_by_their_paths(tmp_path):
    config = config_in(
        tmp_path, "grid", UNTUNED + '[grid.method]\ndense = {}\n"top 10 %" = { "federation.momentum" = 0.5 }\n'
    )
    names = [point.name for point in standing_of(config).points for point in [point.point]]
    finished(config, {f"{name}/seed-0": [0.6] for name in names})
    assert compare(config)["method"].tolist() == compare(tmp_path)["method"].tolist() == ["dense", "top 10 %"]
    config_in(tmp_path, "other", UNTUNED)
    assert compare(tmp_path)["method"].tolist() == [f"grid/{name}" for name in names]

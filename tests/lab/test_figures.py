"""Figures of anybody's results: what is read, what is drawn, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from dpcomp.core.errors import ConfigError
from dpcomp.lab import results
from dpcomp.lab.cli import main
from dpcomp.lab.figures.gallery import draw_gallery
from dpcomp.lab.figures.plots import front_of, plot_curves, plot_overlap, plot_pareto
from dpcomp.lab.results.results_file import FORMAT, ResultsFile, results_of
from dpcomp.lab.sweep.rounds import rounds_in
from tests.lab.test_comparison import UNTUNED, config_in, finished
from tests.lab.test_frames import a_report

BEGINNINGS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


@pytest.fixture(autouse=True)
def _no_open_figures():
    yield
    plt.close("all")


def a_trial(name, seed, accuracies, payload, rate=1.0, **more):
    probes = [{"TopKOverlap": {"fraction": 0.01}}]
    config = {"task": "mine", "federation": {"learning_rate": rate, "clients": 3, "probes": probes}}
    config["pipeline"] = {"mechanism": [{"Clip": {"norm": 0.5}}, {"Gaussian": {}}], "feedback": False}
    report = a_report(seed, accuracies, payload)
    report["curves"] |= {"top_k_overlap": [0.5] * len(accuracies), **more}
    return report | {"format": FORMAT, "trial": f"{name}/seed-{seed}", "config": config}


@pytest.fixture
def folder(tmp_path):
    """Results of somebody who kept no config: two files below a folder, one of them in the middle of a sweep."""
    file = ResultsFile(path=tmp_path / "mine" / "first.jsonl")
    file.path.parent.mkdir()
    file.replace([a_trial("sparse", seed, [None, 0.2 + seed / 10, 0.6 + seed / 10], 40) for seed in (0, 1)])
    ResultsFile(path=tmp_path / "mine" / "second.jsonl").write(a_trial("dense", 0, [0.1, 0.5, 0.8], 400, rate=2.0))
    study = {"format": FORMAT, "trial": "a/b", "config": {}, "seed": 0, "rows": []}
    (tmp_path / "mine" / "study.jsonl").write_text(json.dumps(study) + "\n", encoding="utf-8")
    return tmp_path / "mine"


def test_one_line_reads_all_results_below_a_folder(folder):
    frame = results.read(folder)
    assert frame.groupby("method").size().to_dict() == {"first/sparse": 6, "second/dense": 3}
    dense = frame[frame["method"] == "second/dense"]
    assert dense["total_bytes"].tolist() == [1300, 2600, 3900] and dense["uplink_total"].iloc[-1] == 3600
    assert dense["epsilon"].isna().tolist() == [True, True, False] and dense["epsilon"].iloc[-1] == 2
    assert set(dense["federation.learning_rate"]) == {2.0} and set(dense["pipeline.mechanism.Clip.norm"]) == {0.5}
    assert set(frame["task"]) == {"mine"} and set(frame["results"]) == {"first", "second"}
    assert results.read(str(folder / "second.jsonl"))["test_accuracy"].tolist() == [0.1, 0.5, 0.8]


def test_a_result_that_tells_epsilon_by_round_keeps_it(tmp_path):
    ResultsFile(path=tmp_path / "a.jsonl").replace([a_trial("a", 0, [0.1, 0.2], 4, epsilon=[1.0, 1.5])])
    assert results.read(tmp_path / "a.jsonl")["epsilon"].tolist() == [1.0, 1.5]


@pytest.mark.parametrize("text", ["", "not JSON\n", '{"format": 1}\n'])
def test_what_holds_no_results_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="holds no result of a trial"):
        results.read(tmp_path / "missing.jsonl")
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="no result"):
        results.read(tmp_path)


def test_a_line_is_the_mean_of_its_trials_and_the_band_their_range(folder):
    axes = plot_curves(results.read(folder))
    sparse, dense = axes.get_lines()
    assert (sparse.get_label(), dense.get_label()) == ("first/sparse", "second/dense")
    assert sparse.get_xdata().tolist() == [2, 3] and sparse.get_ydata() == pytest.approx([25, 65])
    edges = axes.collections[0].get_paths()[0].get_extents()
    assert (edges.ymin, edges.ymax) == pytest.approx((20, 70))
    assert axes.get_ylabel() == "test accuracy (%)" and axes.get_xscale() == "linear"


def test_bytes_add_up_over_rounds_and_lines_may_be_of_a_setting(folder):
    _, axes = plt.subplots()
    assert plot_curves(results.read(folder), x="uplink_total", by="federation.learning_rate", axes=axes) is axes
    assert [line.get_label() for line in axes.get_lines()] == ["1.0", "2.0"]
    assert axes.get_lines()[1].get_xdata() == pytest.approx(np.array([1200, 2400, 3600]) / 1024)
    assert axes.get_xscale() == "log"


def test_the_front_joins_what_no_other_method_beats(folder):
    frame = results.read(folder)
    worse = frame[frame["method"] == "second/dense"].assign(method="worse", trial="worse/seed-0")
    axes = plot_pareto(pd.concat([frame, worse.assign(test_accuracy=worse["test_accuracy"] / 2)]))
    front = axes.get_lines()[-1]
    assert front.get_xdata() == pytest.approx(np.array([660, 3900]) / 1024)
    assert front.get_ydata() == pytest.approx([65, 80])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1), st.booleans())
def test_a_front_beats_all_and_none_of_it_is_beaten(points, less):
    front = front_of(points, less_is_better=less)

    def beats(one, other):
        better = one[1] <= other[1] if less else one[1] >= other[1]
        return one[0] <= other[0] and better

    assert set(front) <= set(points) and all(any(beats(one, point) for one in front) for point in points)
    assert not any(beats(one, other) for one in front for other in front if one != other)


def test_the_overlap_is_drawn_beside_chance(folder):
    axes = plot_overlap(results.read(folder), 0.01)
    assert axes.get_lines()[0].get_ydata() == pytest.approx([50] * 3)
    assert list(axes.get_lines()[-1].get_ydata()) == pytest.approx([1, 1])


def test_all_figures_are_written_in_three_forms_and_alike_each_time(folder, tmp_path):
    frame = results.read(folder)
    drawn = draw_gallery(frame, tmp_path / "all", forms=("svg",))
    assert [path.name for path in drawn] == ["curves.svg", "bytes.svg", "pareto.svg", "overlap.svg"]
    few = frame.drop(columns="top_k_overlap")
    written = draw_gallery(few, tmp_path / "one", x="total_bytes")
    assert {path.name for path in written} == {f"{name}.{form}" for name in ("curves", "pareto") for form in BEGINNINGS}
    assert all(path.read_bytes().startswith(BEGINNINGS[path.suffix[1:]]) for path in written)
    again = draw_gallery(few, tmp_path / "two", x="total_bytes", forms=("svg", "pdf"))
    assert all(path.read_bytes() == (tmp_path / "one" / path.name).read_bytes() for path in again)
    assert not plt.get_fignums()


@pytest.mark.parametrize("style", ["slides", "dark"])
def test_a_style_changes_how_figures_look(folder, tmp_path, style):
    frame = results.read(folder).drop(columns="top_k_overlap")
    paths = draw_gallery(frame, tmp_path / style, x="epsilon", style=style, forms=("svg",))
    assert [path.name for path in paths] == ["curves.svg", "pareto.svg"]
    plain = draw_gallery(frame, tmp_path / "plain", x="epsilon", forms=("svg",))
    assert plain[0].read_bytes() != paths[0].read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--y", "test_acuracy"], "the nearest is 'test_accuracy'"),
        (["--by", "methods"], "the nearest is 'method'"),
        (["--x", "task"], "holds no numbers"),
        (["--folder", "{folder}/first.jsonl/below"], "cannot be written"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(folder, tmp_path, capsys, options, words):
    options = [option.format(folder=folder) for option in options]
    before = sorted(tmp_path.rglob("*"))
    assert main(["figures", str(folder), "--forms", "svg", "--folder", str(tmp_path / "drawn"), *options]) == 1
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out
    assert sorted(tmp_path.rglob("*")) == before


def test_more_lines_than_colours_are_refused_with_what_to_do(folder):
    frame = results.read(folder)
    many = pd.concat([frame.assign(method=f"method {number}") for number in range(11)])
    with pytest.raises(ConfigError, match=r"11 values.*such as .*results.*federation\.learning_rate"):
        plot_curves(many)


def test_of_configs_the_best_tuning_counts_and_is_called_as_in_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sparse, dense = config_in(tmp_path / "configs", "sparse"), config_in(tmp_path / "configs", "dense")
    of_sparse = {"learning_rate=1/seed-0": [0.6], "learning_rate=2/seed-0": [0.7], "learning_rate=2/seed-1": [0.5]}
    finished(sparse, of_sparse)
    finished(dense, {"learning_rate=4/seed-0": [0.9]})
    frame, metric, notes = rounds_in(tmp_path / "configs")
    assert metric == "accuracy"
    assert frame[["method", "seed", "test_accuracy"]].to_numpy().tolist() == [
        ["dense", 0, 0.9],
        ["sparse", 0, 0.7],
        ["sparse", 1, 0.5],
    ]
    assert main(["figures", "configs", "--forms", "svg"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == ["figures/curves.svg", "figures/bytes.svg", "figures/pareto.svg"]
    assert said.err.count("\n") == len(notes)
    with pytest.raises(ConfigError, match="sweep it first"):
        rounds_in(config_in(tmp_path, "unfinished"))


def test_without_an_axis_the_metric_of_the_configs_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = UNTUNED.replace('task = "digits"', 'task = "digits"\nmetric = "auc"\ndirection = "higher"')
    config = config_in(tmp_path, "mine", text)
    finished(config, {"seed-0": [0.6, 0.7]})
    reports = results_of(config).read()
    for report in reports:
        report["curves"]["test_auc"] = report["curves"].pop("test_accuracy")
    results_of(config).replace(reports)
    for target in ("mine.toml", "mine.jsonl"):
        assert rounds_in(tmp_path / target)[1] == "auc"
        assert main(["figures", target, "--forms", "svg"]) == 0, capsys.readouterr().err
        assert "test auc" in (tmp_path / "figures" / "curves.svg").read_text(encoding="utf-8")

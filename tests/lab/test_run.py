import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from dpcomp.core.calls import as_table
from dpcomp.lab.cli import main
from dpcomp.lab.config.build import checked_points, make_pipeline
from dpcomp.lab.config.experiment import load
from dpcomp.lab.results.measure import metric_of
from dpcomp.lab.results.results_file import FORMAT, results_of
from dpcomp.lab.sweep.plan import standing_of
from dpcomp.lab.sweep.sweep import run
from dpcomp.lab.tasks import SHIPPED_TASKS
from experiments import cli as project
from experiments.data.tasks import TASKS

TEXT = """
task = "digits"
seeds = [0, 1]
delta = 1e-4

[federation]
clients = 3
rounds = 3
probes = [{ TopKOverlap = { fraction = 0.05 } }, { Clipping = {} }]

[tune]
learning_rate = [0.5, 2.0]

[pipeline]
sampling = { Poisson = { rate = 0.2 } }
mechanism = [{ Clip = { norm = 1.0 } }, { Gaussian = { noise_multiplier = 1.0 } }]
codec = { Codec = { sparsify = { TopK = { fraction = 0.05 } }, quantize = { Uniform = { bits = 4 } } } }
"""


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A config whose trials are finished, which is not written to."""
    path = tmp_path_factory.mktemp("finished") / "small.toml"
    path.write_text(TEXT, encoding="utf-8")
    counted(path)
    return path


@pytest.fixture
def config(finished_run, tmp_path):
    """A config whose trials are finished."""
    shutil.copytree(finished_run.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / finished_run.name


def counted(config, **options):
    """The reports of a run that count."""
    (outcome,) = run(config, SHIPPED_TASKS, progress=False, **options).outcomes()
    return outcome.reports


def test_every_tuning_is_tried_once_and_the_best_goes_on_with_every_seed(config):
    reports = counted(config)
    tried = [report for report in results_of(config).read() if report["seed"] == 0]
    assert len(tried) == 2
    assert reports[0] == max(tried, key=lambda report: metric_of(report))
    best = reports[0]["trial"].removesuffix("/seed-0")
    assert [report["trial"] for report in reports] == [f"{best}/seed-0", f"{best}/seed-1"]


def test_a_report_holds_all_there_is_to_know(config):
    facts = counted(config)[1]
    assert facts["format"] == FORMAT
    assert facts["seed"] == 1
    assert facts["config"]["federation"]["rounds"] == 3
    assert facts["pipeline"] == as_table(make_pipeline(load(config)), "pipeline")
    assert facts["versions"]["torch"].startswith("2.")
    assert set(facts["versions"]) >= {"dpcomp", "commit"}
    assert facts["machine"]["cores"] >= 1
    assert facts["machine"]["accelerator"] is None
    assert facts["guarantee"]["text"].startswith("ε ≤ ")
    assert facts["probed"] == ["clipped_fraction", "mean_unit_norm", "seconds", "top_k_overlap"]
    assert all(len(curve) == 3 for curve in facts["curves"].values())
    assert facts["curves"]["payload_bytes"][0] > 56


def test_what_is_done_is_not_done_again_and_what_is_missing_is(config):
    before = counted(config)
    results = results_of(config)
    results.replace([report for report in results.read() if report != before[1]])
    after = counted(config)
    assert after[0] == before[0]
    assert after[1] != before[1]
    mended, whole = after[1]["curves"], before[1]["curves"]
    assert {**mended, "seconds": None} == {**whole, "seconds": None}


def test_trials_side_by_side_end_as_one_after_the_other(config, tmp_path):
    reports = counted(config)
    other = shutil.copy(config, tmp_path / "other.toml")
    for one, two in zip(reports, counted(Path(other), jobs=2), strict=True):
        assert {**one["curves"], "seconds": None} == {**two["curves"], "seconds": None}


def test_results_of_another_config_are_not_taken_for_this_one(config, capsys):
    before = counted(config)
    config.write_text(TEXT.replace("rounds = 3", "rounds = 4"), encoding="utf-8")
    assert main(["run", str(config)]) == 0
    assert "3 results do not count: the config differs from theirs in federation" in capsys.readouterr().err
    config.write_text(TEXT, encoding="utf-8")
    assert counted(config) == before


def test_the_command_line_runs_and_draws(config, capsys):
    assert main(["run", str(config)]) == 0
    printed = capsys.readouterr().out
    assert "test_accuracy" in printed
    for figure in ("training", "scrambling"):
        assert config.with_suffix(f".{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert main(["epsilon", str(config)]) == 0
    guarantee = results_of(config).read()[0]["guarantee"]
    epsilon = capsys.readouterr().out
    assert guarantee["text"].split(" · ")[0] in epsilon
    for row in printed.splitlines()[1:3]:
        assert guarantee["text"].startswith(f"ε ≤ {row.split()[3]} ")


def test_a_grid_is_not_run_as_one_experiment(config, capsys):
    config.write_text(TEXT + '[grid]\n"federation.local_steps" = [1, 2]', encoding="utf-8")
    assert main(["run", str(config)]) == 1
    assert "dpcomp sweep" in capsys.readouterr().err


def test_what_is_refused_is_one_line_and_a_status(tmp_path, capsys):
    assert main(["run", str(tmp_path / "none.toml")]) == 1
    refused = capsys.readouterr().err
    assert refused.startswith("dpcomp: ")
    assert refused.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        main(["train"])


def test_data_is_named_and_checked(capsys):
    assert project.main(["data", "digits"]) == 0
    assert "1,437 training and 360 test images" in capsys.readouterr().out
    assert project.main(["data", "digit"]) == 1
    assert "the nearest is 'digits'" in capsys.readouterr().err


def test_every_tracked_config_can_be_read_and_has_a_guarantee():
    configs = sorted(Path("experiments/configs").rglob("*.toml"))
    assert len(configs) >= 11
    for path in configs:
        assert all(point.experiment.steps >= 20 for point in checked_points(path, TASKS))


def test_every_tracked_result_counts_or_was_tried():
    configs, results = Path("experiments/configs").absolute(), Path("results").absolute()
    names = ("audit.jsonl", "demo.jsonl", "scrambling.jsonl", "cost.jsonl")
    names += ("mean_estimation.jsonl", "federated_benchmark/digits.jsonl", "federated_benchmark/fashion_mnist.jsonl")
    seen = {results / name for name in names}
    assert all(path.exists() for path in seen)
    for config in configs.rglob("*.toml"):
        standing = standing_of(config)
        assert not standing.left_out, standing.notes()
        seen.add(standing.results.path)
    assert set(results.rglob("*.jsonl")) <= seen


@pytest.mark.parametrize("module", ["dpcomp", "dpcomp.lab.cli"])
def test_the_command_also_runs_as_a_module(module):
    ran = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.returncode) == (f"dpcomp {version('dpcomp')}\n", 0), ran.stderr

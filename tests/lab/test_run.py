import json
import shutil
from pathlib import Path

import pytest

from dpcomp.lab.cli import main
from dpcomp.lab.config.experiment import ConfigError
from dpcomp.lab.config.grid import points
from dpcomp.lab.results import report
from dpcomp.lab.sweep.run import run
from dpcomp.lab.sweep.sweep import final_accuracy

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


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_every_tuning_is_tried_once_and_the_best_goes_on_with_every_seed(config):
    folders = run(config, progress=False)
    tried = {folder.parent: report.read(folder) for folder in config.with_suffix("").glob("*/seed-0")}
    assert len(tried) == 2
    best = max(tried, key=lambda folder: final_accuracy(tried[folder]))
    assert folders == [best / "seed-0", best / "seed-1"]


def test_a_report_holds_all_there_is_to_know(config):
    facts = report.read(run(config, progress=False)[1])
    assert facts["seed"] == 1
    assert facts["config"]["federation"]["rounds"] == 3
    assert facts["versions"]["torch"].startswith("2.")
    assert facts["machine"]["cores"] >= 1
    assert facts["machine"]["accelerator"] is None
    assert facts["guarantee"]["text"].startswith("ε ≤ ")
    assert facts["probed"] == ["clipped_fraction", "mean_unit_norm", "top_k_overlap"]
    assert all(len(curve) == 3 for curve in facts["curves"].values())
    assert facts["curves"]["payload_bytes"][0] > 56


def test_what_is_done_is_not_done_again_and_what_was_broken_off_is(config):
    folders = run(config, progress=False)
    before = [(folder / "report.json").read_bytes() for folder in folders]
    (folders[1] / "DONE").unlink()
    (folders[1] / "report.json").write_text("{ torn", encoding="utf-8")
    assert run(config, progress=False) == folders
    after = [(folder / "report.json").read_bytes() for folder in folders]
    assert after[0] == before[0]
    mended, whole = json.loads(after[1])["curves"], json.loads(before[1])["curves"]
    assert {**mended, "seconds": None} == {**whole, "seconds": None}


def test_trials_side_by_side_end_as_one_after_the_other(config, tmp_path):
    folders = run(config, progress=False)
    other = shutil.copy(config, tmp_path / "other.toml")
    for one, two in zip(folders, run(Path(other), jobs=2, progress=False), strict=True):
        curves = [report.read(folder)["curves"] for folder in (one, two)]
        assert {**curves[0], "seconds": None} == {**curves[1], "seconds": None}


def test_reports_of_another_config_are_not_taken_for_this_one(config):
    run(config, progress=False)
    config.write_text(TEXT.replace("rounds = 3", "rounds = 4"), encoding="utf-8")
    with pytest.raises(ConfigError, match="another configuration"):
        run(config, progress=False)


def test_the_command_line_runs_and_draws(config, capsys):
    assert main(["run", str(config)]) == 0
    printed = capsys.readouterr().out
    assert "test_accuracy" in printed
    for figure in ("training.png", "scrambling.png"):
        assert (config.with_suffix("") / figure).read_bytes().startswith(b"\x89PNG")
    assert main(["epsilon", str(config)]) == 0
    assert report.read(next(config.with_suffix("").glob("*/seed-0")))["guarantee"]["text"].split(" · ")[0] in (
        capsys.readouterr().out
    )


def test_what_is_refused_is_one_line_and_a_status(tmp_path, capsys):
    assert main(["run", str(tmp_path / "none.toml")]) == 1
    refused = capsys.readouterr().err
    assert refused.startswith("dpcomp: ")
    assert refused.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        main(["train"])


def test_data_is_named_and_checked(capsys):
    assert main(["data", "digits"]) == 0
    assert "1,437 training and 360 test images" in capsys.readouterr().out


def test_every_tracked_config_can_be_read_and_has_a_guarantee():
    configs = sorted(Path("experiments/configs").rglob("*.toml"))
    assert len(configs) >= 11
    for path in configs:
        assert all(point.experiment.steps >= 20 for point in points(path))


def test_tracked_reports_are_of_the_configs_beside_them():
    configs, seen = Path("experiments/configs").absolute(), set()
    for config in configs.rglob("*.toml"):
        for point in points(config):
            for done in point.home.rglob("DONE"):
                seen.add(done)
                facts = report.read(done.parent)
                assert facts["config"]["pipeline"] == point.experiment.as_dict()["pipeline"]
                assert facts["config"]["federation"].items() >= point.experiment.federation.items()
    # `dpcomp study` has no config: its reports name all they are of.
    studies = {done for name in ("scrambling", "cost") for done in (configs / name).rglob("DONE")}
    assert studies and seen == set(configs.rglob("DONE")) - studies

import sys

import pandas as pd
import pytest
from safetensors.numpy import load_file

from dpcomp.core.errors import ConfigError
from dpcomp.lab.cli import main
from dpcomp.lab.results.measure import metric_of
from dpcomp.lab.results.results_file import results_of
from dpcomp.lab.sweep.sweep import sweep
from dpcomp.lab.sweep.trial import TRACEBACK
from dpcomp.lab.tasks import SHIPPED_TASKS

TEXT = """
task = "digits"
seeds = [0, 1]
delta = 1e-4
imports = ["own.py"]

[federation]
clients = 2
rounds = 2
probes = [{ Noted = { file = "FOLDER/trained.txt" } }]

[tune]
learning_rate = [0.5, 2.0]

[pipeline]
sampling = { Poisson = { rate = 0.2 } }
mechanism = [{ Clip = { norm = 1.0 } }, { Gaussian = { noise_multiplier = 1.0 } }]
codec = { Codec = { sparsify = { TopK = { fraction = 0.05 } }, quantize = { Uniform = { bits = 4 } } } }

[grid]
"pipeline.codec.Codec.sparsify.TopK.fraction" = [0.1, 0.05]
"""
OWN = '''
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from dpcomp import TopK

@dataclass(frozen=True, kw_only=True)
class Noted:
    """A line in a file for every simulation that begins to train."""

    file: str

    def measure(self, seen):
        if (seen.released.address.client, seen.released.address.round) == (0, 0):
            with open(self.file, "a") as file:
                file.write("begun\\n")
        return {}


@dataclass(frozen=True, kw_only=True)
class Fragile:
    """TopK of half, as long as a file is there."""

    needs: str
    deadly: bool = False

    def select(self, vector, candidates, context):
        if not Path(self.needs).exists():
            if self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("it is not there\\nand that is that")
        return TopK(0.5).select(vector, candidates, context)
'''


def config_in(folder, text=TEXT):
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(OWN, encoding="utf-8")
    config = folder / "small.toml"
    config.write_text(text.replace("FOLDER", "/".join(folder.parts[:-1])), encoding="utf-8")
    return config


@pytest.fixture
def config(tmp_path):
    return config_in(tmp_path / "one")


def trained(config):
    """How many simulations have begun beside this config."""
    return len((config.parents[1] / "trained.txt").read_text().splitlines())


def finished(config):
    """The report of each finished trial, by name: one that was trained anew takes other seconds."""
    reports = results_of(config).read()
    found = {report["trial"]: report for report in reports}
    assert len(found) == len(reports)
    return found


def test_every_point_is_tuned_and_the_table_has_a_row_for_each(config, capsys):
    assert main(["sweep", str(config)]) == 0
    assert len(finished(config)) == trained(config) == 2 * (2 + 1)
    printed = capsys.readouterr()
    assert "6/6" in printed.err
    table = pd.read_csv(config.with_suffix(".csv"))
    assert table["fraction"].tolist() == [0.1, 0.05]
    assert table["tried"].tolist() == table["seeds"].tolist() == [2, 2]
    for row in table.to_dict("records"):
        every = finished(config)
        reports = [every[f"{row['trials']}/seed-{seed}"] for seed in (0, 1)]
        assert [facts["seed"] for facts in reports] == [0, 1]
        point = row["trials"].split("/")[0]
        tried = [facts for name, facts in every.items() if name.startswith(f"{point}/") and facts["seed"] == 0]
        assert metric_of(reports[0]) == max(metric_of(facts) for facts in tried)
        accuracies = pd.Series([100 * metric_of(facts) for facts in reports])
        assert row["accuracy_percent"] == pytest.approx(accuracies.mean())
        assert row["deviation"] == pytest.approx(accuracies.std())
        assert row["payload_bytes"] == pytest.approx(
            pd.DataFrame([facts["curves"]["payload_bytes"] for facts in reports]).to_numpy().mean()
        )
        assert str(row["tuning"]) in printed.out
        assert all(facts["machine"]["torch_threads"] == 1 for facts in reports)
    assert config.with_suffix(".training.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in config.parent.iterdir()} == {
        *("own.py", "small.toml", "small.jsonl", "small.csv", "small.training.png", "small.models")
    }
    for name, report in finished(config).items():
        model = load_file(results_of(config).model_of(name))
        assert sum(tensor.size for tensor in model.values()) == report["coordinates"]
        assert model["output.weight"].shape == (10, 160)


FRAGILE = TEXT.replace("learning_rate = [0.5, 2.0]", "").replace("seeds = [0, 1]", "seeds = [0]").split("[grid]")[0]
FRAGILE += """
[grid.method]
"fragile" = { "pipeline.codec.Codec.sparsify" = { Fragile = { needs = "FOLDER/there", deadly = false } } }
"sound" = { "pipeline.feedback" = false }
"""


def test_a_trial_that_fails_stops_no_other_is_told_and_is_tried_again(tmp_path, capsys):
    config = config_in(tmp_path / "one", FRAGILE)
    assert main(["sweep", str(config)]) == 1
    told = capsys.readouterr().err
    assert "1 trials failed" in told
    assert "small.running/method=fragile/seed-0: RuntimeError: it is not there\n" in told
    failed = results_of(config).folder_of("method=fragile/seed-0")
    assert "in select" in (failed / TRACEBACK).read_text()
    table = pd.read_csv(config.with_suffix(".csv")).set_index("method")
    assert table["seeds"].to_dict() == {"fragile": 0, "sound": 1}
    before = finished(config)
    assert len(before) == 1
    (tmp_path / "there").touch()
    assert main(["sweep", str(config)]) == 0
    assert finished(config).items() >= before.items()
    assert not failed.exists()
    assert pd.read_csv(config.with_suffix(".csv"))["seeds"].tolist() == [1, 1]


@pytest.mark.slow
def test_a_trial_that_kills_its_process_stops_no_other(tmp_path):
    config = config_in(tmp_path / "one", FRAGILE.replace("deadly = false", "deadly = true"))
    swept = sweep([config], SHIPPED_TASKS, jobs=2, progress=False)
    assert [(found.trial.folder.parent.name, found.error) for found in swept.failures] == [
        ("method=fragile", "its process died, as one does that the system kills for its memory")
    ]
    assert [len(outcome.reports) for outcome in swept.outcomes] == [0, 1]


def test_points_that_are_one_trial_are_refused(config):
    config.write_text(TEXT + '"pipeline.codec.Codec.sparsify" = [{ TopK = { fraction = 0.3 } }]', encoding="utf-8")
    with pytest.raises(ConfigError, match="one trial"):
        sweep([config], SHIPPED_TASKS, progress=False)


def test_a_folder_of_configs_is_one_sweep(tmp_path, capsys):
    plain = FRAGILE.split("[grid.method]")[0]
    config_in(tmp_path / "one", plain)
    config_in(tmp_path / "two", plain + '[grid]\n"pipeline.feedback" = [true, false]')
    assert main(["sweep", str(tmp_path)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["config", "one/small", "two/small", "two/small"]
    assert main(["table", str(tmp_path)]) == 0
    assert "two/small/feedback=false" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["sweep", str(tmp_path / "empty")]) == 1
    assert "no config" in capsys.readouterr().err


@pytest.mark.parametrize(("backend", "library"), [("ray", "ray"), ("dask", "dask")])
def test_a_backend_without_its_library_says_what_to_install(config, capsys, monkeypatch, backend, library):
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["sweep", str(config), "--backend", backend]) == 1
    refused = capsys.readouterr().err
    assert library in refused
    assert "pip install 'dpcomp[cluster]'" in refused
    assert finished(config) == {}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[tune]", "protocol = { Versioned = { late_policy = { Weigh = { max_age = 2 } } } }\n[tune]", "late_policy"),
        ("seeds = [0, 1]", "seeds = [0, -1]", "-1"),
        ("seeds = [0, 1]", 'seeds = [0, "one"]', "one"),
        ("delta = 1e-4", "delta = 2.0", "delta"),
        ("rounds = 2", "rounds = 2.5", "rounds"),
        ("rounds = 2", "rounds = 2\nparticipation = { Poisson = { rate = 0.5 } }", "participation"),
        ("rounds = 2", 'rounds = 2\ndevice = "cuda:7"', "cuda"),
        ("rounds = 2", "rounds = 2\nexpected_batch_size = 5.0", "expected_batch_size"),
        ("noise_multiplier = 1.0", "", "epsilon"),
    ],
)
def test_a_trial_that_could_not_begin_is_refused_before_any_is_trained(tmp_path, old, new, words, capsys):
    trusted = '[pipeline]\nunit = "client"\ntrust = "server"'
    text = (
        TEXT.replace(old, new)
        if words in ("-1", "one", "delta", "rounds", "cuda")
        else (TEXT.replace("[pipeline]", trusted).replace(old, new))
    )
    if words == "epsilon":
        text = 'epsilon = "eight"\n' + text
    config = config_in(tmp_path / "one", text)
    assert main(["sweep", str(config)]) != 0
    assert words in capsys.readouterr().err
    assert not (tmp_path / "trained.txt").exists()

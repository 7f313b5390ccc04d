import hashlib

import pytest

import dpcomp as dp
from dpcomp.core.errors import ConfigError
from dpcomp.lab.cli import main
from dpcomp.lab.config.build import checked_points, make_pipeline, make_task
from dpcomp.lab.config.experiment import load
from dpcomp.lab.results.results_file import results_of
from dpcomp.lab.tasks import SHIPPED_TASKS
from experiments.data.tasks import TASKS

CONFIG = """
task = "digits"
imports = ["own.py"]
federation = { clients = 2, rounds = 1 }

[pipeline]
mechanism = [{ Clip = { norm = 1.0 } }, { Gaussian = { noise_multiplier = 1.0 } }]
codec = { Codec = { sparsify = { Own = { fraction = 0.5 } } } }
"""
OWN = """
from __future__ import annotations

from dataclasses import dataclass

from dpcomp.core.public_context import PublicContext


@dataclass(frozen=True)
class Own:
    fraction: float

    def select(self, vector, candidates, context: PublicContext):
        return candidates
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "some.toml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    return tmp_path


def test_a_dataclass_of_ones_own_file_is_called_by_its_name(folder):
    sparsify = make_pipeline(load(folder / "some.toml")).codec.sparsify
    assert (type(sparsify).__name__, sparsify.fraction) == ("Own", 0.5)


def test_the_digest_stands_where_the_file_is_used_and_nowhere_else(folder):
    used = load(folder / "some.toml").settings["imports"]
    assert list(used) == ["own.py"]
    (folder / "own.py").write_text(OWN + "\n# changed\n", encoding="utf-8")
    assert load(folder / "some.toml").settings["imports"] != used
    (folder / "some.toml").write_text(CONFIG.replace("Own = {", "TopK = {"), encoding="utf-8")
    experiment = load(folder / "some.toml")
    assert make_pipeline(experiment).codec.sparsify == dp.TopK(0.5)
    assert "imports" not in experiment.settings


def test_a_file_that_changes_under_an_experiment_is_refused(folder):
    changed = OWN + "\n# not seen before\n"
    (folder / "own.py").write_text(changed, encoding="utf-8")
    experiment = load(folder / "some.toml")
    (folder / "own.py").write_text(changed + "# nor this\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"own\.py was changed"):
        make_pipeline(experiment)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fraction = 0.1", "defines no dataclass"),
        ("1 / 0", "can't be run: ZeroDivisionError"),
        (OWN.replace("Own", "TopK"), "defines TopK, which is dpcomp's own"),
        (OWN.replace("fraction:", "share:"), "the nearest is 'share'"),
        (OWN.replace("Own", "Owm"), "the nearest is 'Owm'"),
    ],
)
def test_what_a_file_cannot_give_is_refused(folder, text, said):
    (folder / "own.py").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        make_pipeline(load(folder / "some.toml"))


@pytest.mark.parametrize(
    ("imports", "said"),
    [
        ('["none.py"]', r"none\.py can't be read \(No such file"),
        ('"own.py"', "write a list"),
        ('["own.py", "again.py"]', r"again\.py defines Own, as another file does"),
        ('["own.py", "./own.py"]', r"\./own\.py stands twice: leave one out"),
    ],
)
def test_imports_are_files_with_names_of_their_own(folder, imports, said):
    (folder / "again.py").write_text(OWN + "\n# another file\n", encoding="utf-8")
    (folder / "some.toml").write_text(CONFIG.replace('["own.py"]', imports), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        make_pipeline(load(folder / "some.toml"))


TASK = """
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Halves:
    width: int
    name: str = "halves"
    population: int = 60

    def _drawn(self, seed):
        inputs = torch.randn(60, self.width, generator=torch.Generator().manual_seed(seed))
        return inputs, (inputs.sum(dim=1) > 0).long()

    def train(self):
        return self._drawn(0)

    def test(self):
        return self._drawn(1)

    def model(self, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.nn.Linear(self.width, 2)

    def loss(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets)


@dataclass(frozen=True)
class NoTask:
    width: int


@dataclass(frozen=True, kw_only=True)
class Untested(Halves):
    test = loss = property()
"""
OWN_TASK = """
task = { Halves = { width = 3 } }
imports = ["halves.py"]
delta = 1e-3

[federation]
clients = 2
rounds = 2

[pipeline]
sampling = { Poisson = { rate = 0.5 } }
mechanism = [{ Clip = { norm = 1.0 } }, { Gaussian = { noise_multiplier = 1.0 } }]

[grid]
"task.Halves.width" = [3, 5]
"""


def test_a_task_of_ones_own_with_data_and_model_in_one_file_is_swept(tmp_path, capsys):
    (tmp_path / "own.toml").write_text(OWN_TASK, encoding="utf-8")
    (tmp_path / "halves.py").write_text(TASK, encoding="utf-8")
    assert main(["sweep", str(tmp_path / "own.toml"), "--jobs", "2"]) == 0
    reports = results_of(tmp_path / "own.toml").read()
    assert [report["coordinates"] for report in reports] == [2 * 3 + 2, 2 * 5 + 2]
    assert [report["config"]["task"] for report in reports] == [{"Halves": {"width": 3}}, {"Halves": {"width": 5}}]
    digest = hashlib.sha256(TASK.encode()).hexdigest()
    assert all(report["config"]["imports"] == {"halves.py": digest} for report in reports)
    capsys.readouterr()
    assert main(["epsilon", str(tmp_path / "own.toml")]) == 0
    assert "1/N = 1/60" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            "{ NoTask = { width = 3 } }",
            "has no name and no population and no train and no test and no model and no loss",
        ),
        ("{ Untested = { width = 3 } }", "has no test and no loss: a task has name, population"),
        ("{ Halfs = { width = 3 } }", "the nearest is 'Halves'"),
        ("{ Halves = { wide = 3 } }", "the nearest is 'width'"),
        ('"digit"', "the nearest is 'digits'"),
        ('"fashion_mnist"', "the nearest is 'digits'"),
    ],
)
def test_what_is_no_task_is_refused(tmp_path, task, said):
    text = OWN_TASK.split("[grid]")[0].replace("{ Halves = { width = 3 } }", task)
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    (tmp_path / "halves.py").write_text(TASK, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        checked_points(tmp_path / "own.toml", SHIPPED_TASKS)


def test_a_task_is_named_by_whoever_brings_it(folder):
    (folder / "some.toml").write_text(CONFIG.replace("digits", "mnist"), encoding="utf-8")
    assert make_task(load(folder / "some.toml"), TASKS).name == "mnist"
    with pytest.raises(ConfigError, match="'mnist', which is unknown"):
        make_task(load(folder / "some.toml"), SHIPPED_TASKS)


@pytest.mark.parametrize(
    "member", ["train(self)", "test(self)", "model(self, seed)", "metrics(self, outputs, targets)"]
)
def test_what_fails_in_a_file_of_ones_own_is_said_in_one_line_with_its_place(tmp_path, capsys, member):
    text = f"{TASK.split('@dataclass(frozen=True)')[0].rstrip()}\n\n    def {member}:\n        return {{}}['a']\n"
    (tmp_path / "own.toml").write_text(OWN_TASK.split("[grid]")[0], encoding="utf-8")
    (tmp_path / "halves.py").write_text(text, encoding="utf-8")
    assert main(["sweep", str(tmp_path / "own.toml")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "own.toml: at seed-0: " in said
    assert "KeyError: 'a'" in said and said.endswith(f"(halves.py, line {len(text.splitlines())})\n")

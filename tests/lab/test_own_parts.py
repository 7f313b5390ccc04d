import pytest

import dpcomp as dp
from dpcomp.lab.config.calls import ConfigError
from dpcomp.lab.config.experiment import load

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

from dpcomp.core.layout import Layout


@dataclass(frozen=True)
class Own:
    fraction: float

    def select(self, vector, candidates, layout: Layout, mask_key):
        return candidates
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "some.toml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    return tmp_path


def test_a_dataclass_of_ones_own_file_is_called_by_its_name(folder):
    sparsify = load(folder / "some.toml").make_pipeline().codec.sparsify
    assert (type(sparsify).__name__, sparsify.fraction) == ("Own", 0.5)


def test_the_digest_stands_where_the_file_is_used_and_nowhere_else(folder):
    used = load(folder / "some.toml").as_dict()["imports"]
    assert list(used) == ["own.py"]
    (folder / "own.py").write_text(OWN + "\n# changed\n", encoding="utf-8")
    assert load(folder / "some.toml").as_dict()["imports"] != used
    (folder / "some.toml").write_text(CONFIG.replace("Own = {", "TopK = {"), encoding="utf-8")
    experiment = load(folder / "some.toml")
    assert experiment.make_pipeline().codec.sparsify == dp.TopK(0.5)
    assert "imports" not in experiment.as_dict()


def test_a_file_that_changes_under_an_experiment_is_refused(folder):
    changed = OWN + "\n# not seen before\n"
    (folder / "own.py").write_text(changed, encoding="utf-8")
    experiment = load(folder / "some.toml")
    (folder / "own.py").write_text(changed + "# nor this\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"own\.py was changed"):
        experiment.make_pipeline()


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
        load(folder / "some.toml").make_pipeline()


@pytest.mark.parametrize(
    ("imports", "said"),
    [
        ('["none.py"]', r"none\.py can't be read \(No such file"),
        ('"own.py"', "write a list"),
        ('["own.py", "again.py"]', r"again\.py defines Own, as another file does"),
    ],
)
def test_imports_are_files_with_names_of_their_own(folder, imports, said):
    (folder / "again.py").write_text(OWN + "\n# another file\n", encoding="utf-8")
    (folder / "some.toml").write_text(CONFIG.replace('["own.py"]', imports), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load(folder / "some.toml").make_pipeline()

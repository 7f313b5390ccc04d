"""The public names, and what importing them loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dpcomp as dp

FRAMEWORKS = ("torch", "opacus", "jax", "pandas", "rich", "matplotlib")
WITHOUT_FRAMEWORKS = Path(__file__).with_name("import_without_frameworks.py")


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def test_the_library_loads_no_framework():
    modules = ("dpcomp", "dpcomp.pipeline", "dpcomp.federated", "dpcomp.simulation")
    script = (
        f"import importlib, sys\nfor module in {modules}:\n    importlib.import_module(module)\n"
        f"    print(module, [name for name in {FRAMEWORKS} if name in sys.modules])"
    )
    assert run("-c", script).stdout == "".join(f"{module} []\n" for module in modules)


def test_both_ends_and_every_public_name_can_be_had_without_a_framework_installed():
    ran = run(str(WITHOUT_FRAMEWORKS))
    assert ran.returncode == 0, ran.stderr


def test_a_module_that_needs_a_framework_is_noticed():
    load = f"import runpy; runpy.run_path({str(WITHOUT_FRAMEWORKS)!r}, run_name='__main__')"
    ran = run("-c", f"{load}; import dpcomp.training.pytorch")
    assert ran.returncode != 0
    assert "torch is blocked" in ran.stderr


def test_the_list_for_type_checkers_is_the_list_that_is_loaded():
    tree = ast.parse(Path(dp.__file__).read_text(encoding="utf-8"))
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.asname: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == dp._MODULES
    assert set(dp.__all__) <= set(dir(dp))


def test_the_page_of_the_api_names_every_public_name():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "api" / "index.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", "".join(rows))) == set(dp._MODULES)
    for line in rows:
        (folder,) = re.findall(r"\[(dpcomp\.\w+)\]", line)
        for name in re.findall(r"`(\w+)`", line):
            assert f"{dp._MODULES[name]}.".startswith(f"{folder}.")


def test_a_name_that_is_none_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'Clipp'"):
        dp.Clipp  # noqa: B018


def test_every_error_has_one_base():
    for error in (dp.NotPrivate, dp.CorruptPayload, dp.VersionMismatch, dp.BudgetExhausted, dp.ConfigError):
        assert issubclass(error, dp.DpcompError)

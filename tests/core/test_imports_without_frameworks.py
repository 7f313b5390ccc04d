"""dpcomp and dpcomp.federated import no framework, also where none is installed."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("import_without_frameworks.py")


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def test_a_client_and_a_server_need_no_framework():
    done = run(str(SCRIPT))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "imported without jax, opacus, pandas, torch\n"


def test_a_module_that_needs_one_is_noticed():
    done = run(
        "-c",
        f"import runpy, sys; sys.argv = ['x']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__'); "
        "import dpcomp.training.pytorch.trainers",
    )
    assert done.returncode != 0
    assert "torch is blocked" in done.stderr

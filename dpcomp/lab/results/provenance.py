"""What made a result: the versions of dpcomp and of the libraries that numbers depend on, and the machine."""

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dpcomp
from dpcomp.lab.results.results_file import Report

LIBRARIES = (
    *("dpcomp", "torch", "opacus", "numpy", "scipy"),
    *("dp-accounting", "constriction", "cryptography", "randomgen"),
)
CODE = "*.py"  # a config, an own part and data have their place in the result itself


def versions() -> dict[str, str | None]:
    """Return the versions of Python and LIBRARIES; and `commit`, that of the clone which dpcomp runs from, if any."""
    return {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}, "commit": commit()}


@cache
def commit() -> str | None:
    """Return the commit of the clone that holds the running dpcomp, "-dirty" if its code was changed since.

    None where dpcomp does not run from a clone, or git is not installed. It is asked once a process.
    """
    folder = Path(dpcomp.__file__).resolve().parents[1]
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != folder:  # an installed dpcomp may lie in a clone of something else
        return None
    head, changed = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--", CODE)
    return f"{head}-dirty" if head and changed else head


def machine(seconds: float, device: str = "cpu") -> dict[str, Any]:
    """Return which machine a trial ran on, and for how long.

    Args:
        seconds: The wall time of the trial.
        device: Where the models were trained, as torch names it.
    """
    import torch  # whoever reads results needs no training framework

    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": None if device == "cpu" else torch.cuda.get_device_name(device),
        "seconds": round(seconds, 1),
    }


def origins(reports: Iterable[Report]) -> Counter[str]:
    """Count reports by the state of the code that made them.

    It is the commit that the report names. Of reports from before these named one it is the commit which brought them
    into the repository (`recorded_in`), as far as it is known.
    """
    return Counter(
        report["versions"].get("commit")
        or (f"recorded in {report['recorded_in']}" if "recorded_in" in report else "no commit named")
        for report in reports
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says of a folder; None where it says nothing or is not installed."""
    try:
        ran = subprocess.run(("git", "-C", str(folder), *arguments), capture_output=True, text=True)
    except OSError:
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None

"""Runs one experiment: a sweep of one point."""

from pathlib import Path

from dpcomp.lab.config.experiment import load
from dpcomp.lab.sweep.sweep import sweep, told


class TrialFailed(Exception):
    """Some trials failed, and the others ended; the message says which, and why."""


def run(config: Path, *, jobs: int = 1, progress: bool = True) -> list[Path]:
    """Run what is not done yet, and return the folders of the trials that count: the best tuning, every seed.

    Raises:
        ConfigError: the file describes no single experiment, or a finished trial was made from another config.
        TrialFailed: some trials failed.
    """
    load(config)
    swept = sweep([config], jobs=jobs, progress=progress)
    if swept.failures:
        raise TrialFailed(told(swept.failures))
    return list(swept.outcomes[0].folders)

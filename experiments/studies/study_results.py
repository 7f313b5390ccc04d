"""What studies have in common: results in one file, each of one case, and none made twice."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpcomp.core.errors import ConfigError
from dpcomp.lab.results.provenance import machine, versions
from dpcomp.lab.results.results_file import FORMAT, ResultsFile


class StudyResults:
    """The results of a study.

    Args:
        path: The JSON-lines file.

    Raises:
        ConfigError: The file is damaged, or of another format.
    """

    def __init__(self, path: Path):
        self._file = ResultsFile(path=path)
        self._finished = {report["trial"]: report for report in self._file.read()}

    def finished(self, case: str, config: Mapping[str, Any]) -> bool:
        """Return whether the result of a case is there.

        Args:
            case: Its name, which ends in the seed.
            config: How it is made, as JSON types.

        Raises:
            ConfigError: There is one of this name that was made in another way.
        """
        report = self._finished.get(case)
        if report is not None and report["config"] != config:
            raise ConfigError(
                f"{self._file.path} holds a result of {case} that another study than this one made: move the "
                "file away, and run again"
            )
        return report is not None

    def write(
        self, case: str, config: Mapping[str, Any], seed: int, measurements: Mapping[str, Any], *, began: float
    ) -> None:
        """Write the result of a case, and print that it is there.

        Args:
            case: Its name.
            config: How it was made, as JSON types.
            seed: Of its randomness.
            measurements: What was measured, as JSON types.
            began: `time.perf_counter()` when the case began.
        """
        seconds = time.perf_counter() - began
        about = {"format": FORMAT, "trial": case, "config": config, "seed": seed}
        self._file.write({**about, **measurements, "versions": versions(), "machine": machine(seconds)})
        self._file.fold()
        print(f"{case} ({seconds:.0f} s)", flush=True)

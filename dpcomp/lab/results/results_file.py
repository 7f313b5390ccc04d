"""A file of results: JSON lines, a line a trial; while trials run, each report is a file of its own beside it.

    results/allocation/digits.jsonl                            # a line a trial, sorted, with sorted keys
    results/allocation/digits.running/<trial>/report.json      # finished, and not yet folded in
    results/allocation/digits.models/<trial>/model.safetensors # its last model, which stays

A report is written whole or not at all, so one that is there is a finished trial's. `fold` moves the reports into the
file: under a lock it writes the file anew, whole, and then deletes them. A process that is killed in between leaves
reports that stand in the file already, which the readers and the next `fold` take for one.
"""

import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from dpcomp.core.errors import ConfigError
from dpcomp.core.storage import atomic_write, write_whole
from dpcomp.lab.results.short_curves import lengthen_all, shorten_all

FORMAT = 3
OLDER = 2  # which has curves as lists alone
REPORT, LOCK, MODEL = "report.json", "fold.lock", "model.safetensors"

Report = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ResultsFile:
    """The results of one config or study.

    A report is a mapping of JSON types. Its `format` is FORMAT; its `curves`, if it has any, are lists by name, which
    stand in the file in the forms of `short_curves`. `trial`, the trial's name, and `config` say which trial it is of:
    of two reports that agree in both, one counts.

    Attributes:
        path: The JSON-lines file.
    """

    path: Path

    @property
    def running(self) -> Path:
        """The folder of the reports that are not yet in the file, and of what running trials need."""
        return self.path.with_suffix(".running")

    def folder_of(self, trial: str) -> Path:
        """Return the folder in which a trial runs and leaves its report."""
        return self.running / trial

    def model_of(self, trial: str) -> Path:
        """Return where a trial leaves its last model."""
        return self.path.with_suffix(".models") / trial / MODEL

    def read(self) -> list[Report]:
        """Return all reports, of the file and beside it, in the order of their lines.

        Raises:
            ConfigError: The file is damaged, or of another format.
        """
        # First those beside the file: what is folded in meanwhile is then found in the file.
        loose = [report for _, report in self._loose()]
        return list(_merged(self._lines(), loose).values())

    def write(self, report: Report) -> None:
        """Leave the report of a finished trial beside the file, whole and durable. Raises OSError."""
        while True:
            try:
                return write_whole(self.folder_of(report["trial"]) / REPORT, (_line(report) + "\n").encode())
            except FileNotFoundError:  # another process, which folds, has removed the folder as it was still empty
                continue

    def fold(self) -> None:
        """Move the reports beside the file into it. Several processes may do so at once, and be killed at any moment.

        Raises:
            ConfigError: The file is damaged, or of another format; nothing is changed.
        """
        if not self.running.exists():
            return
        try:
            held = FileLock(self.running / LOCK).acquire()
        except FileNotFoundError:  # another process folded all of them in
            return
        with held:
            loose = list(self._loose())
            if loose:
                self.replace(_merged(self._lines(), [report for _, report in loose]).values())
            for path, _ in loose:
                for file in path.parent.iterdir():  # the report, and what killed processes have left beside it
                    file.unlink(missing_ok=True)
            for folder, _, _ in os.walk(self.running, topdown=False):  # those of finished trials
                _remove_empty(Path(folder))
            (self.running / LOCK).unlink()  # whoever waits for this file sees that it is gone, and makes another
            _remove_empty(self.running)

    def replace(self, reports: Iterable[Report]) -> None:
        """Write the file anew, whole, with these reports alone. Raises OSError."""
        lines = [f"{_line(report)}\n" for report in sorted(reports, key=identity)]
        # One process at a time does so, and its next one takes the place of a draft that a killed one has left.
        with atomic_write(self.path, draft_name=f".{self.path.name}.part") as draft:
            draft.write_bytes("".join(lines).encode())

    def _lines(self) -> list[Report]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        found = []
        for number, line in enumerate(text.splitlines(), start=1):
            report = _parsed(line)
            if report is None:
                raise ConfigError(f"{self.path}, line {number}, is no result of format {FORMAT}: restore the file")
            found.append(report)
        return found

    def _loose(self) -> Iterator[tuple[Path, Report]]:
        # A walk goes on where another process, which folds, removes a folder in the middle of it.
        for path in sorted(Path(folder) / REPORT for folder, _, files in os.walk(self.running) if REPORT in files):
            try:
                report = _parsed(path.read_text(encoding="utf-8"))
            except FileNotFoundError:  # another process folds it in
                continue
            if report is not None:  # another program's is left alone
                yield path, report


def identity(report: Report) -> str:
    """Return what tells a report from those of other trials."""
    return json.dumps([report["trial"], report["config"]], sort_keys=True)


def _merged(first: Iterable[Report], second: Iterable[Report]) -> dict[str, Report]:
    """Join reports, sorted; of two of one trial the first counts, as it may have been counted before."""
    merged: dict[str, Report] = {}
    for report in (*first, *second):
        merged.setdefault(identity(report), report)
    return dict(sorted(merged.items()))


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # a running or failed trial's has something in it
        folder.rmdir()


def _line(report: Report) -> str:
    short = {**shorten_all(report), "format": FORMAT}
    return json.dumps(short, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _parsed(text: str) -> Report | None:
    """Return the report that a text is; None if it is none."""
    try:
        report = json.loads(text)
        whole = isinstance(report, dict) and report.get("format") in (FORMAT, OLDER)
        report = {**lengthen_all(report), "format": FORMAT} if whole else {}
    except ValueError:
        return None
    return report if isinstance(report.get("trial"), str) and {"config", "seed"} <= report.keys() else None


def results_of(config: Path) -> ResultsFile:
    """Return the results of a config, or of a study that has the name of one.

    Where a pyproject.toml above the config has a table like this, results lie apart from the configs:

        [tool.dpcomp]
        configs = "experiments/configs"
        results = "results"

    and those of experiments/configs/a/b.toml are results/a/b.jsonl. Else they are b.jsonl beside b.toml.

    Args:
        config: The TOML file's path, or the study's, which is no file.

    Raises:
        ConfigError: The table says something else.
    """
    place = Path(os.path.abspath(config))
    for folder in place.parents:
        table = _table_of(folder / "pyproject.toml")
        if table is not None:
            configs = folder / table["configs"]
            if place.is_relative_to(configs):
                place = folder / table["results"] / place.relative_to(configs)
            break
    return ResultsFile(path=place.with_suffix(".jsonl"))


def _table_of(pyproject: Path) -> dict[str, str] | None:
    try:
        table = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {}).get("dpcomp")
    except (OSError, ValueError):  # no file of this project's
        return None
    if table is None:
        return None
    if table.keys() != {"configs", "results"} or not all(isinstance(value, str) for value in table.values()):
        raise ConfigError(f'{pyproject}: [tool.dpcomp] is {table}: write two folders, configs = "…" and results = "…"')
    return table

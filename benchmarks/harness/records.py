"""Records: the rows of a benchmark as a JSON file, with what made them."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import Row
from benchmarks.harness.turns import Effort
from dpcomp.lab.results.provenance import commit

FORMAT = 1
FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
LIBRARIES = (
    *("dpcomp", "numpy", "scipy", "torch", "opacus", "jax", "dp-accounting"),
    *("constriction", "randomgen", "cryptography", "zstandard", "numcodecs", "flwr"),
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The rows of one benchmark, and where they come from."""

    benchmark: str
    about: str
    date: str
    commit: str | None
    versions: dict[str, str]
    machine: dict[str, Any]
    effort: dict[str, Any]
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, benchmark: str, about: str, rows: Sequence[Row], effort: Effort) -> "Record":
        """Make the record of rows that were measured just now, on this machine.

        Args:
            benchmark: Its name.
            about: What it compares, in a sentence.
            rows: The rows.
            effort: With which they were measured.
        """
        return cls(
            benchmark=benchmark,
            about=about,
            date=today(),
            commit=commit(),
            versions=versions(),
            machine=machine(),
            effort=asdict(effort),
            rows=tuple(rows),
        )

    def write(self, folder: Path = FOLDER) -> Path:
        """Write the record as `benchmark.json` into a folder, and return the path."""
        table = {"format": FORMAT} | {name: value for name, value in vars(self).items() if name != "rows"}
        table["rows"] = [row.to_table() for row in self.rows]
        path = folder / f"{self.benchmark}.json"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read a record.

        Raises:
            ValueError: The file has another format.
        """
        table = json.loads(path.read_text(encoding="utf-8"))
        if table.pop("format") != FORMAT:
            raise ValueError(f"{path.name} is no record of format {FORMAT}: measure it again")
        return cls(**table | {"rows": tuple(map(Row.from_table, table["rows"]))})


def today() -> str:
    """Return the date in UTC, as YYYY-MM-DD."""
    return datetime.now(UTC).date().isoformat()


def machine() -> dict[str, Any]:
    """Return the processor, its cores, and how many threads a measurement has."""
    return {"processor": _processor(), "cores": os.cpu_count(), "threads": 1}


def versions() -> dict[str, str]:
    """Return the versions of Python and of those LIBRARIES that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """Return the model of the processor; where the system does not say, its architecture."""
    listing = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (listing.read_text().splitlines() if listing.exists() else [])
        if line.startswith("model name")
    ]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()

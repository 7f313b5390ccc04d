"""Records as tables in Markdown, where a page of the documentation names them."""

import re
from itertools import groupby
from pathlib import Path

from benchmarks.harness.records import FOLDER, Record
from benchmarks.harness.table import COLUMNS, cells

PLACE = re.compile(r"^<!-- rows: (?P<name>[\w-]+) -->$", flags=re.MULTILINE)


def with_tables(markdown: str, folder: Path = FOLDER) -> str:
    """Put the tables of records in their places: at each line `<!-- rows: NAME -->` that of NAME.json.

    A benchmark without a record is said not to be measured yet.

    Args:
        markdown: The text of a page.
        folder: Where the records are.
    """

    def table(place: re.Match[str]) -> str:
        path = folder / f"{place['name']}.json"
        if not path.exists():
            return f"*Not measured yet: `python -m benchmarks {place['name']}`.*"
        return table_of(Record.read(path))

    return PLACE.sub(table, markdown)


def table_of(record: Record) -> str:
    """Write the rows of a record as a table in Markdown, and what they were measured with."""
    *columns, _, goal, _ = COLUMNS
    lines = [f"| | {' | '.join(columns)} | {goal} |", f"|---|{'---:|---|---:|---:|---|'}"]
    for what, group in groupby(record.rows, lambda row: row.what):
        for number, row in enumerate(group):
            figure, peer, theirs, ratio, spread, goal, met = cells(row)
            first = (what, figure) if number == 0 else ("", "")
            span = f"{ratio} ({spread})" if row.turns > 1 and row.ratio is not None else ratio
            reached = f"{goal}: {met}" if goal else ""
            lines.append(f"| {' | '.join((*first, peer, theirs, span, reached))} |")
    notes = sorted({row.note for row in record.rows if row.note and row.figure is not None})
    lines += ["", *(f"{note[0].upper()}{note[1:]}." for note in notes)]
    versions = ", ".join(
        f"{name} {number}" for name, number in record.versions.items() if name in ("python", "torch", "opacus", "jax")
    )
    made = f"{record.machine['processor']}, one core; {versions}; {record.date}"
    commit = "" if record.commit is None else f", commit {record.commit[:10]}"
    lines += ["", f"*{record.about}. Measured on {made}{commit}: `python -m benchmarks {record.benchmark}`.*"]
    return "\n".join(lines)

"""The numbers that the paper quotes: each is named in its text, and computed from results."""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path

from dpcomp.core.errors import ConfigError
from dpcomp.core.storage import write_whole
from dpcomp.lab.tasks.classification import Classification
from experiments.publish.numbers import numbers

QUOTED = re.compile(r"\\val\{([^}]*)\}")
HEADER = """% Written by `python -m experiments numbers` from results. Do not edit.
\\newcommand{\\val}[1]{\\ifcsname val:#1\\endcsname\\ensuremath{\\csname val:#1\\endcsname}%
  \\else\\errmessage{no number is called #1: run python -m experiments numbers}\\fi}
\\newcommand{\\setval}[2]{\\expandafter\\def\\csname val:#1\\endcsname{#2}}
"""


def write_numbers(configs: Path, paper: Path, tasks: Mapping[str, Callable[[], Classification]]) -> Path:
    """Write `numbers.tex` beside the paper, with each number that `paper.tex` quotes by `\\val{name}`.

    Args:
        configs: The folder of the configs.
        paper: The folder of the paper.
        tasks: Those whose models' sizes may be quoted.

    Raises:
        ConfigError: The text quotes a number that there is not, or a claim has no finished trial.
    """
    quoted = quoted_in(paper)
    known = numbers(configs, tasks)
    for name in quoted:
        if name not in known:
            close = ", ".join(get_close_matches(name, known, n=3, cutoff=0.0))
            raise ConfigError(f"{paper / 'paper.tex'} quotes {name!r}, which no result gives; the nearest are {close}")
    lines = "".join(f"\\setval{{{name}}}{{{known[name]}}}\n" for name in quoted)
    written = paper / "numbers.tex"
    write_whole(written, (HEADER + lines).encode())
    return written


def quoted_in(paper: Path) -> list[str]:
    """Return the names of the numbers that the text quotes, each once."""
    return sorted(set(QUOTED.findall((paper / "paper.tex").read_text(encoding="utf-8"))))

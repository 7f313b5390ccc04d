"""The numbers that the paper quotes: each is named in its text, and computed from tracked reports."""

import re
from difflib import get_close_matches
from pathlib import Path

from dpcomp.core.storage import write_whole
from dpcomp.lab.config.calls import ConfigError
from experiments.publish.numbers import numbers

QUOTED = re.compile(r"\\val\{([^}]*)\}")
HEADER = """% Written by `dpcomp numbers` from the tracked reports. Do not edit.
\\newcommand{\\val}[1]{\\ifcsname val:#1\\endcsname\\ensuremath{\\csname val:#1\\endcsname}%
  \\else\\errmessage{no number is called #1: run dpcomp numbers}\\fi}
\\newcommand{\\setval}[2]{\\expandafter\\def\\csname val:#1\\endcsname{#2}}
"""


def write_numbers(configs: Path, paper: Path) -> Path:
    """Write `numbers.tex` beside the paper, a folder, with each number that `paper.tex` quotes by `\\val{name}`.

    Raises:
        ConfigError: the text quotes a number that there is not, or a claim has no finished trial.
    """
    quoted = quoted_in(paper)
    known = numbers(configs)
    for name in quoted:
        if name not in known:
            close = ", ".join(get_close_matches(name, known, n=3, cutoff=0.0))
            raise ConfigError(f"{paper / 'paper.tex'} quotes {name!r}, which no report gives; the nearest are {close}")
    lines = "".join(f"\\setval{{{name}}}{{{known[name]}}}\n" for name in quoted)
    written = paper / "numbers.tex"
    write_whole(written, (HEADER + lines).encode())
    return written


def quoted_in(paper: Path) -> list[str]:
    """The names of the numbers that the text quotes, each once."""
    return sorted(set(QUOTED.findall((paper / "paper.tex").read_text(encoding="utf-8"))))

"""Run the code cells of a notebook in order and in one namespace, as a script, without a display.

The test extra has no kernel of Jupyter: what a cell shows is not kept.
"""

import json
import sys
from pathlib import Path
from typing import Any


def cells(path: Path) -> list[str]:
    """Return the text of the code cells."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(path: Path, namespace: dict[str, Any]) -> None:
    """Execute the code cells."""
    for number, text in enumerate(cells(path)):
        exec(compile(text, f"{path.name}, code cell {number}", "exec"), namespace)


if __name__ == "__main__":
    space: dict[str, Any] = {}
    run(Path(sys.argv[1]), space)
    space["figure"].savefig("figure.png")
    for line in space["axes"].get_lines():
        print(line.get_label(), *line.get_xdata()[-1:], *line.get_ydata()[-1:], sep="|")

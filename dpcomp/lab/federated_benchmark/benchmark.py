"""The benchmark as one command: train, print the table, draw the figure."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from dpcomp.core.storage import make_folder
from dpcomp.lab.federated_benchmark.measure import measure_all
from dpcomp.lab.federated_benchmark.method import Method
from dpcomp.lab.federated_benchmark.methods import METHODS, REFERENCE
from dpcomp.lab.federated_benchmark.setting import Setting
from dpcomp.lab.federated_benchmark.table import frame_of, printed_table
from dpcomp.lab.figures.federated_benchmark import draw
from dpcomp.lab.results.results_file import ResultsFile
from dpcomp.simulation import Task

RESULTS = "federated_benchmark.jsonl"
WIDTH = 150  # characters of the table


def benchmark(
    folder: Path,
    setting: Setting,
    make_task: Callable[..., Task],
    *,
    results: Path | None = None,
    methods: Sequence[Method] = METHODS,
    others: Iterable[Path] = (),
) -> None:
    """Train methods in one federation at one ε, print a table, and draw a figure.

    Args:
        folder: Where the figure goes, as federated_<task>.png.
        setting: The federation.
        make_task: Makes its task; it is called with `validation=`, the number of examples to hold out.
        results: The JSON-lines file, in which what is trained already is not trained again; None:
            federated_benchmark.jsonl in the folder.
        methods: What is trained.
        others: Files of results of sweeps, whose trials count where they are those of the benchmark.

    Raises:
        ConfigError: The results hold one that was made in another way, or a file is damaged.
        ValueError: Two methods have one name, or a best learning rate lies at an end of those that are allowed.
    """
    console, began = Console(width=WIDTH), time.perf_counter()
    file = ResultsFile(path=folder / RESULTS if results is None else results)
    known = [report for path in others for report in ResultsFile(path=path).read()]
    make_folder(folder)
    make_folder(file.path.parent)
    frame = frame_of(measure_all(file, methods, setting, make_task, others=known), REFERENCE.name)
    console.print(printed_table(frame, setting))
    console.print(
        "* dpcomp's own. In parentheses: the standard deviation over the seeds; ±: the 95 % interval, paired by seed."
    )
    console.print("Bytes are those of one client in one round; ratios are to dense float32.")
    figure = folder / f"federated_{setting.task}.png"
    draw(frame).savefig(figure)
    console.print(f"results: {file.path}; figure: {figure} ({time.perf_counter() - began:.0f} s)")

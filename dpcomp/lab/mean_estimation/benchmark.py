"""The benchmark as one command: measure, print the tables, draw the figure."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dpcomp.core.storage import make_folder
from dpcomp.lab.figures.mean_estimation import draw
from dpcomp.lab.mean_estimation.measure import measure_all
from dpcomp.lab.mean_estimation.method import Method
from dpcomp.lab.mean_estimation.methods import METHODS
from dpcomp.lab.mean_estimation.setting import INPUTS, Inputs, Setting
from dpcomp.lab.mean_estimation.table import errors_of_gaussian, frame_of, printed_table

RESULTS, FIGURE = "mean_estimation.jsonl", "mean_estimation.png"
WIDTH = 170  # characters of the table


def benchmark(
    folder: Path,
    settings: Sequence[Setting],
    *,
    results: Path | None = None,
    methods: Sequence[Method] = METHODS,
    inputs: Sequence[Inputs] = INPUTS,
    rounds: int = 6,
    seed: int = 0,
) -> None:
    """Measure methods, print a table for each kind of vectors, and draw the figure of the first.

    Args:
        folder: Where the figure goes.
        settings: The tasks, of one number of clients, of coordinates, and δ.
        results: The JSON-lines file, in which what is measured already is not measured again; None:
            mean_estimation.jsonl in the folder.
        methods: What is measured.
        inputs: The kinds of vectors.
        rounds: How many estimates of each.
        seed: Of vectors and noise.

    Raises:
        ConfigError: The results hold one that was made in another way.
        ValueError: The settings differ in more than ε.
    """
    if len({(setting.clients, setting.dimensions, setting.delta) for setting in settings}) != 1:
        raise ValueError("settings: a table is of one number of clients, one of coordinates, and one δ: give those")
    console, began = Console(width=WIDTH), time.perf_counter()
    path = folder / RESULTS if results is None else results
    reports = measure_all(path, methods, settings, inputs, rounds=rounds, seed=seed)
    frames = [frame_of(one for one in reports if one["config"]["inputs"] == kind.name) for kind in inputs]
    for kind, frame in zip(inputs, frames, strict=True):
        console.print(printed_table(frame))
        for line in errors_of_gaussian(frame):
            console.print(line)
        console.print(f"{kind.name}: {kind.about}")
    console.print("* biased: right to first order in signal ÷ noise. ±: 95 % interval over the rounds.")
    console.print("PPR is not run: its error is the Gaussian's, and its bytes are the bound of its theorem.")
    make_folder(folder)
    epsilons = sorted({setting.epsilon for setting in settings})
    shown = [epsilon for epsilon in (1.0, 8.0) if epsilon in epsilons] or epsilons[:1]
    draw(frames[0], shown).savefig(folder / FIGURE)
    console.print(f"results: {path}; figure: {folder / FIGURE} ({time.perf_counter() - began:.0f} s)")

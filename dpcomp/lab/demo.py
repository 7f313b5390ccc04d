"""The demo: four pipelines on real images, at one ε, in under two minutes; one table and two figures."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import dpcomp as dp
from dpcomp.core.storage import make_folder
from dpcomp.lab.config.build import simulation_arguments
from dpcomp.lab.figures import scrambling, training
from dpcomp.lab.results.frames import curves, summary
from dpcomp.lab.results.provenance import versions
from dpcomp.lab.results.results_file import ResultsFile
from dpcomp.lab.sweep.run_report import report_of
from dpcomp.lab.tasks import digits
from dpcomp.privacy.guarantee import rounded_up
from dpcomp.simulation import Run, simulate
from dpcomp.simulation.probes import Clipping, TopKOverlap

EPSILON, DELTA = 8.0, 1e-4
CLIENTS, ROUNDS, RATE = 5, 150, 0.25
DENSITY = 0.05
CODED = dp.Uniform(4)


def dense(noise_multiplier: float) -> dp.Pipeline:
    """Return the pipeline that adds noise to every coordinate and sends float32."""
    return dp.Pipeline(
        sampling=dp.Poisson(RATE), mechanism=(dp.Clip(1.0), dp.Gaussian(noise_multiplier)), feedback=False
    )


def noise_first(noise_multiplier: float) -> dp.Pipeline:
    """Return the pipeline that adds noise to every coordinate, and then sends the top k of the noisy values."""
    return dp.Pipeline(
        sampling=dp.Poisson(RATE),
        mechanism=(dp.Clip(1.0), dp.Gaussian(noise_multiplier)),
        codec=dp.Codec(sparsify=dp.TopK(DENSITY), quantize=CODED),
    )


def support_first(noise_multiplier: float) -> dp.Pipeline:
    """Return the pipeline that restricts gradients to a public random support before it clips and adds noise."""
    return dp.Pipeline(
        sampling=dp.Poisson(RATE),
        mechanism=(dp.RandomK(DENSITY), dp.Clip(1.0), dp.Gaussian(noise_multiplier)),
        codec=dp.Codec(quantize=CODED),
    )


def without_noise() -> dp.Pipeline:
    """Return the pipeline without noise, whose accuracy bounds what the private ones can reach."""
    return dp.Pipeline(
        sampling=dp.Poisson(RATE),
        mechanism=dp.unsafe("the demo's ceiling: clipped, but without noise", dp.Clip(1.0)),
        codec=dp.Codec(sparsify=dp.TopK(DENSITY), quantize=CODED),
    )


# The learning rate of each was the best of 0.25, 0.5, 1, 2, 4 on one seed.
METHODS: dict[str, tuple[Callable[[float], dp.Pipeline] | None, float]] = {
    "dense float32": (dense, 2.0),
    f"noise, then top {DENSITY:.0%}": (noise_first, 2.0),
    f"random {DENSITY:.0%}, then noise": (support_first, 4.0),
    f"no noise, top {DENSITY:.0%} (unsafe)": (None, 4.0),
}


def demo(folder: Path, *, results: Path | None = None, rounds: int = ROUNDS, seed: int = 0) -> None:
    """Train the four pipelines, print the table, and write results and figures.

    Args:
        folder: Where the figures go.
        results: The JSON-lines file of the results, which is overwritten; None: demo.jsonl in the folder.
        rounds: The number of rounds of each training.
        seed: The seed of each training.
    """
    torch.set_num_threads(1)
    console, began, made_by = Console(), time.perf_counter(), versions()
    task, reports = digits(), {}
    console.print(
        f"{CLIENTS} clients, {task.population:,} real images of digits, {rounds} rounds; "
        f"every pipeline at ε ≤ {EPSILON:g}, δ = {DELTA:g} an example, the last without any guarantee"
    )
    for number, (method, (make_pipeline, learning_rate)) in enumerate(METHODS.items(), start=1):
        started = time.perf_counter()
        if make_pipeline is None:
            pipeline = without_noise()
        else:
            pipeline = dp.calibrate(make_pipeline, epsilon=EPSILON, delta=DELTA, steps=rounds)
        federation = {"clients": CLIENTS, "rounds": rounds, "learning_rate": learning_rate, "evaluate_every": 5}
        run: Run = simulate(
            task,
            pipeline,
            seed=seed,
            delta=DELTA,
            probes=(TopKOverlap(DENSITY), Clipping()),
            **simulation_arguments(federation),
        )
        console.print(f"[bold]{method}[/bold]: {run.guarantee}")
        settings = {"demo": method, "learning_rate": learning_rate, "rounds": rounds, "clients": CLIENTS}
        reports[method] = [
            report_of(
                run,
                pipeline,
                trial=f"{number}-seed-{seed}",
                config=settings,
                seed=seed,
                settings=1,
                versions=made_by,
                seconds=time.perf_counter() - started,
            )
        ]
    file = ResultsFile(path=folder / "demo.jsonl" if results is None else results)
    file.replace(report for of_method in reports.values() for report in of_method)
    console.print(_table(reports))
    make_folder(folder)
    table = curves(reports)
    training.draw(table).savefig(folder / "training.png")
    scrambling.draw(table, DENSITY).savefig(folder / "scrambling.png")
    console.print(f"results: {file.path}; figures: {folder}/ ({time.perf_counter() - began:.0f} s)")


def _table(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    table = Table(title="one run; overlap: share of the clean top k found in the release, a probe of clean data")
    table.add_column("pipeline")
    for column in ("accuracy", "ε ≤", "payload", "a round", "ratio", "overlap"):
        table.add_column(column, justify="right")
    for row in summary(reports).to_dict("records"):
        facts = reports[row["method"]][0]
        guarantee = facts["guarantee"]
        table.add_row(
            row["method"],
            f"{row['test_accuracy']:.1%}",
            rounded_up(math.inf if guarantee["epsilon"] is None else guarantee["epsilon"]),
            f"{row['payload_bytes']:,.0f} B",
            f"{row['uplink_bytes'] / len(facts['curves']['round']):,.0f} B",
            f"{row['compression_ratio']:.1f}×",
            f"{row['top_k_overlap']:.1%}",
        )
    return table

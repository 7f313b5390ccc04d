"""The demo: four pipelines on real images, at one ε, in under two minutes; one table and two figures."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import dpcomp as dp
from dpcomp.lab.figures import scrambling, training
from dpcomp.lab.results import report
from dpcomp.lab.results.frames import curves, summary
from dpcomp.simulation import Run, simulate
from dpcomp.simulation.probes import Clipping, TopKOverlap
from dpcomp.training.pytorch import PyTorch
from experiments.data.tasks import digits

EPSILON, DELTA = 8.0, 1e-4
CLIENTS, ROUNDS, RATE = 5, 150, 0.25
DENSITY = 0.05
CODED = dp.Uniform(4)


def dense(noise_multiplier: float) -> dp.Pipeline:
    """Noise on every coordinate, sent as float32."""
    return dp.Pipeline(
        sampling=dp.Poisson(RATE), mechanism=(dp.Clip(1.0), dp.Gaussian(noise_multiplier)), feedback=False
    )


def noise_first(noise_multiplier: float) -> dp.Pipeline:
    """Noise on every coordinate, then the codec's own top k."""
    return dp.Pipeline(
        sampling=dp.Poisson(RATE),
        mechanism=(dp.Clip(1.0), dp.Gaussian(noise_multiplier)),
        codec=dp.Codec(sparsify=dp.TopK(DENSITY), quantize=CODED),
    )


def support_first(noise_multiplier: float) -> dp.Pipeline:
    """A public random support, then clip and noise on it alone."""
    return dp.Pipeline(
        sampling=dp.Poisson(RATE),
        mechanism=(dp.RandomK(DENSITY), dp.Clip(1.0), dp.Gaussian(noise_multiplier)),
        codec=dp.Codec(quantize=CODED),
    )


def without_noise() -> dp.Pipeline:
    """The ceiling: what the federation learns when nothing is hidden."""
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


def demo(folder: Path, *, rounds: int = ROUNDS, seed: int = 0) -> Path:
    """Train the four pipelines, print the table, and write reports and figures into `folder`."""
    torch.set_num_threads(1)
    console, began = Console(), time.perf_counter()
    task, reports = digits(), {}
    console.print(
        f"{CLIENTS} clients, {task.population:,} real images of digits, {rounds} rounds; "
        f"every pipeline at ε ≤ {EPSILON:g}, δ = {DELTA:g} an example, the last without any guarantee"
    )
    for method, (make_pipeline, learning_rate) in METHODS.items():
        started = time.perf_counter()
        if make_pipeline is None:
            pipeline = without_noise()
        else:
            pipeline = dp.calibrate(make_pipeline, epsilon=EPSILON, delta=DELTA, steps=rounds)
        run: Run = simulate(
            task,
            pipeline,
            clients=CLIENTS,
            rounds=rounds,
            seed=seed,
            delta=DELTA,
            trainer=PyTorch(learning_rate=learning_rate),
            evaluate_every=5,
            probes=(TopKOverlap(DENSITY), Clipping()),
        )
        console.print(f"[bold]{method}[/bold]: {run.guarantee}")
        settings = {"demo": method, "learning_rate": learning_rate, "rounds": rounds, "clients": CLIENTS}
        reports[method] = [report.report_of(run, pipeline, settings, seed, time.perf_counter() - started)]
        report.write(reports[method][0], folder / f"{len(reports)}-seed-{seed}")
    console.print(_table(reports))
    table = curves(reports)
    training.draw(table).savefig(folder / "training.png")
    scrambling.draw(table, DENSITY).savefig(folder / "scrambling.png")
    console.print(f"reports and figures: {folder}/ ({time.perf_counter() - began:.0f} s)")
    return folder


def _table(reports: dict[str, list[dict]]) -> Table:
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
            "∞" if guarantee["epsilon"] is None else guarantee["text"].split(" at ")[0].removeprefix("ε ≤ "),
            f"{row['payload_bytes']:,.0f} B",
            f"{row['uplink_bytes'] / len(facts['curves']['round']):,.0f} B",
            f"{row['compression_ratio']:.1f}×",
            f"{row['top_k_overlap']:.1%}",
        )
    return table

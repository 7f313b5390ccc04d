"""Measures what `simulate` costs beside training, in time and memory: python benchmarks/simulation_scale.py

A trainer that costs nothing gives each client the same made-up update, so what is left is the federation: codec,
ledger, server, broadcasts and the state of the clients. Every point is a process of its own, with one thread. The
script prints a table, and writes docs/benchmarks/simulation_scale.json and the figure simulation_scale.png beside it.
What it varies:

- clients: 10 to 100,000, of which 10 take part in a round, at 10,000 parameters
- parameters: 10³ to 10⁷, with 10,000 clients, of which 10 take part
- taking part: 10 to 1,000 of 10,000 clients a round, at 10,000 parameters
- with `--jobs`, nothing but the number of processes: a round of real training in one and in two, which take turns

With `--draw` it draws what was measured before.

The columns: processor seconds a round beside training, from the first client of a round to that of the next, the
median of all rounds but the first (wall time stands beside it in the file, and is longer where others use the machine);
and the peak memory of the process above what it had before the simulation.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import dpcomp as dp
from dpcomp.simulation import Fixed, simulate
from dpcomp.wire.update import with_claim

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
ROUNDS = 12
TAKING_PART = 10
CLIENTS = (10, 100, 1_000, 10_000, 100_000)
PARAMETERS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
PARTICIPANTS = (10, 30, 100, 300, 1_000)
MANY, SMALL = 10_000, 10_000  # clients and parameters that do not vary
JOBS_ROUNDS, JOBS_TURNS = 4, 5

PIPELINE = dp.Pipeline(
    mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
    codec=dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4), entropy=dp.RangeCoder()),
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one process simulated, and what it took."""

    clients: int
    parameters: int
    taking_part: int
    seconds: float
    wall_seconds: float
    opening_seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Nothing:
    """A task that has no more than a name and a size."""

    population: int
    name: str = "nothing"


class NoTraining:
    """A trainer whose updates are one made-up vector, charged and called a release; it counts its own time."""

    assumptions = ()

    def __init__(self, parameters: int):
        self.layout, self.initial_model = dp.Layout.of(parameters), np.zeros(parameters, np.float32)
        self.values = np.random.default_rng(0).standard_normal(parameters).astype(np.float32)
        self.began: list[float] = []  # processor time of this process as each round began
        self.spent: list[float] = []  # processor time in this trainer, a round

    def make_trainer(self, federation: Any) -> "NoTraining":
        return self

    def train(self, client: int, start: Any, memory: dp.ClientMemory, ledger: dp.Ledger) -> dp.Update:
        began = time.process_time()
        if memory.address.round == len(self.began):
            self.began.append(began)
            self.spent.append(0.0)
        made = dp.Update(values=self.values, layout=self.layout, address=memory.address)
        self.spent[-1] += time.process_time() - began
        ledger.charge(PIPELINE.cost, memory.address)
        return with_claim(made, PIPELINE.claim)

    def evaluate(self, model: Any) -> dict[str, float]:
        return {}


def measure(clients: int, parameters: int, taking_part: int) -> Point:
    """Simulate in this process."""
    trainer, before = NoTraining(parameters), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    run = simulate(
        Nothing(population=600 * clients),
        PIPELINE,
        clients=clients,
        rounds=ROUNDS,
        trainer=trainer,
        participation=Fixed(taking_part),
        progress=False,
    )
    assert all(row["participants"] == taking_part for row in run.rows)
    rounds = np.diff(trainer.began) - np.array(trainer.spent[:-1])
    return Point(
        clients=clients,
        parameters=parameters,
        taking_part=taking_part,
        seconds=float(np.median(rounds[1:])),
        wall_seconds=median(row["seconds"] for row in run.rows[1:]),
        opening_seconds=trainer.began[0] - began,
        peak_mib=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    )


def measured_alone(clients: int, parameters: int, taking_part: int) -> Point:
    """Simulate in a process of its own."""
    given = [sys.executable, "-W", "ignore", __file__, "--point", str(clients), str(parameters), str(taking_part)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(given, capture_output=True, text=True, check=True, env=environment)
    return Point(**json.loads(ran.stdout))


def measure_jobs() -> dict[str, Any]:
    """Measure a round of 10 clients, 19 steps of about 32 of 600 images each, in one process and in two, by turns."""
    import torch

    from dpcomp.training.pytorch import PyTorch
    from experiments.data.models import fashion_cnn

    torch.set_num_threads(1)

    class Images:
        """Made-up images of the size of Fashion-MNIST: 100 clients × 600."""

        name, population = "images", 60_000

        def train(self) -> tuple[torch.Tensor, torch.Tensor]:
            generator = torch.Generator().manual_seed(0)
            return torch.rand((60_000, 1, 28, 28), generator=generator), torch.arange(60_000) % 10

        def test(self) -> tuple[torch.Tensor, torch.Tensor]:
            inputs, targets = self.train()
            return inputs[:1000], targets[:1000]

        def model(self, seed: int) -> torch.nn.Module:
            return fashion_cnn(seed=seed)

        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(outputs, targets)

    pipeline = dp.Pipeline(
        mechanism=(dp.Clip(0.1), dp.Gaussian(2.0)),
        codec=dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4)),
        sampling=dp.Poisson(32 / 600),
    )
    seconds: dict[int, list[float]] = {1: [], 2: []}
    models: dict[int, bytes] = {}
    for _ in range(JOBS_TURNS):
        for jobs in (1, 2):
            run = simulate(
                Images(),
                pipeline,
                clients=100,
                rounds=JOBS_ROUNDS,
                trainer=PyTorch(local_steps=19, learning_rate=1.0),
                participation=Fixed(TAKING_PART),
                evaluate_every=JOBS_ROUNDS,
                jobs=jobs,
                progress=False,
            )
            # The first round makes the trainers of the workers, and the last evaluates.
            seconds[jobs].append(median(row["seconds"] for row in run.rows[1:-1]))
            models[jobs] = run.model.tobytes()
    assert models[1] == models[2]
    ratios = sorted(one / two for one, two in zip(seconds[1], seconds[2], strict=True))
    return {"seconds": seconds, "ratios": ratios, "ratio": median(ratios), "cores": os.cpu_count()}


def slope(xs: list[float], ys: list[float]) -> float:
    """Return the exponent of the steepest step between neighbours, ys ~ xs**slope."""
    return float(np.max(np.diff(np.log(ys)) / np.diff(np.log(xs))))


def draw(points: dict[str, list[Point]]) -> Any:
    """Draw time and memory against what varies; grey lines are proportional to it."""
    from matplotlib import pyplot as plt

    from dpcomp.lab.figures.style import COLUMN_INCHES, use_style

    use_style()
    names = {
        "clients": "clients\n(10 take part, 10⁴ parameters)",
        "parameters": "parameters\n(10 of 10⁴ clients take part)",
        "taking_part": "clients that take part\n(of 10⁴, with 10⁴ parameters)",
    }
    costs = {"seconds": "processor seconds a round,\nbeside training", "peak_mib": "peak memory above\nthe start (MiB)"}
    figure, axes = plt.subplots(
        len(costs), len(names), figsize=(2.4 * COLUMN_INCHES, 1.4 * COLUMN_INCHES), sharey="row", squeeze=False
    )
    for row, (cost, label) in zip(axes, costs.items(), strict=True):
        for panel, (varied, name) in zip(row, names.items(), strict=True):
            xs = [getattr(point, varied) for point in points[varied]]
            ys = [getattr(point, cost) for point in points[varied]]
            panel.set(xscale="log", yscale="log")
            panel.plot(xs, ys, "o-", markersize=4, linewidth=1.2)
            panel.plot(xs, [ys[-1] * x / xs[-1] for x in xs], "--", color="0.6", linewidth=0.9, label="proportional")
            panel.set(xlabel=name if cost == "peak_mib" else "")
        row[0].set(ylabel=label)
        row[0].set_ylim(*_limits([getattr(point, cost) for each in points.values() for point in each]))
    axes[0][0].legend(loc="upper left")
    return figure


def _limits(values: list[float]) -> tuple[float, float]:
    return 0.5 * min(values), 2.0 * max(values)


def main() -> None:
    """Measure, print and write everything."""
    if sys.argv[1:2] == ["--point"]:
        print(json.dumps(asdict(measure(*map(int, sys.argv[2:])))))
        return
    file = FOLDER / "simulation_scale.json"
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if sys.argv[1:] == ["--jobs"]:
        facts["jobs"] = measure_jobs()
        print("1 process against 2, seconds a round:", *(f"{ratio:.2f} ×" for ratio in facts["jobs"]["ratios"]))
        file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return
    if sys.argv[1:] == ["--draw"]:
        kept = {varied: [Point(**point) for point in each] for varied, each in facts["points"].items()}
        draw(kept).savefig(FOLDER / "simulation_scale.png")
        return
    settings = {
        "clients": [(clients, SMALL, min(clients, TAKING_PART)) for clients in CLIENTS],
        "parameters": [(MANY, parameters, TAKING_PART) for parameters in PARAMETERS],
        "taking_part": [(MANY, SMALL, taking_part) for taking_part in PARTICIPANTS],
    }
    points: dict[str, list[Point]] = {}
    for varied, each in settings.items():
        points[varied] = [measured_alone(*setting) for setting in each]
        print(varied)
        for point in points[varied]:
            print(
                f"  {point.clients:>7,} clients  {point.parameters:>10,} parameters  {point.taking_part:>5,} take part:"
                f"  {point.seconds:8.4f} s a round, {point.peak_mib:8.1f} MiB"
            )
    slopes = {
        varied: {
            cost: slope([getattr(point, varied) for point in each], [getattr(point, cost) for point in each])
            for cost in ("seconds", "peak_mib")
        }
        for varied, each in points.items()
    }
    print("steepest slope between neighbours (1 is proportional):", slopes)
    facts |= {
        "format": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "rounds": ROUNDS,
        "points": {varied: [asdict(point) for point in each] for varied, each in points.items()},
        "steepest_slopes": slopes,
    }
    file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    draw(points).savefig(FOLDER / "simulation_scale.png")


if __name__ == "__main__":
    main()

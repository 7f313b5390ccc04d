"""Measures what a whole round costs on top of stock Opacus: python benchmarks/training_cost.py

A round: charge (a ledger on disk), three private local steps, send, receive, average, broadcast, follow. It is compared
with the same model, batches and steps under stock `GradSampleModule` and `DPOptimizer`, without codec and ledger. The
two take turns, so that a busy machine slows both; what counts is the median of the ratios of neighbours.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import dpcomp as dp
from dpcomp.federated.aggregation import mean_of_released
from dpcomp.training.pytorch.inspection import hooks_on_inputs, private_model
from dpcomp.training.pytorch.private_optimizer import PrivateOptimizer
from dpcomp.training.pytorch.rows.opacus_hooks import Opacus
from dpcomp.training.pytorch.rows.parameters import read, write
from experiments.data.models import fashion_cnn

PAIRS = 15
ROUNDS = 4  # a measurement
LOCAL_STEPS = 3
BATCH = 256
CLIP, NOISE, LEARNING_RATE = 0.1, 2.15, 0.5
LARGEST_RATIO = 1.15

Batches = list[tuple[Tensor, Tensor]]


class DpcompFederation:
    """A client and the server of one pipeline, which run round after round."""

    def __init__(self, batches: Batches, folder: Path):
        self.batches = batches
        self.pipeline = dp.Pipeline(
            mechanism=(dp.Clip(CLIP), dp.Gaussian(NOISE)),
            codec=dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4), entropy=dp.RangeCoder()),
            sampling=dp.Poisson(0.01),
        )
        self.model = private_model(fashion_cnn(seed=0), nn.functional.cross_entropy, *batches[0], engine=Opacus())
        inner = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE)
        self.optimizer = PrivateOptimizer(
            inner, self.model, self.pipeline, secret=dp.SecretSeed(), expected_batch_size=BATCH
        )
        seed = dp.PublicSeed(0)
        self.memory = self.pipeline.init_client(self.optimizer.layout, seed=seed, client=0)
        self.server = self.pipeline.init_server(self.optimizer.layout, seed=seed)
        self.ledger = dp.Ledger.create(folder / "ledger.sqlite")
        self.weights = read(self.model)

    def round(self) -> None:
        permit = self.ledger.charge(self.pipeline.cost, self.memory.address, steps=LOCAL_STEPS)
        write(self.model, self.weights)
        self.optimizer.begin(self.memory, permit)
        draws = self.optimizer.draws
        for inputs, targets in self.batches:
            draws.arrive(draws.draw(range(BATCH), BATCH), (inputs, targets))  # as the loader does
            nn.functional.cross_entropy(self.model(inputs), targets).backward()
            self.optimizer.step()
        payload, self.memory = self.pipeline.send(self.optimizer.update(), self.memory)
        received, self.server = self.pipeline.receive(payload, self.server)
        mean = mean_of_released(self.pipeline.channel, [received], self.server)
        payload, self.server = self.pipeline.broadcast(mean, self.server)
        self.memory = self.pipeline.follow(payload, self.memory)
        assert self.server.step is not None
        self.weights = self.weights + self.server.step.dense()


class StockOpacus:
    """The same training with Opacus alone."""

    def __init__(self, batches: Batches):
        self.batches = batches
        self.model = GradSampleModule(fashion_cnn(seed=0))
        inner = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE)
        self.optimizer = DPOptimizer(
            inner, noise_multiplier=NOISE, max_grad_norm=CLIP, expected_batch_size=BATCH, loss_reduction="mean"
        )

    def round(self) -> None:
        for inputs, targets in self.batches:
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(inputs), targets).backward()
            self.optimizer.step()


def wall_and_cpu_seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Run `ROUNDS` rounds, and give the seconds of the wall clock and of this process's CPU time."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(ROUNDS):
        work()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn((BATCH, 1, 28, 28), generator=generator), torch.randint(0, 10, (BATCH,), generator=generator))
        for _ in range(LOCAL_STEPS)
    ]
    with tempfile.TemporaryDirectory() as folder, hooks_on_inputs():
        federation, stock = DpcompFederation(batches, Path(folder)), StockOpacus(batches)
        federation.round()  # warm
        stock.round()
        pairs = [(wall_and_cpu_seconds(federation.round), wall_and_cpu_seconds(stock.round)) for _ in range(PAIRS)]
        federation.ledger.close()
    title = f"one round: {LOCAL_STEPS} steps of {BATCH} examples, {federation.optimizer.layout.size:,} parameters"
    table = Table(title=title)
    for column in ("", "dpcomp, ms", "stock Opacus, ms", "ratio: median", "lowest", "highest"):
        table.add_column(column, justify="right")
    for number, clock in enumerate(("wall", "processor")):
        ratios = [ours[number] / theirs[number] for ours, theirs in pairs]
        medians = [1000 / ROUNDS * median(pair[side][number] for pair in pairs) for side in (0, 1)]
        cells = [
            *(f"{value:.1f}" for value in medians),
            *(f"{statistic(ratios):.3f}" for statistic in (median, min, max)),
        ]
        table.add_row(clock, *cells)
    table.caption = f"{PAIRS} pairs that take turns, one thread; the limit is a wall ratio of {LARGEST_RATIO}"
    Console().print(table)


if __name__ == "__main__":
    main()

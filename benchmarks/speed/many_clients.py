"""Many clients on one machine: what a simulated round costs beside training, and its memory.

The trainer costs nothing that is counted: what it takes to charge and release is subtracted. Between rounds the codec's
own work is measured: as many messages sent and received as clients took part, one broadcast, and its reading by one
end. A simulation cannot take less.
"""

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

import dpcomp as dp
from benchmarks.harness.processes import Failed, run_alone
from benchmarks.harness.rows import Goal, Row, Spread, compared
from benchmarks.harness.turns import Effort, seconds
from benchmarks.round_trip import RoundTrip
from dpcomp.simulation import Fixed, simulate
from dpcomp.training.trainer import Federation

TOGETHER = 10  # clients a round
CODEC = dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4), entropy=dp.RangeCoder())
MOST_BYTES = 6 * 10**9
MOST_SECONDS = 900.0
WARM_ROUNDS = 1
LIMIT = "the codec's work alone"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A task of one number: it has examples in name only."""

    name: str = "nothing"
    population: int = 10**6


class FreeTrainer:
    """Releases the same values for every client, and measures how long that takes.

    Args:
        parameters: d.
    """

    assumptions = ()

    def __init__(self, parameters: int):
        self.layout = dp.Layout.of(parameters)
        self.initial_model = np.zeros(parameters, dtype=np.float32)
        self.row = (0.1 * np.random.default_rng(0).standard_normal((1, parameters))).astype(np.float32)
        self.trained_seconds = 0.0
        self.rounds: list[tuple[float, float]] = []  # seconds in `train` and of the codec's work, in each round
        self.trip = RoundTrip(CODEC, [self.row[0], self.row[0]], self.layout, feedback=True, second=True)

    def make_trainer(self, federation: Federation) -> "FreeTrainer":
        """Return itself."""
        self.federation = federation
        return self

    def train(
        self, client: int, start: Float32[np.ndarray, "d"], memory: dp.ClientMemory, ledger: dp.Ledger
    ) -> dp.Update:
        """Charge, and release; the time is noted."""
        began = time.perf_counter()
        pipeline = self.federation.pipeline
        permit = ledger.charge(pipeline.cost, memory.address)
        update = pipeline.release([self.row], memory, self.federation.secret, permit)
        self.trained_seconds += time.perf_counter() - began
        return update

    def evaluate(self, model: Float32[np.ndarray, "d"]) -> Mapping[str, float]:
        """Measure the codec's work at the end of a round; the time is noted."""
        work = seconds(self._codec_work)
        self.rounds.append((self.trained_seconds, work))
        self.trained_seconds = 0.0
        return {"codec_seconds": work}

    def _codec_work(self) -> None:
        received = [self.trip.receive(self.trip.send()) for _ in range(TOGETHER)]
        sent, _ = self.trip.pipeline.broadcast(received[0], self.trip.server)
        self.trip.pipeline.follow(sent, self.trip.client)


def many_clients(effort: Effort) -> list[Row]:
    """Measure 10,000 clients with 10⁶ parameters, and 100,000 with 10⁴."""
    large = effort.size((10_000, 10**6), (100, 10**4))
    wide = effort.size((100_000, 10**4), (1000, 10**3))
    return [
        *_rows(*large, effort, most_seconds=0.3, most_gigabytes=3.0),
        *_rows(*wide, effort, most_seconds=None, most_gigabytes=None),
    ]


def _rows(
    clients: int, parameters: int, effort: Effort, *, most_seconds: float | None, most_gigabytes: float | None
) -> list[Row]:
    what = f"{clients:,} clients × {parameters:,} parameters, {TOGETHER} a round"
    settings: dict[str, Any] = {"clients": clients, "parameters": parameters}
    goal = None if most_seconds is None else Goal(of="figure", most=most_seconds)
    memory_goal = None if most_gigabytes is None else Goal(of="figure", most=most_gigabytes)
    try:
        outcome = run_alone(
            _beside_training, clients, parameters, effort.turns, most_seconds=MOST_SECONDS, most_bytes=MOST_BYTES
        )
    except Failed as failure:
        return [Row(what=what, unit="s", goal=goal, settings=settings, note=str(failure))]
    beside, codec = outcome.value
    rows = [compared(f"{what}: a round beside training", "s", beside, LIMIT, codec, goal=goal, settings=settings)]
    if outcome.peak_bytes is not None:
        peak = Spread.of([outcome.peak_bytes / 1e9])
        rows.append(Row(what=f"{what}: memory", unit="GB", figure=peak, goal=memory_goal, settings=settings, turns=1))
    return rows


def _beside_training(clients: int, parameters: int, turns: int) -> tuple[list[float], list[float]]:
    """Simulate, and return of each round what it took beside training, and what the codec's work alone takes."""
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=CODEC)
    trainer = FreeTrainer(parameters)
    with warnings.catch_warnings(action="ignore"):  # that nothing is learned
        run = simulate(
            Made(),
            pipeline,
            clients=clients,
            rounds=turns + WARM_ROUNDS,
            trainer=trainer,
            participation=Fixed(TOGETHER),
            evaluate_every=1,
            progress=False,
        )
    measured = list(zip(run.rows, trainer.rounds, strict=False))[WARM_ROUNDS : WARM_ROUNDS + turns]
    beside = [row["seconds"] - trained - work for row, (trained, work) in measured]
    return beside, [work for _, (_, work) in measured]

"""The private step beside plain SGD and Opacus, by model and batch size: its speed, and its memory.

A speed is in steps a second, so a ratio is the speed of the private step ÷ that of the other. All steps of a model and
batch size take turns.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from benchmarks.harness.processes import Failed, run_alone
from benchmarks.harness.rows import Goal, Row, Spread, compared
from benchmarks.harness.turns import Effort, take_turns
from benchmarks.peers.steps import (
    Batches,
    Step,
    channels_last_sgd_step,
    dpcomp_step,
    opacus_ghost_step,
    opacus_step,
    sgd_step,
)
from experiments.data.models import fashion_cnn, logistic_regression, resnet18_group_norm

SGD, CHANNELS_LAST = "SGD", "SGD, channels-last"
HOOKS, GHOST = "Opacus, hooks", "Opacus, ghost clipping"
NUMBER_OF_BATCHES = 4
MEMORY_STEPS = 3
MOST_SECONDS = 1800.0

MakeStep = Callable[[nn.Module, Batches], Step]
PEERS: Mapping[str, MakeStep] = {
    SGD: sgd_step,
    CHANNELS_LAST: channels_last_sgd_step,
    HOOKS: opacus_step,
    GHOST: opacus_ghost_step,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, the shape of its examples, and what its private step has to reach.

    Args:
        name: Of the model, in tables and figures.
        make: Makes it, with the same weights each time.
        shape: Of an example.
        batch_sizes: That are measured.
        goals: By batch size and peer.
        peers: That are measured beside it.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    goals: Mapping[tuple[int, str], Goal] = field(default_factory=dict)
    peers: tuple[str, ...] = tuple(PEERS)

    def batches(self, batch_size: int) -> Batches:
        """Draw batches of normal inputs and uniform classes."""
        generator = torch.Generator().manual_seed(0)
        return [
            (
                torch.randn((batch_size, *self.shape), generator=generator),
                torch.randint(0, 10, (batch_size,), generator=generator),
            )
            for _ in range(NUMBER_OF_BATCHES)
        ]


CNN = Case(
    name="CNN, 26k",
    make=functools.partial(fashion_cnn, seed=0),
    shape=(1, 28, 28),
    batch_sizes=(16, 64, 256),
    goals={
        **dict.fromkeys(((64, SGD), (256, SGD)), Goal(least=1.0)),
        **dict.fromkeys(((64, CHANNELS_LAST), (256, CHANNELS_LAST)), Goal(least=0.75)),
    },
)
LINEAR = Case(
    name="linear, 2000 × 10",
    make=functools.partial(logistic_regression, inputs=2000, classes=10, seed=0),
    shape=(2000,),
    batch_sizes=(16, 64, 256),
    goals={(64, SGD): Goal(least=0.6), (256, SGD): Goal(least=0.8)},
    peers=(SGD, HOOKS, GHOST),
)
RESNET = Case(
    name="ResNet-18, group norm",
    make=functools.partial(resnet18_group_norm, seed=0),
    shape=(3, 32, 32),
    batch_sizes=(16, 64),
    goals={(64, SGD): Goal(least=0.55)},
)
LARGEST_MEMORY = 2.3  # GB, of the ResNet at a batch of 64
LEAST_WITHOUT_NOISE = 0.95


def cnn(effort: Effort) -> list[Row]:
    """Measure the CNN of Tramèr & Boneh on images of 28 × 28."""
    return list(rows_of(CNN, effort))


def linear(effort: Effort) -> list[Row]:
    """Measure a linear model; beside its goals stands the step without noise, which shows what the noise costs."""
    return [*rows_of(LINEAR, effort), *_without_noise(LINEAR, effort)]


def resnet(effort: Effort) -> list[Row]:
    """Measure a ResNet-18 with group norm on images of 32 × 32."""
    small = Case(name=RESNET.name, make=RESNET.make, shape=(3, 8, 8), batch_sizes=(4,))
    return list(rows_of(effort.size(RESNET, small), effort))


def resnet_memory(effort: Effort) -> list[Row]:
    """Measure the peak of a process that takes a few steps of the ResNet-18, with everything that it has loaded."""
    batch_size = effort.size(64, 2)
    ours, reason = _peak_gigabytes(None, batch_size)
    rows = []
    for peer in RESNET.peers:
        theirs, why = _peak_gigabytes(peer, batch_size)
        rows.append(
            Row(
                what=f"peak memory: {RESNET.name}, B = {batch_size}",
                unit="GB",
                figure=None if ours is None else Spread.of([ours]),
                peer=peer,
                peer_figure=None if theirs is None else Spread.of([theirs]),
                ratio=None if ours is None or theirs is None else Spread.of([ours / theirs]),
                goal=Goal(of="figure", most=LARGEST_MEMORY) if peer == SGD else None,
                settings={"model": RESNET.name, "batch": batch_size},
                turns=1,
                note=reason or why,
            )
        )
    return rows


def rows_of(case: Case, effort: Effort) -> Iterator[Row]:
    """Measure one model: for each batch size, dpcomp and the peers in turns."""
    for batch_size in case.batch_sizes:
        batches = case.batches(batch_size)
        works = {"dpcomp": dpcomp_step(case.make(), batches)}
        works |= {peer: PEERS[peer](case.make(), batches) for peer in case.peers}
        speeds = _speeds(works, effort)
        for peer in case.peers:
            yield compared(
                f"private step: {case.name}, B = {batch_size}",
                "steps/s",
                speeds["dpcomp"],
                peer,
                speeds[peer],
                goal=case.goals.get((batch_size, peer)),
                settings={"model": case.name, "batch": batch_size},
            )


def _without_noise(case: Case, effort: Effort) -> Iterator[Row]:
    batch_size = max(case.batch_sizes)
    batches = case.batches(batch_size)
    works = {"dpcomp": dpcomp_step(case.make(), batches, noise=False), SGD: sgd_step(case.make(), batches)}
    speeds = _speeds(works, effort)
    yield compared(
        f"the same without noise: {case.name}, B = {batch_size}",
        "steps/s",
        speeds["dpcomp"],
        SGD,
        speeds[SGD],
        goal=Goal(least=LEAST_WITHOUT_NOISE),
        settings={"model": case.name, "batch": batch_size, "noise": False},
    )


def _speeds(works: Mapping[str, Step], effort: Effort) -> dict[str, list[float]]:
    return {name: [1 / each for each in times] for name, times in take_turns(works, effort).items()}


def _peak_gigabytes(peer: str | None, batch_size: int) -> tuple[float | None, str]:
    """Return the peak of a process that trains, or None and why there is none."""
    try:
        peak = run_alone(_train_resnet, peer, batch_size, most_seconds=MOST_SECONDS).peak_bytes
    except Failed as failure:
        return None, str(failure)
    return (None, "the system does not say") if peak is None else (peak / 1e9, "")


def _train_resnet(peer: str | None, batch_size: int) -> None:
    step = (PEERS[peer] if peer else dpcomp_step)(RESNET.make(), RESNET.batches(batch_size))
    for _ in range(MEMORY_STEPS):
        step()

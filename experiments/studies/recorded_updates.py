"""Clean updates of real training, recorded for studies: consecutive rounds of one client's clipped sums."""

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

import dpcomp as dp
from dpcomp.lab.tasks.classification import Classification
from dpcomp.training.pytorch import Opacus, PrivateModel
from dpcomp.training.pytorch.inspection import hooks_on_inputs, private_model
from dpcomp.training.pytorch.rows.parameters import layout_of, read, write

CLIENT = 0
WHOLE = 1.0  # the density of sums on all coordinates
WHY = "a recording of clean sums, to which a study adds the noise"


@dataclass(frozen=True, kw_only=True)
class Recording:
    """How rounds are recorded.

    phases: name → the step of plain SGD before which recording begins, ascending.
    batches: examples a round, drawn anew from the whole training set; also the public divisor of the sum. Each number
        gives a recording of its own.
    rounds: how many are recorded behind the `warmup`.
    warmup: rounds before these, in which the change of the optimiser and the start from an empty residual fade: with
        error feedback a coordinate waits about 1 / density rounds.
    densities: of the public supports on which units are clipped as well, as `RandomK` before `Clip` has it.
    learning_rate: of the rounds, SGD steps on the clipped sum ÷ batch from a copy of the phase's model.
    training_...: of the SGD that leads from phase to phase.
    """

    phases: Mapping[str, int]
    batches: tuple[int, ...]
    rounds: int
    densities: tuple[float, ...]
    warmup: int = 0
    clip_norm: float = 0.1
    learning_rate: float = 2.0
    training_batch: int = 64
    training_rate: float = 0.05
    training_momentum: float = 0.9
    micro_batch: int = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounds:
    """One client's sums of clipped per-example gradients, round after round, without noise.

    `whole` are on all coordinates, those of the `warmup` first; `restricted`, by density, on the round's public
    support, and clipped there, of the rounds behind the warmup alone.
    """

    layout: dp.Layout
    seed: dp.PublicSeed
    batch: int
    clip_norm: float
    whole: tuple[dp.Total, ...]
    restricted: Mapping[float, tuple[dp.Total, ...]]
    training_loss: float  # the mean over the examples of the rounds behind the warmup
    warmup: int = 0

    @property
    def vectors(self) -> tuple[Float32[np.ndarray, "d"], ...]:
        """The whole sums as (d,) vectors, one a round."""
        return tuple(total.vector().astype(np.float32) for total in self.whole)

    @property
    def warm(self) -> "Rounds":
        """The rounds behind the warmup, as if there had been none before."""
        return replace(self, whole=self.whole[self.warmup :], warmup=0)


def record(
    task: Classification, recording: Recording, seed: int, wanted: Collection[tuple[str, int]]
) -> Iterator[tuple[str, int, Rounds]]:
    """Yield the wanted (phase, batch) of one training run with their rounds, in order; training stops after the last.

    Weights, batches and public supports are functions of the seed.
    """
    if not wanted:
        return
    inputs, targets = task.train()
    model, rng = task.model(seed), np.random.default_rng([seed, 0])
    optimizer = torch.optim.SGD(model.parameters(), lr=recording.training_rate, momentum=recording.training_momentum)
    step = 0
    for phase, begin in recording.phases.items():
        batches = [batch for batch in recording.batches if (phase, batch) in wanted]
        if not batches:
            continue
        for _ in range(begin - step):
            chosen = torch.from_numpy(rng.choice(len(inputs), recording.training_batch, replace=False))
            optimizer.zero_grad()
            task.loss(model(inputs[chosen]), targets[chosen]).backward()
            optimizer.step()
        step = begin
        for batch in batches:
            examples = np.random.default_rng([seed, 1, begin, batch])
            yield phase, batch, _rounds(task, model, inputs, targets, recording, batch, seed, examples)


def _rounds(
    task: Classification,
    start: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    recording: Recording,
    batch: int,
    seed: int,
    rng: np.random.Generator,
) -> Rounds:
    model = private_model(copy.deepcopy(start), task.loss, inputs[:33], targets[:33], engine=Opacus())
    layout, public, clip = layout_of(model), dp.PublicSeed(seed), dp.Clip(recording.clip_norm)
    before = {density: (dp.RandomK(density),) for density in recording.densities} | {WHOLE: ()}
    pipelines = {density: dp.Pipeline(mechanism=dp.unsafe(WHY, *first, clip)) for density, first in before.items()}
    memories = {density: pipeline.init_client(layout, public, CLIENT) for density, pipeline in pipelines.items()}
    found: dict[float, list[dp.Total]] = {density: [] for density in pipelines}
    losses = []
    for number in range(-recording.warmup, recording.rounds):
        chosen = torch.from_numpy(rng.choice(len(inputs), batch, replace=False))
        sums: dict[float, dp.Total] = {}
        recorded = pipelines if number >= 0 else {WHOLE: pipelines[WHOLE]}
        for part in chosen.split(recording.micro_batch):
            block, loss = _gradients(task, model, inputs[part], targets[part])
            losses += [loss * len(part) / batch] if number >= 0 else []
            for density, pipeline in recorded.items():
                # A round's public support is that of clients which have followed so many broadcasts.
                shared = replace(memories[density].shared, version=max(number, 0))
                total = pipeline.clip(block, replace(memories[density], shared=shared))
                sums[density] = sums[density] + total if density in sums else total
        for density, total in sums.items():
            found[density].append(replace(total, layers=(total.vector().astype(np.float32),)))
        step = recording.learning_rate / batch * found[WHOLE][-1].vector()
        write(model, (read(model) - step).astype(np.float32))
    return Rounds(
        layout=layout,
        seed=public,
        batch=batch,
        clip_norm=recording.clip_norm,
        training_loss=sum(losses) / recording.rounds,
        whole=tuple(found[WHOLE]),
        restricted={density: tuple(found[density]) for density in recording.densities},
        warmup=recording.warmup,
    )


def _gradients(
    task: Classification, model: PrivateModel, inputs: Tensor, targets: Tensor
) -> tuple[tuple[Tensor, ...], float]:
    """Each example's own gradient, an (n, …) array a layer, and the mean loss."""
    with hooks_on_inputs():
        loss = task.loss(model(inputs), targets)
        loss.backward()
    (one,) = model.finished(public=False)
    block = model.engine.rows(one, targets, 0, one.n)
    model.zero_grad()
    return block, float(loss.detach())

"""Whose updates are measured: those of a training run, or drawn ones for a model that takes long to train."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

import dpcomp as dp
from dpcomp.lab.tasks.classification import Classification
from dpcomp.training.pytorch.rows.parameters import layout_of
from experiments.studies.recorded_updates import Recording, Rounds, record

Tasks = Mapping[str, Callable[[], Classification]]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The rounds of a task at the one phase and batch of a recording."""

    task: str
    recording: Recording

    def rounds(self, seed: int, tasks: Tasks) -> Rounds:
        """Return two rounds or more, as a function of the seed; `tasks` are those that may be named."""
        (phase,), (batch,) = self.recording.phases, self.recording.batches
        ((_, _, rounds),) = record(tasks[self.task](), self.recording, seed, [(phase, batch)])
        return rounds


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Two rounds of Laplace values in the layers of a task's model: tails as heavy as those of gradients.

    Each layer has a scale of its own, an octave apart (log-normal), and the two rounds correlate.
    """

    task: str
    correlation: float = 0.9
    clip_norm: float = 0.1  # of the mechanism behind it; values are not clipped
    density: float = 0.01  # of the public support that they are also restricted to

    def rounds(self, seed: int, tasks: Tasks) -> Rounds:
        """Return two rounds or more, as a function of the seed; `tasks` are those that may be named."""
        layout, rng, public = layout_of(tasks[self.task]().model(0)), np.random.default_rng(seed), dp.PublicSeed(seed)
        scales = np.repeat(np.exp2(rng.standard_normal(len(layout.sizes))), layout.sizes).astype(np.float32)

        def drawn() -> Float32[np.ndarray, "d"]:
            return rng.laplace(size=layout.size).astype(np.float32) * scales

        first = drawn()
        second = np.float32(self.correlation) * first + np.float32(np.sqrt(1 - self.correlation**2)) * drawn()
        whole = tuple(dp.Total(layers=(vector,), layout=layout, units=1) for vector in (first, second))
        masks = [
            dp.Seeded(public.key("mask", number), dp.RandomK(self.density).count(layout.size)) for number in range(2)
        ]
        return Rounds(
            layout=layout,
            seed=public,
            batch=1,
            clip_norm=self.clip_norm,
            training_loss=math.nan,
            whole=whole,
            restricted={self.density: tuple(_on(mask, total) for mask, total in zip(masks, whole, strict=True))},
        )


def _on(support: dp.Seeded, total: dp.Total) -> dp.Total:
    """Restrict a total of one row to a public support."""
    (vector,) = total.layers
    return replace(total, layers=(vector[support.indices(total.layout.size)],), support=support)

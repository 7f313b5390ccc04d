"""Probes: measurements of clean data that research needs and a deployment must not have.

A watched pipeline does what the pipeline does, counts units that are not finite, and shows each release to the probes.
The columns that they fill are listed in `Run.probed`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import takewhile
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64

from dpcomp.core.randomness import SecretSeed
from dpcomp.core.support import Everywhere
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import AdaptiveClip, Clip
from dpcomp.privacy.clip import unit_norms
from dpcomp.privacy.ledger.permit import Permit
from dpcomp.privacy.traced.noise import DrawnNoise
from dpcomp.privacy.traced.release import TracedRelease
from dpcomp.privacy.units.factored_units import FactoredUnits
from dpcomp.privacy.units.unit_gradients import Total, Units
from dpcomp.sparsify import TopK
from dpcomp.sparsify.top_k_indices import top_k_indices
from dpcomp.wire.memory import ClientMemory, ServerMemory
from dpcomp.wire.update import Update


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """One release and the clean values behind it.

    Attributes:
        clean: The (d,) clipped sum on all coordinates, without noise.
        norms: The (n,) norms of the units as the clip gets them: behind a mask, for instance.
        clip_norm: The clip norm; infinite where nothing clips.
        released: The release.
    """

    clean: Float32[np.ndarray, "d"]
    norms: Float64[np.ndarray, "n"]
    clip_norm: float
    released: Update


@runtime_checkable
class Probe(Protocol):
    """A measurement of every release of a run."""

    def measure(self, seen: Observation) -> Mapping[str, float]:
        """Return columns and their values; the row of a round holds the mean over its releases."""
        ...


@dataclass(frozen=True)
class TopKOverlap:
    """The share of the clean sum's top k that is also in the released sum's top k: 1 if noise changed no rank.

    Args:
        fraction: k/d, in (0, 1].
    """

    fraction: float

    def measure(self, seen: Observation) -> Mapping[str, float]:
        """Return one column, `top_k_overlap`."""
        k = TopK(self.fraction).count(len(seen.clean))
        clean, released = top_k_indices(seen.clean, k), top_k_indices(seen.released.dense(), k)
        return {"top_k_overlap": len(np.intersect1d(clean, released, assume_unique=True)) / k}


@dataclass(frozen=True)
class Clipping:
    """The share of units that are longer than the clip norm, and the mean norm of all units."""

    def measure(self, seen: Observation) -> Mapping[str, float]:
        """Return two columns, `clipped_fraction` and `mean_unit_norm`; none for a release without units."""
        norms = seen.norms[np.isfinite(seen.norms)]
        if not len(norms):
            return {}
        return {"clipped_fraction": float(np.mean(norms > seen.clip_norm)), "mean_unit_norm": float(norms.mean())}


@dataclass(frozen=True)
class SignalToNoise:
    """The energy of the clean sum by that of the noise in a release; of the mean of n such releases it is n times that.

    The clean sum includes what the draw of the batch adds to the gradient.
    """

    def measure(self, seen: Observation) -> Mapping[str, float]:
        """Return one column, `signal_to_noise`; none for a release on a support, or without noise."""
        if not isinstance(seen.released.support, Everywhere):
            return {}
        noise = np.square(seen.released.dense() - seen.clean, dtype=np.float64).sum()
        return {"signal_to_noise": float(np.square(seen.clean, dtype=np.float64).sum() / noise)} if noise else {}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What probes measured in another process, and what was counted there.

    Args:
        values: The values of each column, a release after another.
        counts: How many units there were, and how many of them were not finite.
    """

    values: Mapping[str, Sequence[float]]
    counts: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Watched(Pipeline):
    """A pipeline that shows its releases to probes, and otherwise is the pipeline that it was made of."""

    probes: tuple[Probe, ...]
    _values: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _columns: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _counts: Counter[str] = field(default_factory=Counter, init=False, repr=False, compare=False)
    # The clean sums and norms of the blocks of the next release.
    _blocks: list[tuple[Total, Any]] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, pipeline: Pipeline, probes: tuple[Probe, ...]) -> "Watched":
        """Return the pipeline with probes.

        Raises:
            ValueError: The updates of clients have noise when they reach the server, so a probe would see no clean sum.
        """
        if probes and pipeline.largest_cohort is not None:
            raise ValueError(
                f"probes={probes} beside {pipeline.codec.quantize}: what the server decodes has noise already, so "
                "there is no clean sum to measure. Leave probes out"
            )
        return cls(**{item.name: getattr(pipeline, item.name) for item in fields(Pipeline)}, probes=probes)

    def clip(self, block: Any, memory: ClientMemory | ServerMemory) -> Total:
        """Clip as the pipeline does, count, and keep the clipped sum on all coordinates for the probes."""
        total = super().clip(block, memory)
        self._counts.update({"units": total.units, "not_finite": total.not_finite})
        if self.unit == "client" and total.not_finite < total.units:  # of examples, zero rows are common
            self._counts["zero"] += not any(np.any(layer) for layer in total.layers)
        if self.probes:
            self._keep(block, memory)
        return total

    def total_of(self, update: Update, memory: ServerMemory) -> Total:
        """Bound an update as the pipeline does, and count it, unless `clip` has."""
        total = super().total_of(update, memory)
        if self.largest_cohort is not None:
            self._counts.update({"units": total.units})
        return total

    def _keep(self, block: Any, memory: ClientMemory | ServerMemory) -> None:
        units = block.rows() if isinstance(block, FactoredUnits) else Units.of(block, memory.layout)
        context = self.channel.context(memory)
        clips = [Clip(norm) for norm in _clip_norms(self, memory)]
        clean = clips[0].apply(units, context) if clips else units.sum()
        before_clip: Units | Total = units
        for stage in takewhile(lambda stage: not isinstance(stage, (Clip, AdaptiveClip)), self._transforms):
            before_clip = stage.apply(before_clip, context)
        layers = before_clip.layers if isinstance(before_clip, Units) else units.layers
        self._blocks.append((clean, unit_norms(layers)))

    def noise(self, total: Total, memory: ClientMemory | ServerMemory, secret: SecretSeed, permit: Permit) -> Update:
        """Release as the pipeline does, and show the release to the probes."""
        released = super().noise(total, memory, secret, permit)
        if not self.probes:
            return released
        clean = sum((part.vector() for part, _ in self._blocks), start=np.zeros(memory.layout.size))
        norms = np.concatenate([np.asarray(norms, dtype=np.float64) for _, norms in self._blocks])
        self._blocks.clear()
        clip_norm = next(_clip_norms(self, memory), float("inf"))
        seen = Observation(clean=clean.astype(np.float32), norms=norms, clip_norm=clip_norm, released=released)
        for probe in self.probes:
            for column, value in probe.measure(seen).items():
                self._values.setdefault(column, []).append(value)
                self._columns.add(column)
        return released

    def released(self, release: TracedRelease, drawn: DrawnNoise) -> Update:
        """Release as the pipeline does, and count what a compiled program clipped."""
        update = super().released(release, drawn)
        self._counts.update({"units": int(release.units), "not_finite": int(release.not_finite)})
        return update

    @property
    def not_finite(self) -> tuple[int, int]:
        """How many units counted as zero, since they are not finite; and how many units there were."""
        return self._counts["not_finite"], self._counts["units"]

    @property
    def zero(self) -> int:
        """How many updates of whole clients were zero in every coordinate, without those that are not finite."""
        return self._counts["zero"]

    @property
    def columns(self) -> set[str]:
        """The columns that the probes have filled so far."""
        return self._columns

    def take_seen(self) -> Seen:
        """Return all that was measured and counted since the last call, and begin again."""
        seen = Seen(values=dict(self._values), counts=dict(self._counts))
        self._values.clear()
        self._counts.clear()
        return seen

    def add(self, seen: Seen) -> None:
        """Add what was measured and counted in another process."""
        for column, values in seen.values.items():
            self._values.setdefault(column, []).extend(values)
            self._columns.add(column)
        self._counts.update(seen.counts)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many units there were, and how many of them counted as zero."""
        return dict(self._counts)

    def go_on(self, counts: Mapping[str, int], columns: Iterable[str]) -> None:
        """Count on from what another one of the same run had counted, and know the columns that it had filled."""
        self._counts.update(counts)
        self._columns.update(columns)

    def take_means(self) -> dict[str, float]:
        """Return the mean of each column since the last call, and begin again."""
        means = {column: float(np.mean(values)) for column, values in self._values.items()}
        self._values.clear()
        return means


def _clip_norms(pipeline: Pipeline, memory: ClientMemory | ServerMemory) -> Iterator[float]:
    """Yield the norms of the pipeline's clips in this round."""
    for stage in pipeline.stages:
        if isinstance(stage, Clip):
            yield stage.norm
        if isinstance(stage, AdaptiveClip) and isinstance(memory, ServerMemory) and memory.clip_norm is not None:
            yield memory.clip_norm

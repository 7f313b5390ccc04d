"""Probes: what research alone may look at, clean data included; passed in, and marked in every report.

A watched pipeline does what the pipeline does, and shows the probes what went in and what came out.
Without probes none of this exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import takewhile
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64

from dpcomp.core.randomness import SecretSeed
from dpcomp.pipeline import Pipeline
from dpcomp.privacy import Clip
from dpcomp.privacy.clip import unit_norms
from dpcomp.privacy.ledger import Permit
from dpcomp.privacy.unit_gradients import Total, Units
from dpcomp.sparsify import TopK
from dpcomp.sparsify.top_k_indices import top_k_indices
from dpcomp.wire.memory import ClientMemory, ServerMemory
from dpcomp.wire.update import Update


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """One release, seen from the private side."""

    clean: Float32[np.ndarray, "d"]  # the clipped sum on all coordinates, without noise
    norms: Float64[np.ndarray, "n"]  # of the units as the clip found them
    clip_norm: float  # infinite where nothing clips
    released: Update


@runtime_checkable
class Probe(Protocol):
    """Measures something of every release."""

    def measure(self, seen: Observation) -> Mapping[str, float]:
        """Column → value; a round's row holds the mean over its releases."""
        ...


@dataclass(frozen=True)
class TopKOverlap:
    """The share of the clean sum's top k that is also in the released sum's top k (recall; 1 is unscrambled)."""

    fraction: float

    def measure(self, seen: Observation) -> Mapping[str, float]:
        """One column, `top_k_overlap`."""
        k = TopK(self.fraction).count(len(seen.clean))
        clean, released = top_k_indices(seen.clean, k), top_k_indices(seen.released.dense(), k)
        return {"top_k_overlap": len(np.intersect1d(clean, released, assume_unique=True)) / k}


@dataclass(frozen=True)
class Clipping:
    """How many units are longer than the clip norm, and how long they are where it stands: behind a mask, say."""

    def measure(self, seen: Observation) -> Mapping[str, float]:
        """Two columns, `clipped_fraction` and `mean_unit_norm`."""
        norms = seen.norms[np.isfinite(seen.norms)]
        if not len(norms):
            return {}
        return {"clipped_fraction": float(np.mean(norms > seen.clip_norm)), "mean_unit_norm": float(norms.mean())}


@dataclass(frozen=True, kw_only=True)
class Watched(Pipeline):
    """A pipeline whose releases are shown to probes."""

    probes: tuple[Probe, ...]
    _seen: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _columns: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _open: list[tuple[Total, Any]] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, pipeline: Pipeline, probes: tuple[Probe, ...]) -> "Watched":
        """The pipeline, watched."""
        return cls(**{item.name: getattr(pipeline, item.name) for item in fields(Pipeline)}, probes=probes)

    def clip(self, block: Any, memory: ClientMemory | ServerMemory) -> Total:
        """The pipeline's clip; beside it, the clipped sum on all coordinates."""
        units, context = Units.of(block, memory.layout), self.channel.context(memory)
        clips = [stage for stage in self.stages if isinstance(stage, Clip)]
        clean = clips[0].apply(units, context) if clips else units.sum()
        found: Units | Total = units
        for stage in takewhile(lambda stage: not isinstance(stage, Clip), self._transforms):
            found = stage.apply(found, context)
        self._open.append((clean, unit_norms(found.layers if isinstance(found, Units) else units.layers)))
        return super().clip(block, memory)

    def noise(self, total: Total, memory: ClientMemory | ServerMemory, secret: SecretSeed, permit: Permit) -> Update:
        """The pipeline's noise, and a look at it."""
        released = super().noise(total, memory, secret, permit)
        clean = sum((part.vector() for part, _ in self._open), start=np.zeros(memory.layout.size))
        norms = np.concatenate([np.asarray(norms, dtype=np.float64) for _, norms in self._open])
        self._open.clear()
        clip_norm = next((stage.norm for stage in self.stages if isinstance(stage, Clip)), float("inf"))
        seen = Observation(clean=clean.astype(np.float32), norms=norms, clip_norm=clip_norm, released=released)
        for probe in self.probes:
            for column, value in probe.measure(seen).items():
                self._seen.setdefault(column, []).append(value)
                self._columns.add(column)
        return released

    @property
    def columns(self) -> set[str]:
        """The columns that the probes filled so far."""
        return self._columns

    def row(self) -> dict[str, float]:
        """The means since the last row, which begins the next one."""
        means = {column: float(np.mean(values)) for column, values in self._seen.items()}
        self._seen.clear()
        return means

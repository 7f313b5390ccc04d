"""Naive mechanisms that are stages of a pipeline: each claims a sensitivity that it does not have."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import dpcomp as dp
from dpcomp.audit import Blocks, ClaimOfReleases
from dpcomp.privacy.claim import Claim
from dpcomp.privacy.units.unit_gradients import Units
from dpcomp.sparsify.top_k_indices import top_k_indices
from experiments.studies.audit.case import Case

NOISE = dp.Gaussian(1.0)
PROVEN = dp.Pipeline(mechanism=(dp.Clip(1.0), NOISE))  # whose claim the naive mechanisms make


@dataclass(frozen=True)
class TopKOfSum:
    """Keep the k largest coordinates of the clean sum: what is noised later is chosen by private data."""

    k: int

    def claim(self, before: Claim, where: str) -> Claim:
        """Return the claim on the input, as if the support were public."""
        return before

    def apply(self, value: dp.Total, context: dp.PublicContext) -> dp.Total:
        """Restrict the sum to its largest coordinates."""
        return value.restrict(dp.Listed(top_k_indices(value.vector().astype(np.float32), self.k)))


@dataclass(frozen=True)
class UnionOfSupports:
    """Clip and sum on the coordinates that are the largest of any unit."""

    def claim(self, before: Claim, where: str) -> Claim:
        """Return the bound of the clip, as if the support were public."""
        return dp.Bounded(l2=1.0)

    def apply(self, value: Units, context: dp.PublicContext) -> dp.Total:
        """Clip and sum all units on the union of their largest coordinates."""
        (rows,) = joined(value).layers
        chosen = dp.Listed(np.unique(np.abs(rows).argmax(axis=1)))
        return dp.Clip(1.0).apply(value.restrict(chosen), context)


@dataclass(frozen=True)
class SumOnly:
    """Sum the units without clipping them."""

    norm: float

    def claim(self, before: Claim, where: str) -> Claim:
        """Return the bound that a clip would prove."""
        return dp.Bounded(l2=self.norm)

    def apply(self, value: Units, context: dp.PublicContext) -> dp.Total:
        """Sum the units."""
        return value.sum()


@dataclass(frozen=True)
class ClipEachLayer:
    """Clip each layer of a unit to the norm that the whole unit is allowed."""

    norm: float

    def claim(self, before: Claim, where: str) -> Claim:
        """Return the bound of a single layer."""
        return dp.Bounded(l2=self.norm)

    def apply(self, value: Units, context: dp.PublicContext) -> dp.Total:
        """Clip and sum layer by layer."""
        (rows,) = joined(value).layers
        parts = np.split(rows, value.layout.edges[1:-1], axis=1)
        total = np.concatenate([dp.Clip(self.norm).sum((part,))[0] for part in parts])
        return dp.Total(layers=(total,), layout=value.layout, units=value.count)


@dataclass(frozen=True)
class ClipOfSum:
    """Clip the sum of the units instead of each unit: one unit moves it from one side of the ball to the other."""

    norm: float

    def claim(self, before: Claim, where: str) -> Claim:
        """Return the bound that a clip of each unit would prove."""
        return dp.Bounded(l2=self.norm)

    def apply(self, value: Units, context: dp.PublicContext) -> dp.Total:
        """Sum, then clip."""
        total = value.sum()
        sums = dp.Clip(self.norm).sum(tuple(layer[None] for layer in total.layers))
        return replace(total, layers=sums)


@dataclass(frozen=True)
class TwoViews:
    """Sum each unit twice, as two augmented views of one example that are clipped one by one."""

    def claim(self, before: Claim, where: str) -> Claim:
        """Return the bound of the clip, as if nothing were repeated."""
        return dp.Bounded(l2=1.0)

    def apply(self, value: Units, context: dp.PublicContext) -> dp.Total:
        """Repeat the rows, clip and sum them."""
        twice = replace(value, layers=tuple(np.repeat(layer, 2, axis=0) for layer in value.layers))
        return dp.Clip(1.0).apply(twice, context)


def joined(value: Units) -> Units:
    """Return the units with a single layer."""
    return replace(value, layers=(np.concatenate([np.asarray(layer) for layer in value.layers], axis=1),))


def stage_cases() -> Iterator[Case]:
    """Return the cases of naive stages."""
    clip = dp.Clip(1.0)
    yield spiked("clip, top-k of the clean sum, noise on it", (clip, TopKOfSum(3), NOISE))
    yield spiked("noise on the union of the units' supports", (UnionOfSupports(), NOISE))
    yield spiked("no clip", (SumOnly(1.0), NOISE))
    layers = {f"layer {place}": (3,) for place in range(8)}
    dense, none = np.full((1, 24), 100.0), np.zeros((1, 1, 24))
    yield case("each layer clipped to C", (ClipEachLayer(1.0), NOISE), dense, none, dp.Layout.of(layers))
    against = np.full((1, 3, 24), -1.0)
    yield case("the sum clipped, not the units", (ClipOfSum(1.0), NOISE), dense, against, None)
    yield spiked("two views of an example, clipped one by one", (TwoViews(), NOISE))


def spiked(name: str, mechanism: tuple[Any, ...]) -> Case:
    """Return the case of a mechanism on the default canary."""
    door = Blocks.with_spikes(dp.Pipeline(mechanism=mechanism), coordinates=24)
    return Case(name=name, kind="naive", door=door, claim=ClaimOfReleases(cost=PROVEN.cost))


def case(
    name: str, mechanism: tuple[Any, ...], canaries: np.ndarray, others: np.ndarray, layout: dp.Layout | None
) -> Case:
    """Return the case of a mechanism on a canary of its own."""
    pipeline = dp.Pipeline(mechanism=mechanism)
    door = Blocks(pipeline=pipeline, canaries=canaries, others=others, layout=layout)
    return Case(name=name, kind="naive", door=door, claim=ClaimOfReleases(cost=PROVEN.cost))

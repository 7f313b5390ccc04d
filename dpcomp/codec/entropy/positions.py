"""A listed support as ranks in smaller worlds: what was sent before, the rest, and each layer of them.

Random positions in a world of n places cost log₂ C(n, k) bits. Where a support resembles the last one of its
sender, two worlds are cheaper than one: the places of the last support, most of which are kept, and all
others, few of which are new. Where layers differ in density, a world a layer is cheaper. The writer says which.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import entr


@dataclass(frozen=True, eq=False)
class World:
    """Ascending ranks among edges[-1] places, cut into layers at the edges."""

    ranks: Int64[np.ndarray, "k"]
    edges: Int64[np.ndarray, "layers_plus_one"]

    @property
    def counts(self) -> Int64[np.ndarray, "layers"]:
        """How many of the ranks lie in each layer."""
        return np.diff(np.searchsorted(self.ranks, self.edges))

    def whole(self) -> "World":
        """The same ranks, without the cuts."""
        return World(self.ranks, self.edges[[0, -1]])

    @property
    def bits(self) -> float:
        """What its layers cost, each under its own density, with a count a layer."""
        counts = self.counts
        side = np.sum(np.searchsorted([1 << 7, 1 << 14, 1 << 21, 1 << 28], counts, side="right") + 1)
        return float(np.sum(support_bits(np.diff(self.edges), counts)) + 8 * side)


def support_bits(places: Int64[np.ndarray, "m"], counts: Int64[np.ndarray, "m"]) -> Float64[np.ndarray, "m"]:
    """n·H₂(k/n): the information of k random positions among n, to within half a logarithm (Cover & Thomas, 11.40)."""
    share = counts / np.maximum(places, 1)
    return places * (entr(share) + entr(1 - share)) / np.log(2)


def split(
    positions: Int64[np.ndarray, "k"],
    previous: Int64[np.ndarray, "k_before"],
    edges: Int64[np.ndarray, "layers_plus_one"],
) -> tuple[World, World]:
    """The positions that were there before, ranked among `previous`, and the new ones, ranked among the others."""
    before = np.searchsorted(previous, positions)
    kept = np.zeros(len(positions), dtype=bool)
    inside = before < len(previous)
    kept[inside] = previous[before[inside]] == positions[inside]
    edges_before = np.searchsorted(previous, edges)
    return World(before[kept], edges_before), World((positions - before)[~kept], edges - edges_before)


def merged(
    kept: Int64[np.ndarray, "k_kept"], new: Int64[np.ndarray, "k_new"], previous: Int64[np.ndarray, "k_before"]
) -> Int64[np.ndarray, "k"]:
    """The positions that were split."""
    skipped = np.searchsorted(previous - np.arange(len(previous)), new, side="right")
    return np.sort(np.concatenate([previous[kept], new + skipped]))


def cheaper(world: World) -> World:
    """With one density for all, or with one a layer."""
    whole = world.whole()
    return world if world.bits < whole.bits else whole

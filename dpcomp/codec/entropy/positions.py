"""Listed supports as ranks among candidates: the places of the last support, all other places, and layers of them.

k random positions among n places take log₂ C(n, k) bits. If a support resembles the last one of its sender, two sets
of candidates take fewer: the places of the last support, most of which are kept, and all others, few of which are new.
If layers differ in density, a density for each layer takes fewer. The writer chooses, and sends its choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import entr

LOG_2 = float(np.log(2))
INTEGER_ENDS = np.array([1 << 7, 1 << 14, 1 << 21, 1 << 28])  # where an integer before the stream takes one byte more


@dataclass(frozen=True, eq=False)
class CandidateSet:
    """A set of candidate places, cut into layers, and the ranks of the chosen ones among them.

    Attributes:
        ranks: (k,) ascending numbers below edges[-1], the number of candidates.
        edges: The rank where each layer begins, and the number of candidates at the end.
    """

    ranks: Int64[np.ndarray, "k"]
    edges: Int64[np.ndarray, "layers_plus_one"]

    @cached_property
    def starts(self) -> Int64[np.ndarray, "layers_plus_one"]:
        """Where the ranks of each layer begin, and how many there are."""
        return self.ranks.searchsorted(self.edges)

    @property
    def counts(self) -> Int64[np.ndarray, "layers"]:
        """The number of chosen places in each layer."""
        return self.starts[1:] - self.starts[:-1]

    def as_one_layer(self) -> "CandidateSet":
        """Return the same candidates and ranks without the borders between layers."""
        return CandidateSet(self.ranks, self.edges[[0, -1]])


def cheaper_layerings(sets: Sequence[CandidateSet]) -> tuple[list[CandidateSet], list[float]]:
    """Return sets of candidates with their layers, or as one layer, whichever takes fewer bits; and the bits of each.

    They are those of the ranks, each layer under its own density, with the bytes of a count a layer: an estimate.

    Args:
        sets: Sets with the same number of layers.
    """
    whole = len(sets[0].edges) - 1  # the column of all candidates together, after the layers
    borders = np.concatenate([each for candidates in sets for each in (candidates.edges, candidates.starts)])
    borders = borders.reshape(len(sets), 2, whole + 1)
    numbers = np.empty_like(borders)
    np.subtract(borders[:, :, 1:], borders[:, :, :-1], out=numbers[:, :, :whole])
    np.subtract(borders[:, :, -1], borders[:, :, 0], out=numbers[:, :, whole])
    places, counts = numbers[:, 0], numbers[:, 1]
    bits = support_bits(places, counts)
    bits += 8 * (INTEGER_ENDS.searchsorted(counts, side="right") + 1)
    layered, together = np.add.reduce(bits[:, :whole], axis=1).tolist(), bits[:, whole].tolist()
    cheaper = [
        candidates if by_layer < by_all else candidates.as_one_layer()
        for candidates, by_layer, by_all in zip(sets, layered, together, strict=True)
    ]
    return cheaper, [*map(min, layered, together)]


def support_bits(places: Int64[np.ndarray, "*m"], counts: Int64[np.ndarray, "*m"]) -> Float64[np.ndarray, "*m"]:
    """Return n·H₂(k/n): the bits of k random positions among n, to within half a logarithm (Cover & Thomas, 11.40)."""
    share = counts / np.maximum(places, 1)
    bits = entr(share)
    np.subtract(1, share, out=share)
    bits += entr(share, out=share)
    bits *= places
    bits /= LOG_2
    return bits


def split_by_previous(
    positions: Int64[np.ndarray, "k"],
    previous: Int64[np.ndarray, "k_before"],
    edges: Int64[np.ndarray, "layers_plus_one"],
) -> tuple[CandidateSet, CandidateSet]:
    """Split a support into the positions that the previous support had, and the new ones.

    Args:
        positions: The (k,) positions, ascending.
        previous: The positions of the previous support, ascending.
        edges: The position where each layer begins, and d at the end.

    Returns:
        The kept positions, as ranks among the previous ones; and the new ones, as ranks among all others.
    """
    before = previous.searchsorted(positions)
    kept = np.zeros(len(positions), dtype=bool)
    if len(previous):  # what lies beyond the last one is larger than it
        np.equal(previous.take(before, mode="clip"), positions, out=kept)
    edges_before = previous.searchsorted(edges)
    new = CandidateSet((positions - before)[~kept], edges - edges_before)
    return CandidateSet(before[kept], edges_before), new


def merge_with_previous(
    kept: Int64[np.ndarray, "k_kept"], new: Int64[np.ndarray, "k_new"], previous: Int64[np.ndarray, "k_before"]
) -> Int64[np.ndarray, "k"]:
    """Return the positions of a support from its two sets of ranks: the inverse of `split_by_previous`.

    Args:
        kept: The ranks of the kept positions among the previous ones.
        new: The ranks of the new positions among all others.
        previous: The positions of the previous support, ascending.

    Returns:
        The (k,) positions, ascending.
    """
    skipped = (previous - np.arange(len(previous))).searchsorted(new, side="right")
    return np.sort(np.concatenate([previous[kept], new + skipped]))

"""The measures of `ranking`, a layer at a time: tidy frames with a row a layer, and a last one for the whole vector."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd
from jaxtyping import Float, Int64

from analysis.measures.supports import (
    SupportChange,
    captured_energy,
    jaccard,
    kendall_tau,
    overlap,
    rank_biased_overlap,
    spearman_rho,
    top_k_energy,
)
from dpcomp.core.layout import Layout
from dpcomp.core.support import Listed, Support
from dpcomp.sparsify import TopK

ALL = "all"  # the layer that the last row names


def ranking_table(
    reference: Float[np.ndarray, "d"],
    other: Float[np.ndarray, "d"],
    layout: Layout,
    fraction: float,
    p: float | None = None,
) -> pd.DataFrame:
    """How alike two vectors rank their coordinates, each layer by itself, as `TopK(fraction, per="layer")` does.

    k is `TopK(fraction)`'s of the row's coordinates; p (None: 1 − 1/k) that of the rank-biased overlap.
    `captured_energy` is the share of the reference's energy that the other's top k selects, `attainable_energy` what
    the reference's own top k holds: no k coordinates capture more.

    Raises:
        ValueError: the vectors are not of the layout, or not finite.
    """
    _refuse_other_sizes(layout, reference, other)
    rows = []
    for layer, start, stop in _rows(layout):
        ours, theirs, d = reference[start:stop], other[start:stop], stop - start
        k = TopK(fraction).count(d)
        reads_on = 1 - 1 / max(1, k) if p is None else p
        rows.append(
            {
                "layer": layer,
                "coordinates": d,
                "k": k,
                "overlap": overlap(ours, theirs, k),
                "jaccard": jaccard(ours, theirs, k),
                "kendall_tau": kendall_tau(ours, theirs),
                "spearman_rho": spearman_rho(ours, theirs),
                "rank_biased_overlap": rank_biased_overlap(ours, theirs, reads_on),
                "captured_energy": top_k_energy(ours, theirs, k),
                "attainable_energy": top_k_energy(ours, ours, k),
            }
        )
    return pd.DataFrame(rows)


def support_table(clean: Float[np.ndarray, "d"], previous: Support, current: Support, layout: Layout) -> pd.DataFrame:
    """What of the clean vector a support holds that was really sent, and how it differs from the one before.

    The layers' rows are about the parts of the two supports that lie in them, so that counts add up to the last row's.

    Raises:
        ValueError: the vector, or a support, is not of the layout; or the vector is not finite.
    """
    _refuse_other_sizes(layout, clean)
    before, after = previous.indices(layout.size), current.indices(layout.size)
    rows = []
    for layer, start, stop in _rows(layout):
        here = _between(after, start, stop)
        change = SupportChange.between(_between(before, start, stop), here, stop - start)
        rows.append(
            {
                "layer": layer,
                "coordinates": stop - start,
                "kept": change.kept,
                "new": change.new,
                "dropped": change.dropped,
                "overlap": change.overlap,
                "turnover": change.turnover,
                "captured_energy": captured_energy(clean[start:stop], Listed(here)),
            }
        )
    return pd.DataFrame(rows)


def _rows(layout: Layout) -> Iterator[tuple[str, int, int]]:
    """The name of each row, and where its coordinates begin and end."""
    for (name, _), (start, stop) in zip(layout.shapes, pairwise(layout.edges.tolist()), strict=True):
        yield name, start, stop
    yield ALL, 0, layout.size


def _between(positions: Int64[np.ndarray, "k"], start: int, stop: int) -> Int64[np.ndarray, "k_here"]:
    """Those of ascending positions that lie in [start, stop), counted from start."""
    return positions[slice(*np.searchsorted(positions, [start, stop]))] - start


def _refuse_other_sizes(layout: Layout, *vectors: Float[np.ndarray, "_"]) -> None:
    shapes = [vector.shape for vector in vectors if vector.shape != (layout.size,)]
    if shapes:
        raise ValueError(f"a vector of shape {shapes[0]} is not of the layout, which has {layout.size} coordinates")

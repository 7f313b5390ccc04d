"""Rankings and supports compared layer by layer: tables with a row for each layer, and a last one for all layers."""

import numpy as np
import pandas as pd
from jaxtyping import Float, Int64

from analysis.measures.ranking import (
    jaccard,
    kendall_tau,
    overlap,
    rank_biased_overlap,
    spearman_rho,
    top_k_energy,
)
from analysis.measures.supports import captured_energy, support_overlap
from dpcomp.core.layout import Layout, split_by_counts
from dpcomp.core.support import Listed, Support
from dpcomp.sparsify import TopK

ALL_LAYERS = "all"  # the name of the last row


def ranking_table(
    reference: Float[np.ndarray, "d"],
    other: Float[np.ndarray, "d"],
    layout: Layout,
    fraction: float,
    p: float | None = None,
) -> pd.DataFrame:
    """Compare the rankings of two vectors by magnitude, in each layer alone and in the whole vector.

    The measures are those of `analysis.measures.ranking`. In a row of n coordinates they compare the top
    k = `TopK(fraction).count(n)`: the rows of layers as `TopK(fraction, per="layer")` selects, the last as
    `TopK(fraction)` does.

    Args:
        reference: The vector to compare with, as a rule the clean one (d,).
        other: The vector that is compared, as a rule the noisy one (d,).
        layout: The layers of both vectors.
        fraction: The share of coordinates in the top k, in (0, 1].
        p: The parameter of the rank-biased overlap, in [0, 1); None for 1 − 1/k, whose mean depth is k.

    Returns:
        A row for each layer, then the row "all", with the columns layer, coordinates (n), k, overlap, jaccard,
        kendall_tau, spearman_rho, rank_biased_overlap, captured_energy (the share of the reference's energy on the
        other's top k) and attainable_energy (the same on the reference's own top k, the most that k coordinates hold).
        NaN where a measure is not defined, as in an empty layer.

    Raises:
        ValueError: A vector has not the layout's size, a value is not finite, or the fraction or p is out of range.

    Examples:
        >>> table = ranking_table(
        ...     np.array([3.0, 1.0, 0.0, 4.0]), np.array([1.0, 2.0, 0.0, 5.0]), Layout.of({"a": (2,), "b": (2,)}), 0.5
        ... )
        >>> print(table[["layer", "k", "overlap", "kendall_tau", "captured_energy"]].round(2).to_string(index=False))
        layer  k  overlap  kendall_tau  captured_energy
            a  1      0.0        -1.00             0.10
            b  1      1.0         1.00             1.00
          all  2      0.5         0.67             0.65
    """
    _require_size(layout, reference)
    _require_size(layout, other)
    top_k, rows = TopK(fraction), []
    for name, x, y in zip(_row_names(layout), _parts(layout, reference), _parts(layout, other), strict=True):
        k = top_k.count(len(x))
        rows.append(
            {
                "layer": name,
                "coordinates": len(x),
                "k": k,
                "overlap": overlap(x, y, k),
                "jaccard": jaccard(x, y, k),
                "kendall_tau": kendall_tau(x, y),
                "spearman_rho": spearman_rho(x, y),
                "rank_biased_overlap": rank_biased_overlap(x, y, 1 - 1 / max(1, k) if p is None else p),
                "captured_energy": top_k_energy(x, y, k),
                "attainable_energy": top_k_energy(x, x, k),
            }
        )
    return pd.DataFrame(rows)


def support_table(clean: Float[np.ndarray, "d"], previous: Support, current: Support, layout: Layout) -> pd.DataFrame:
    """Count how a support changed since the one before in each layer, and compute the energy that it captures.

    A layer's row is about the coordinates of both supports in that layer, so counts add up to those of the last row.

    Args:
        clean: The vector whose energy counts (d,).
        previous: The support of the message before.
        current: The support of this message.
        layout: The layers of the vector.

    Returns:
        A row for each layer, then the row "all", with the columns layer, coordinates, kept (in both supports), new (in
        the current only), dropped (in the previous only), overlap (kept as a share of the current support), turnover
        (new as a share of it) and captured_energy. NaN for a share of an empty support, or of the energy of zeros.

    Raises:
        ValueError: The vector has not the layout's size, a support has a coordinate outside of it, or a value is not
            finite.
    """
    _require_size(layout, clean)
    rows = []
    for name, values, before, after in zip(
        _row_names(layout),
        _parts(layout, clean),
        _support_parts(layout, previous),
        _support_parts(layout, current),
        strict=True,
    ):
        kept = len(np.intersect1d(before, after, assume_unique=True))
        new = len(after) - kept
        rows.append(
            {
                "layer": name,
                "coordinates": len(values),
                "kept": kept,
                "new": new,
                "dropped": len(before) - kept,
                "overlap": support_overlap(before, after),
                "turnover": new / len(after) if len(after) else np.nan,
                "captured_energy": captured_energy(values, Listed(after)),
            }
        )
    return pd.DataFrame(rows)


def _row_names(layout: Layout) -> list[str]:
    return [*(name for name, _ in layout.shapes), ALL_LAYERS]


def _parts(layout: Layout, vector: Float[np.ndarray, "d"]) -> list[Float[np.ndarray, "_"]]:
    """Cut a vector into its layers, and add the whole vector."""
    return [*layout.split(vector), vector]


def _support_parts(layout: Layout, support: Support) -> list[Int64[np.ndarray, "_"]]:
    """Cut a support into its positions in each layer, from the layer's start, and add its positions in the vector."""
    positions = support.indices(layout.size)
    layers = split_by_counts(positions, layout.counts(support))
    return [*(layer - start for layer, start in zip(layers, layout.edges[:-1], strict=True)), positions]


def _require_size(layout: Layout, vector: Float[np.ndarray, "_"]) -> None:
    if vector.shape != (layout.size,):
        raise ValueError(
            f"a vector of shape {vector.shape} for a layout of {layout.size} coordinates; give a flat vector of the "
            "layout's size"
        )

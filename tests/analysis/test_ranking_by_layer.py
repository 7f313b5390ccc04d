"""A table has each layer's measures, computed from that layer alone, and the whole vector's in its last row."""

import numpy as np
import pytest

import dpcomp as dp
from analysis.measures import ranking
from analysis.measures.ranking_by_layer import ALL_LAYERS, ranking_table, support_table
from dpcomp.core.public_context import PublicContext

LAYOUT = dp.Layout.of({"a": (3, 20), "empty": (0,), "b": (40,), "one": ()})


def vectors():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal(LAYOUT.size).astype(np.float32)
    reference[70:80] = 0
    return reference, (reference + rng.standard_normal(LAYOUT.size)).astype(np.float32)


def test_rows_are_the_measures_of_each_layer_alone_and_of_the_vector():
    reference, other = vectors()
    table = ranking_table(reference, other, LAYOUT, 0.1).set_index("layer")
    assert table.index.tolist() == ["a", "empty", "b", "one", ALL_LAYERS]
    assert table["k"].tolist() == [6, 0, 4, 1, 10]
    assert table["coordinates"].tolist() == [60, 0, 40, 1, 101]
    for layer, part in (("a", slice(0, 60)), ("b", slice(60, 100)), (ALL_LAYERS, slice(None))):
        row, x, y = table.loc[layer], reference[part], other[part]
        k = int(row["k"])
        assert row["overlap"] == ranking.overlap(x, y, k)
        assert row["jaccard"] == ranking.jaccard(x, y, k)
        assert row["kendall_tau"] == ranking.kendall_tau(x, y)
        assert row["spearman_rho"] == ranking.spearman_rho(x, y)
        assert row["rank_biased_overlap"] == ranking.rank_biased_overlap(x, y, 1 - 1 / k)
        assert row["captured_energy"] == ranking.top_k_energy(x, y, k) < row["attainable_energy"]
        assert row["attainable_energy"] == ranking.top_k_energy(x, x, k)
    measures = ["overlap", "jaccard", "kendall_tau", "rank_biased_overlap", "captured_energy"]
    assert table.loc["empty", measures].isna().all()
    assert table.loc["one", "overlap"] == table.loc["one", "captured_energy"] == 1


def test_p_of_the_rank_biased_overlap_may_be_given():
    reference, other = vectors()
    table = ranking_table(reference, other, LAYOUT, 0.1, p=0.5).set_index("layer")
    assert table.loc[ALL_LAYERS, "rank_biased_overlap"] == ranking.rank_biased_overlap(reference, other, 0.5)


def test_a_supports_layers_add_up_to_the_whole():
    clean, other = vectors()
    previous, current = (
        dp.TopK(0.2).select(vector, dp.Everywhere(), PublicContext(layout=LAYOUT)) for vector in (clean, other)
    )
    table = support_table(clean, previous, current, LAYOUT).set_index("layer")
    layers, whole = table.drop(index=ALL_LAYERS), table.loc[ALL_LAYERS]
    for count in ("coordinates", "kept", "new", "dropped"):
        assert layers[count].sum() == whole[count]
    energies = [float(np.sum(np.square(part, dtype=np.float64))) for part in LAYOUT.split(clean)]
    captured = layers["captured_energy"].fillna(0) @ energies / sum(energies)
    assert whole["captured_energy"] == pytest.approx(captured, rel=1e-12)
    before, after = set(previous.positions.tolist()), set(current.positions.tolist())
    assert whole["turnover"] == len(after - before) / len(after)
    assert whole["overlap"] == len(after & before) / len(after)
    assert layers.loc["empty", ["overlap", "turnover", "captured_energy"]].isna().all()
    inside = set(range(60, 100))
    assert table.loc["b", ["kept", "new", "dropped"]].tolist() == [
        len(inside & before & after),
        len(inside & after - before),
        len(inside & before - after),
    ]


def test_vectors_of_another_layout_are_refused():
    with pytest.raises(ValueError, match="for a layout of 101 coordinates"):
        ranking_table(np.ones(5), np.ones(5), LAYOUT, 0.1)
    with pytest.raises(ValueError, match="for a layout of 101 coordinates"):
        support_table(np.ones(5), dp.Everywhere(), dp.Everywhere(), LAYOUT)


def test_a_support_with_a_coordinate_outside_of_the_layout_is_refused():
    outside = dp.Listed(np.array([LAYOUT.size]))
    for supports in ((outside, dp.Everywhere()), (dp.Everywhere(), outside)):
        with pytest.raises(ValueError, match="lies outside a vector of 101"):
            support_table(np.ones(LAYOUT.size), *supports, LAYOUT)

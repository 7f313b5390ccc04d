"""Partitions give away every example once."""

from types import SimpleNamespace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.simulation import IID, ByClientId, Dirichlet

LABELS = np.repeat(np.arange(5), 40)


@pytest.mark.parametrize("partition", [IID(), Dirichlet(0.1), Dirichlet(1.0), Dirichlet(100.0)], ids=repr)
@pytest.mark.parametrize("clients", [1, 3, 10, 250])
def test_parts_are_disjoint_and_complete(partition, clients):
    parts = partition.part(LABELS, clients, dp.PublicSeed(3))
    assert len(parts) == clients
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("partition", [IID(), Dirichlet(0.5)], ids=repr)
def test_the_seed_alone_decides(partition):
    one, two, other = (partition.part(LABELS, 4, dp.PublicSeed(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_iid_parts_differ_by_at_most_one_and_are_not_sorted_by_class():
    parts = IID().part(LABELS, 7, dp.PublicSeed(0))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert all(len(np.unique(LABELS[part])) == 5 for part in parts)


def skew(concentration: float) -> float:
    """The mean, over clients, of the share of their commonest class."""
    parts = Dirichlet(concentration).part(LABELS, 8, dp.PublicSeed(0))
    return float(np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts if len(part)]))


def test_dirichlet_skews_the_more_the_smaller_the_concentration():
    assert skew(0.05) > 0.6 > skew(1.0) > 0.3 > skew(1000.0)


def test_dirichlet_wants_a_concentration_above_zero():
    for concentration in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="concentration"):
            Dirichlet(concentration)


@pytest.mark.parametrize("column", [["a", None, "b"], [1, "a", 2], [None] * 3, [1.5, 2, "a"]], ids=str)
def test_ids_of_several_types_are_refused_with_the_row(column):
    column = np.array(column, dtype=object)
    with pytest.raises(ValueError, match=r"client_ids\(\) of the task 'mine' has .* in row [012]"):
        ByClientId().column(SimpleNamespace(name="mine", client_ids=lambda: column))
    texts = np.array(["b", "a", "b"], dtype=object)
    assert ByClientId().column(SimpleNamespace(name="mine", client_ids=lambda: texts)) is texts

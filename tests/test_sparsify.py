"""The exact top k, and the two ways to choose coordinates."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import dpcomp as dp
from dpcomp.sparsify import top_k_indices
from dpcomp.units import Units

FRAMEWORKS = pytest.mark.parametrize(
    "array", [np.asarray, torch.from_numpy, jnp.asarray], ids=["numpy", "torch", "jax"]
)
TIED = np.array([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-45, -1e-45, 1e-40, -1e-40, 3e38, 1.0000001], dtype=np.float32)


def by_sorting(x, k):
    """The positions of the k largest magnitudes, by a full sort that keeps the order of equal ones."""
    return np.sort(np.argsort(-np.abs(x), kind="stable")[:k])


def test_the_top_k_is_that_of_a_full_stable_sort():
    rng = np.random.default_rng(0)
    for _ in range(2500):
        d = int(rng.integers(1, 30))
        palette = rng.choice(TIED, size=rng.integers(1, 6))
        x = rng.choice(palette, size=d)
        k = int(rng.integers(0, d + 1))
        np.testing.assert_array_equal(top_k_indices(x, k), by_sorting(x, k), err_msg=f"{x!r}, k = {k}")


@settings(max_examples=100, deadline=None)
@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_every_k_is_that_of_a_full_stable_sort(x):
    for k in range(len(x) + 1):
        np.testing.assert_array_equal(top_k_indices(x, k), by_sorting(x, k))


@pytest.mark.parametrize("k", [1, 777, 10_000, 99_999, 100_000])
def test_the_top_k_of_a_long_vector_is_that_of_a_full_sort(k):
    x = np.random.default_rng(1).standard_normal(100_000).astype(np.float32).round(2)
    np.testing.assert_array_equal(top_k_indices(x, k), by_sorting(x, k))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1e-45])
def test_of_a_constant_vector_the_first_k_win(value):
    for k in (0, 1, 3, 7):
        assert top_k_indices(np.full(7, value, np.float32), k).tolist() == list(range(k))


@pytest.mark.parametrize("k", [-1, 4])
def test_k_lies_between_none_and_all(k):
    with pytest.raises(ValueError, match=r"0 ≤ k ≤ d"):
        top_k_indices(np.zeros(3, np.float32), k)


def test_only_a_row_is_ranked():
    with pytest.raises(ValueError, match="wants a row"):
        top_k_indices(np.zeros((2, 3), np.float32), 1)


@pytest.mark.parametrize("k", [0, 1, 5])
def test_values_that_cannot_be_ranked_are_counted(k):
    x = np.array([1.0, np.nan, 2.0, -np.inf, np.inf], np.float32)
    with pytest.raises(ValueError, match="3 of 5 values are NaN or infinite"):
        top_k_indices(x, k)


@FRAMEWORKS
def test_the_mask_of_each_unit_keeps_its_own_top_k(array):
    rng = np.random.default_rng(2)
    for tied in (False, True):
        layers = [rng.choice(TIED, (40, m)) if tied else rng.standard_normal((40, m)) for m in (7, 1, 12)]
        layers = [layer.astype(np.float32) for layer in layers]
        whole = np.concatenate(layers, axis=1)
        layout = dp.Layout.of({"a": (7,), "b": (1,), "c": (12,)})
        units = Units.of(tuple(array(layer) for layer in layers), layout)
        for fraction in (0.01, 0.3, 1.0):
            masked = dp.TopK(fraction).apply(units, mask_key=0)
            rows = np.concatenate([np.asarray(layer) for layer in masked.layers], axis=1)
            for row, unit in zip(rows, whole, strict=True):
                expected, kept = np.zeros_like(unit), by_sorting(unit, max(1, round(20 * fraction)))
                expected[kept] = unit[kept]
                np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("stage", [dp.TopK, dp.RandomK])
@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(stage, fraction):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        stage(fraction)


@pytest.mark.parametrize("stage", [dp.TopK, dp.RandomK])
@pytest.mark.parametrize(("fraction", "d", "k"), [(0.1, 100, 10), (1e-9, 100, 1), (1, 100, 100), (0.126, 100, 13)])
def test_the_share_kept_is_the_nearest_whole_number_and_at_least_one(stage, fraction, d, k):
    x = np.random.default_rng(0).standard_normal(d).astype(np.float32)
    assert len(stage(fraction).select(x, dp.Everywhere(), mask_key=5).indices(d)) == k


def test_the_codecs_top_k_stays_among_its_candidates():
    x = np.random.default_rng(3).standard_normal(100).astype(np.float32)
    candidates = dp.Seeded(seed=11, k=30)
    chosen = dp.TopK(0.1).select(x, candidates, mask_key=0).indices(100)
    among = candidates.indices(100)
    np.testing.assert_array_equal(chosen, among[by_sorting(x[among], 10)])
    assert dp.TopK(0.3).select(x, candidates, mask_key=0) == candidates


def test_random_k_looks_at_the_key_and_never_at_the_values():
    rng = np.random.default_rng(4)
    chosen = {dp.RandomK(0.1).select(rng.standard_normal(50), dp.Everywhere(), mask_key=1) for _ in range(5)}
    assert len(chosen) == 1
    assert dp.RandomK(0.1).select(rng.standard_normal(50), dp.Everywhere(), mask_key=2) not in chosen


@FRAMEWORKS
def test_random_k_cuts_each_layer_down_to_the_rounds_support(array):
    block = np.arange(24, dtype=np.float32).reshape(2, 12)
    units = Units.of((array(block[:, :5]), array(block[:, 5:])), dp.Layout.of({"a": (5,), "b": (7,)}))
    restricted = dp.RandomK(0.5).apply(units, mask_key=3)
    rows = np.concatenate([np.asarray(layer) for layer in restricted.layers], axis=1)
    np.testing.assert_array_equal(rows, block[:, restricted.support.indices(12)])
    assert rows.shape == (2, 6)

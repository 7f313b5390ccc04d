"""Clipping: whatever a unit holds, it moves the sum by no more than the clip norm."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import dpcomp as dp

FRAMEWORKS = pytest.mark.parametrize(
    "array", [np.asarray, torch.from_numpy, jnp.asarray], ids=["numpy", "torch", "jax"]
)
HALVES = pytest.mark.parametrize(
    "array",
    [
        lambda x: x.astype(np.float16),
        lambda x: torch.from_numpy(x).half(),
        lambda x: torch.from_numpy(x).bfloat16(),
        lambda x: jnp.asarray(x, jnp.float16),
        lambda x: jnp.asarray(x, jnp.bfloat16),
    ],
    ids=["numpy", "torch", "torch bfloat16", "jax", "jax bfloat16"],
)
SLACK = 1 + 1e-5  # the contract: a clipped unit's norm, and what one unit moves, is at most C(1 + 10⁻⁵)
ANY_FLOAT = st.floats(width=32)


def clipped_sum(norm, *layers):
    """The clipped sum of a block of layers, as one float64 vector."""
    pipeline = dp.Pipeline(mechanism=(dp.Clip(norm), dp.Gaussian(1.0)))
    layout = {str(number): tuple(layer.shape[1:]) for number, layer in enumerate(layers)}
    total = pipeline.clip(tuple(layers), pipeline.init_client(layout, seed=dp.PublicSeed(0), client=0))
    return np.concatenate([np.asarray(layer, dtype=np.float64) for layer in total.layers])


def length(vector):
    return np.linalg.norm(np.asarray(vector, dtype=np.float64))


@FRAMEWORKS
@settings(max_examples=60, deadline=None)
@given(x=arrays(np.float32, (1, 6), elements=ANY_FLOAT), norm=st.floats(1e-3, 1e3))
def test_no_unit_is_longer_than_the_clip_norm(array, x, norm):
    assert length(clipped_sum(norm, array(x))) <= norm * SLACK


@FRAMEWORKS
@pytest.mark.parametrize("kind", ["constant", "normal"])
def test_a_unit_of_ten_million_coordinates_is_clipped_to_the_norm(array, kind):
    d = 10**7
    x = np.full(d, 0.1, np.float32) if kind == "constant" else np.random.default_rng(0).standard_normal(d, np.float32)
    found = length(clipped_sum(0.7, array(x[None, :])))
    assert found <= 0.7 * SLACK
    assert found >= 0.7 / SLACK


@FRAMEWORKS
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6, 1e17])
def test_a_long_unit_keeps_its_direction_and_gets_the_clip_norm(array, scale):
    x = np.array([[3.0, -4.0, 0.0, 12.0]], np.float32) * np.float32(scale)
    np.testing.assert_allclose(clipped_sum(1e-3, array(x)), [3e-3 / 13, -4e-3 / 13, 0, 12e-3 / 13], rtol=1e-3)


@FRAMEWORKS
def test_a_unit_within_the_norm_is_left_as_it_is(array):
    x = np.array([[0.3, -0.4, 1e-30, 0.0]], np.float32)
    np.testing.assert_array_equal(clipped_sum(0.51, array(x)), x[0])


@FRAMEWORKS
def test_the_norm_of_a_unit_runs_over_all_its_layers(array):
    layers = [np.full((2, 3, 4), 1, np.float32), np.full((2,), 2, np.float32), np.full((2, 5), -3, np.float32)]
    whole = np.concatenate([layer.reshape(2, -1) for layer in layers], axis=1)
    np.testing.assert_allclose(clipped_sum(1.0, *map(array, layers)), clipped_sum(1.0, whole), rtol=1e-6)
    assert length(clipped_sum(1.0, *map(array, layers))) == pytest.approx(2.0, rel=1e-5)


@FRAMEWORKS
@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf, 3e38, 1e18])
def test_a_wild_unit_moves_the_sum_by_no_more_than_the_norm(array, wild):
    rng = np.random.default_rng(0)
    calm = [rng.standard_normal((4, m)).astype(np.float32) for m in (600, 5)]
    for place in (0, 1):
        layers = [layer.copy() for layer in calm]
        layers[place][2, 1] = wild
        with_it = clipped_sum(0.5, *map(array, layers))
        without = clipped_sum(0.5, *(np.delete(layer, 2, axis=0) for layer in layers))
        assert np.isfinite(with_it).all()
        assert length(with_it - without) <= 0.5 * SLACK
        if not np.isfinite(wild):
            np.testing.assert_allclose(with_it, without, atol=1e-6)


@HALVES
def test_half_precision_is_clipped_in_single(array):
    x = np.full((3, 1000), 30_000, np.float32)  # its norm, and its square, are no float16
    total = clipped_sum(0.25, array(x))
    assert length(total) <= 3 * 0.25 * SLACK
    assert length(total) == pytest.approx(0.75, rel=1e-4)


@FRAMEWORKS
def test_an_empty_batch_sums_to_zero(array):
    blocks = [(np.zeros((0, 7), np.float32),), (np.zeros((0, 2, 3), np.float32), np.zeros((0,), np.float32))]
    for layers in blocks:
        np.testing.assert_array_equal(clipped_sum(1.0, *map(array, layers)), np.zeros(7))


@FRAMEWORKS
def test_an_empty_layer_changes_nothing(array):
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    empty = np.zeros((3, 0), np.float32)
    np.testing.assert_allclose(clipped_sum(1.0, array(x), array(empty)), clipped_sum(1.0, x), rtol=1e-5, atol=1e-6)


@FRAMEWORKS
@settings(max_examples=40, deadline=None)
@given(
    x=arrays(np.float32, (6, 5), elements=st.one_of(ANY_FLOAT, st.floats(-2, 2, width=32))),
    gone=st.integers(0, 5),
    norm=st.floats(1e-3, 1e3),
)
def test_one_unit_more_or_less_moves_the_sum_by_no_more_than_the_norm(array, x, gone, norm):
    with_it = clipped_sum(norm, array(x))
    without = clipped_sum(norm, array(np.delete(x, gone, axis=0)))
    assert length(with_it - without) <= norm * SLACK


@FRAMEWORKS
def test_one_unit_among_many_moves_the_sum_by_no_more_than_the_norm(array):
    units = 128 if array is jnp.asarray else 20_000  # JAX has no float64 to add up in; micro-batches do it
    rows, moved = np.random.default_rng(0).standard_normal((10, 16)).astype(np.float32), []
    for row in rows:
        x = np.tile(row, (units, 1))
        moved.append(length(clipped_sum(1.0, array(x)) - clipped_sum(1.0, array(x[1:]))))
    assert max(moved) <= SLACK


@pytest.mark.parametrize("norm", [0, -1.0, float("nan"), float("inf")])
def test_a_clip_norm_is_finite_and_above_zero(norm):
    with pytest.raises(ValueError, match="clip norm"):
        dp.Clip(norm)


@FRAMEWORKS
def test_whole_numbers_are_no_gradients(array):
    with pytest.raises(ValueError, match="gradients are floats"):
        clipped_sum(1.0, array(np.ones((2, 3), np.int32)))


@pytest.mark.parametrize("shapes", [[(2, 4)], [(2, 3), (2, 2)], [(2, 2), (3, 3)], [(2, 5), (2, 0)], [(5,)]])
def test_a_block_that_does_not_fit_the_layout_is_refused(shapes):
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
    memory = pipeline.init_client({"a": (2,), "b": (3,)}, seed=dp.PublicSeed(0), client=0)
    with pytest.raises(ValueError, match="does not fit the layout"):
        pipeline.clip(tuple(np.zeros(shape, np.float32) for shape in shapes), memory)


@pytest.mark.parametrize("norm", ["1", None, True, [1.0]])
def test_a_norm_that_is_no_number_is_refused_by_name(norm):
    with pytest.raises(TypeError, match=r"Clip\(norm\) is .*: give a finite number above 0"):
        dp.Clip(norm)

"""Clipping: whatever a unit holds, it moves the sum by no more than the clip norm."""

import gc
import sys
from collections import Counter
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import dpcomp as dp
from dpcomp.privacy.units.clipped_sum import device_sum, host_sum

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


@pytest.mark.parametrize("norm", [0, -1.0, 9e-21, 1.1e20, float("nan"), float("inf")])
def test_a_clip_norm_lies_in_the_range_that_float32_releases_can_hold(norm):
    with pytest.raises(ValueError, match="clip norm"):
        dp.Clip(norm)


# The contract by brute force: one unit at a time is taken out, and what that moves is measured in float64.

D = 300
FORMS = {  # a block of float32 in NumPy → what a framework gives to the clip
    "numpy": np.asarray,
    "numpy float64": np.float64,
    "numpy float16": lambda x: x.astype(np.float16),
    "numpy strided": lambda x: np.repeat(np.asfortranarray(x), 2, axis=1)[:, ::2],
    "torch": torch.from_numpy,
    "torch float64": lambda x: torch.from_numpy(x).double(),
    "torch float16": lambda x: torch.from_numpy(x).half(),
    "torch bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    "torch strided": lambda x: torch.from_numpy(np.ascontiguousarray(x.T)).T,
    "torch with gradients": lambda x: torch.from_numpy(x).requires_grad_(),
    "jax": jnp.asarray,
    "jax bfloat16": lambda x: jnp.asarray(x, jnp.bfloat16),
}


def wild_blocks(n, rng):
    """Blocks of n units, by what they hold."""
    normal = rng.standard_normal((n, D))
    heavy = rng.standard_cauchy((n, D)) ** 3
    blocks = {
        "constant": np.full((n, D), 0.1),
        "normal": normal,
        "heavy-tailed": heavy,
        "tiny": 1e-30 * normal,
        "huge": 1e30 * normal,
        "denormal": 1e-42 * normal,
        "of all sizes": normal * 10.0 ** rng.integers(-40, 38, (n, 1)),
        "alternating": np.tile(rng.standard_normal((2, D)), ((n + 1) // 2, 1))[:n],
        "with rows that are not finite": normal.copy(),
        "zero": np.zeros((n, D)),
    }
    broken = blocks["with rows that are not finite"]
    broken[:: max(1, n // 8), 3] = np.nan
    broken[1 :: max(2, n // 8), 7] = np.inf
    with np.errstate(over="ignore"):
        return {name: block.astype(np.float32) for name, block in blocks.items()}


def setting_of(norm):
    pipeline = dp.Pipeline(mechanism=(dp.Clip(norm), dp.Gaussian(1.0)))
    layout = {"first": (260,), "second": (40,)}
    return pipeline, pipeline.init_client(layout, seed=dp.PublicSeed(0), client=0)


def whole_sum(pipeline, memory, form, x):
    layers = [form(np.ascontiguousarray(part)) for part in (x[:, :260], x[:, 260:])]
    return pipeline.clip(tuple(layers), memory).vector()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", [1e-20, 1e-6, 1.0, 1e20])
def test_a_unit_moves_the_sum_by_no_more_than_the_contract(form, norm):
    pipeline, memory = setting_of(norm)
    rng = np.random.default_rng(0)
    for n in (1, 2, 33):
        for name, block in wild_blocks(n, rng).items():
            with np.errstate(over="ignore"):
                whole = whole_sum(pipeline, memory, FORMS[form], block)
                assert np.isfinite(whole).all()
                for gone in {0, n // 2, n - 1}:
                    moved = whole - whole_sum(pipeline, memory, FORMS[form], np.delete(block, gone, axis=0))
                    assert length(moved) <= norm * SLACK, (n, name, gone)


@pytest.mark.parametrize("form", ["numpy", "torch", "torch strided", "jax"])
def test_a_unit_of_thousands_moves_the_sum_by_no_more_than_the_contract(form):
    pipeline, memory = setting_of(1.0)
    rng = np.random.default_rng(1)
    for name, block in wild_blocks(4096, rng).items():
        whole = whole_sum(pipeline, memory, FORMS[form], block)
        for gone in (0, int(rng.integers(4096))):
            moved = whole - whole_sum(pipeline, memory, FORMS[form], np.delete(block, gone, axis=0))
            assert length(moved) <= SLACK, (name, gone)


@pytest.mark.parametrize(
    ("x64", "norm", "sizes"),
    [
        pytest.param(False, 1e-20, (40,), marks=pytest.mark.slow),
        (False, 1.0, (40,)),
        pytest.param(False, 1.0, (1, 400), marks=pytest.mark.slow),
        pytest.param(False, 1e20, (40,), marks=pytest.mark.slow),
        (True, 3.7, (40,)),
    ],
)
def test_a_unit_moves_a_traced_sum_by_no_more_than_the_contract(x64, norm, sizes):
    with jax.enable_x64(x64):
        pipeline, memory = setting_of(norm)

        @jax.jit
        def traced(first, second, pipeline=pipeline, memory=memory):
            total = pipeline.clip((first, second), memory)
            return total.layers, total.remainders

        def sum_of(x, traced=traced):
            parts = traced(*(jnp.asarray(part) for part in (x[:, :260], x[:, 260:])))
            return sum(np.concatenate([np.asarray(layer, np.float64) for layer in part]) for part in parts if part)

        rng = np.random.default_rng(0)
        for n in sizes:
            for name, block in wild_blocks(n, rng).items():
                whole = sum_of(block)
                exact = whole_sum(pipeline, memory, np.asarray, block)
                if norm == 1.0 and name not in ("huge", "of all sizes", "heavy-tailed"):  # norms beyond float32
                    np.testing.assert_allclose(whole, exact, rtol=1e-5, atol=1e-5)
                moved = whole - sum_of(np.delete(block, n // 2, axis=0))
                assert length(moved) <= norm * SLACK, (norm, n, name)


@FRAMEWORKS
@pytest.mark.parametrize("cut", [1000, 100_000])
def test_one_unit_among_a_hundred_thousand_moves_the_sum_by_no_more_than_the_contract(array, cut):
    many_units(array, units=100_000, cut=cut)


@pytest.mark.slow
@FRAMEWORKS
@pytest.mark.parametrize("cut", [64, 999, 10**6])
def test_one_unit_among_a_million_moves_the_sum_by_no_more_than_the_contract(array, cut):
    many_units(array, units=10**6, cut=cut)


@pytest.mark.slow
def test_a_million_micro_batches_of_one_unit_are_added_without_loss():
    rows = np.random.default_rng(0).standard_normal((2, 4))
    rows *= np.array([[1.0], [0.1]]) / np.linalg.norm(rows, axis=1, keepdims=True)
    parts = [dp.Total(layers=(row,), layout=dp.Layout.of(4), units=1) for row in rows]
    total = reduce(lambda total, number: total + parts[number % 2], range(2, 10**6), parts[0] + parts[1])
    assert total.units == 10**6
    assert length(total.vector() - 500_000 * rows.sum(axis=0)) <= 1e-9


def many_units(array, units, cut):
    """Two kinds of units take turns, so that a unit less shifts every group in which roundings differ."""
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
    memory = pipeline.init_client(4, seed=dp.PublicSeed(0), client=0)
    pair = np.array([[5.0, 5.1, -0.3, 0.7], [0.1, 0.2, 0.3, 0.00037]], np.float32)
    x = array(np.tile(pair, (units // 2, 1)))

    def summed(x):
        parts = (pipeline.clip(x[start : start + cut], memory) for start in range(0, len(x), cut))
        return reduce(lambda total, part: total + part, parts).vector()

    whole = summed(x)
    rows = pair.astype(np.float64)
    clipped = rows * np.minimum(1, 1 / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6))
    assert length(whole - units / 2 * clipped.sum(axis=0)) <= 4e-6 * units  # norms are off by 4·10⁻⁶ of themselves
    assert length(whole - summed(x[1:])) <= SLACK
    assert length(whole - summed(x[1:])) >= 1 / SLACK


def test_a_traced_sum_of_a_hundred_thousand_units_is_that_of_the_host():
    x = np.tile(np.array([[5.0, 5.1, -0.3, 0.7], [0.1, 0.2, 0.3, 0.00037]], np.float32), (50_000, 1))
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
    memory = pipeline.init_client(4, seed=dp.PublicSeed(0), client=0)

    @jax.jit
    def traced(block):
        total = pipeline.clip(block, memory)
        return total.layers[0], total.remainders[0]

    sums = [sum(np.asarray(part, np.float64) for part in traced(jnp.asarray(block))) for block in (x, x[1:])]
    assert length(sums[0] - sums[1]) <= SLACK
    assert length(sums[0] - pipeline.clip(x, memory).vector()) <= 5e-6 * len(x)


@FRAMEWORKS
@pytest.mark.parametrize("norm", [1e-20, 1e-10, 1e-3, 1e3, 1e10, 1e20])
def test_the_clip_scales_with_its_norm(array, norm):
    x = np.random.default_rng(0).standard_normal((5, 40))
    expected = clipped_sum(1.0, x) * norm
    np.testing.assert_allclose(clipped_sum(norm, array((x * norm).astype(np.float32))), expected, rtol=2e-5)


@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_the_clip_calls_the_same_operations_whatever_the_units_hold(array):
    rng = np.random.default_rng(0)
    calm = rng.standard_normal((70, 9000)).astype(np.float32)
    wild = {"one row": calm.copy(), "all rows": np.full_like(calm, np.nan), "infinite": np.full_like(calm, np.inf)}
    wild["one row"][3, 5] = np.nan
    expected = calls_of(array(calm))
    assert expected.total() > 20
    for name, block in wild.items():
        assert calls_of(array(block)) == expected, name


def calls_of(block):
    """Count the lines and calls that a clip runs, by where they stand."""
    clip, counted = dp.Clip(1.0), Counter()

    def trace(frame, event, argument):
        counted[frame.f_code.co_filename, frame.f_lineno, event] += 1
        return trace

    clip.sum((block,))  # what is imported and cached at first
    before = sys.gettrace()
    gc.disable()  # others' callbacks would be counted
    sys.settrace(trace)
    try:
        clip.sum((block,))
    finally:
        sys.settrace(before)
        gc.enable()
    return counted


def test_a_device_runs_the_same_operations_whatever_the_units_hold():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorded(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.calls = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls.append((str(function), [tuple(x.shape) for x in args if isinstance(x, torch.Tensor)]))
            return function(*args, **(kwargs or {}))

    calm = torch.randn((9, 50), generator=torch.Generator().manual_seed(0))
    wild = calm.clone()
    wild[4, 7] = float("nan")
    factors = torch.ones(9, dtype=torch.float64)
    factors[4] = 0.0
    recorded = []
    for block in (calm, wild):
        with Recorded() as mode:
            (total,) = device_sum(factors, [block])
        recorded.append(mode.calls)
        np.testing.assert_allclose(total, np.delete(calm.double().numpy(), 4, axis=0).sum(axis=0), rtol=1e-12)
    assert recorded[0] == recorded[1]


def test_sums_on_a_device_and_on_the_host_agree():
    x = np.random.default_rng(0).standard_normal((3000, 7)).astype(np.float32)
    factors = np.random.default_rng(1).random(3000)
    (host,) = host_sum(factors, np.ones(3000, dtype=bool), [x])
    (device,) = device_sum(torch.from_numpy(factors), [torch.from_numpy(x)])
    np.testing.assert_allclose(device.numpy(), host, rtol=1e-12)
    np.testing.assert_allclose(host, factors @ x.astype(np.float64), rtol=1e-12)


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
    with pytest.raises(TypeError, match=r"Clip\(norm\) is .*: give a number from 1e-20 to 1e\+20"):
        dp.Clip(norm)

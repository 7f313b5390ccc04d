"""The exact top k, and the two ways to choose coordinates."""

import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import dpcomp as dp
from dpcomp.core.public_context import PublicContext
from dpcomp.privacy.units.unit_gradients import Units
from dpcomp.sparsify import top_k_indices as selection
from dpcomp.sparsify.top_k_indices import top_k_indices, top_k_of_sum

FRAMEWORKS = pytest.mark.parametrize(
    "array", [np.asarray, torch.from_numpy, jnp.asarray], ids=["numpy", "torch", "jax"]
)
TIED = np.array([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-45, -1e-45, 1e-40, -1e-40, 3e38, 1.0000001], dtype=np.float32)


def by_sorting(x, k):
    """The positions of the k largest magnitudes, by a full sort that keeps the order of equal ones."""
    return np.sort(np.argsort(-np.abs(x), kind="stable")[:k])


@pytest.mark.parametrize("sampled", [0.0, 1.0, 100.0], ids=["low", "like others", "high"])
@pytest.mark.parametrize("k", [1, 40, 260, 3000])
def test_whatever_a_sample_of_a_short_vector_says_the_top_k_is_that_of_a_full_sort(sampled, k):
    x = np.random.default_rng(k).standard_normal(26_010).astype(np.float32)
    x[selection.sample_positions(len(x), len(x) // selection.SAMPLED_OF_FEW)] *= np.float32(sampled)
    for vector in (x, np.round(x), np.where(np.abs(x) < 2, 0, x)):  # without and with many equal magnitudes
        np.testing.assert_array_equal(top_k_indices(vector, k), by_sorting(vector, k))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_top_k_is_that_of_a_full_stable_sort(dtype):
    rng = np.random.default_rng(0)
    for _ in range(300):
        d = int(rng.integers(1, 30))
        palette = np.minimum(rng.choice(TIED, size=rng.integers(1, 6)), 6e4).astype(dtype)
        x = rng.choice(palette, size=d)
        k = int(rng.integers(0, d + 1))
        np.testing.assert_array_equal(top_k_indices(x, k), by_sorting(x, k), err_msg=f"{x!r}, k = {k}")


@settings(max_examples=100, deadline=None)
@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_every_k_is_that_of_a_full_stable_sort(x):
    for k in range(len(x) + 1):
        np.testing.assert_array_equal(top_k_indices(x, k), by_sorting(x, k))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=6),
    st.integers(500, 3000),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_guess_or_not_the_top_k_is_that_of_a_full_stable_sort(palette, d, density, seed):
    rng = np.random.default_rng(seed)
    smooth = rng.standard_normal(d) * (rng.random(d) < density)
    for x in (rng.choice(np.float32(palette), d), smooth.astype(np.float32)):
        k = int(d ** rng.random())
        np.testing.assert_array_equal(top_k_indices(x, k), by_sorting(x, k))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selection, "PARTITIONED", 0)  # as a longer vector
            np.testing.assert_array_equal(top_k_indices(x, k), by_sorting(x, k))


@pytest.mark.parametrize("k", [1, 777, 10_000, 99_999, 100_000])
def test_the_top_k_of_a_long_vector_is_that_of_a_full_sort(k):
    x = np.random.default_rng(1).standard_normal(100_000).astype(np.float32).round(2)
    np.testing.assert_array_equal(top_k_indices(x, k), by_sorting(x, k))


LONG, FEW = 540_000, 5400  # coordinates: three blocks, and a sample of 8,437


def smooth():
    return np.random.default_rng(5).standard_normal(LONG).astype(np.float32)


def seen_by_the_sample(seen, other):
    """A vector with values on the sampled positions that say nothing about the others."""
    x = np.array(other, dtype=np.float32)
    x[selection.sample_positions(LONG, LONG // 64)] = seen
    return x


GUESSED = {
    "smooth": smooth(),
    "sorted": np.sort(smooth()),
    "sorted down": np.sort(smooth())[::-1],
    "one scale a layer": smooth() * np.repeat(np.float32([1e-30, 1.0, 1e30]), LONG // 3),
    "a period that an even stride would see one phase of": np.where(np.arange(LONG) % 64 == 0, 1, 0.01) * smooth(),
    "nearly all zeros": smooth() * (np.arange(LONG) % 601 == 0),
    "all zeros": np.zeros(LONG, np.float32),
    "constant": np.full(LONG, -1e-40, np.float32),
    "four levels": smooth().round(),
    "two levels": np.where(np.arange(LONG) % 101 == 0, 2, np.sign(smooth())),
}
MISLED = {
    "too few above": seen_by_the_sample(1e6 + np.arange(LONG // 64), smooth()),
    "too few above or equal": seen_by_the_sample(1e6, smooth()),
    "too many above": seen_by_the_sample(0, smooth()),
    "all above": seen_by_the_sample(0, np.ones(LONG)),
}


@pytest.fixture
def partitions(monkeypatch):
    """The k of every vector that had to be partitioned whole."""
    seen, partition = [], selection._by_partition
    monkeypatch.setattr(selection, "_by_partition", lambda bits, k: seen.append(k) or partition(bits, k))
    return seen


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", GUESSED)
def test_a_good_guess_is_exact_and_partitions_nothing(name, dtype, partitions):
    x = GUESSED[name].astype(dtype)
    np.testing.assert_array_equal(top_k_indices(x, FEW), by_sorting(x, FEW))
    assert not partitions


@pytest.mark.parametrize("name", MISLED)
def test_a_bad_guess_is_exact_all_the_same(name, partitions):
    k = LONG // 50 if name == "too few above or equal" else FEW
    np.testing.assert_array_equal(top_k_indices(MISLED[name], k), by_sorting(MISLED[name], k))
    assert partitions == [k]


@pytest.mark.parametrize("name", GUESSED | MISLED)
def test_a_sum_is_ranked_as_a_vector_and_written_whole(name):
    x, half = (GUESSED | MISLED)[name].astype(np.float32), np.float32(0.5)
    for k in (0, FEW, LONG // 50, LONG):
        out = np.full(LONG, np.nan, np.float32)
        chosen = top_k_of_sum(half * x, half * x, k, out)
        np.testing.assert_array_equal(out, half * x + half * x)
        np.testing.assert_array_equal(chosen, top_k_indices(out, k))


@pytest.mark.parametrize("name", ["smooth", "too few above", "too many above"])
@pytest.mark.parametrize("at", [0, LONG - 1])
def test_a_sum_that_is_not_finite_is_refused_and_written_whole(name, at):
    one, other = (GUESSED | MISLED)[name].copy(), np.zeros(LONG, np.float32)
    one[at], other[at] = np.inf, -np.inf
    for k in (1, FEW):
        out = np.zeros(LONG, np.float32)
        with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=f"1 of {LONG} values are NaN or infinite"):
            top_k_of_sum(one, other, k, out)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(out, one + other)


@pytest.mark.parametrize("per", ["vector", "layer"])
@pytest.mark.parametrize("fraction", [0.01, 1.0])
def test_top_k_chooses_of_a_sum_what_it_chooses_of_the_vector(per, fraction, monkeypatch):
    monkeypatch.setattr(selection, "PARTITIONED", 1000)
    layout = dp.Layout.of({"a": (30_000,), "none": (0,), "b": (5,), "c": (2000,)})
    one, other = np.random.default_rng(3).standard_normal((2, layout.size)).astype(np.float32)
    stage, context, out = dp.TopK(fraction, per=per), PublicContext(layout=layout), np.empty(layout.size, np.float32)
    assert stage.select_of_sum(one, other, out, context) == stage.select(one + other, dp.Everywhere(), context)
    np.testing.assert_array_equal(out, one + other)


def test_a_subclass_that_chooses_otherwise_is_asked():
    class Lowest(dp.TopK):
        def select(self, vector, candidates, context):
            return dp.Listed(np.arange(3))

    out, context = np.empty(9, np.float32), PublicContext(layout=dp.Layout.of(9))
    vector = np.arange(9, dtype=np.float32)
    assert Lowest(0.3).select_of_sum(vector, vector, out, context) == dp.Listed(np.arange(3))
    np.testing.assert_array_equal(out, 2 * vector)


@pytest.mark.parametrize("step", [2, -1, -3])
def test_a_strided_view_is_ranked_as_its_copy(step):
    x = np.repeat(smooth(), 2)[::step]
    np.testing.assert_array_equal(top_k_indices(x, FEW), top_k_indices(x.copy(), FEW))


@pytest.mark.parametrize("array", [torch.from_numpy, jnp.asarray, list], ids=["torch", "jax", "list"])
def test_whatever_numpy_reads_is_ranked(array):
    np.testing.assert_array_equal(top_k_indices(array(TIED), 5), by_sorting(TIED, 5))


def test_other_numbers_are_ranked_as_float64():
    assert top_k_indices(np.array([3, -128, 127], np.int8), 2).tolist() == [1, 2]
    assert top_k_indices(smooth().astype(">f4"), FEW).tolist() == by_sorting(smooth(), FEW).tolist()
    assert top_k_indices(jnp.asarray([1, -3, 2], jnp.bfloat16), 2).tolist() == [1, 2]


def test_the_fast_path_allocates_blocks_and_candidates_alone():
    x = np.tile(smooth(), 15) * np.linspace(1, 2, 15 * LONG, dtype=np.float32)
    tracemalloc.start()
    try:
        top_k_indices(x, len(x) // 100)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < x.nbytes / 4


def test_threads_do_not_disturb_each_other():
    vectors = [np.roll(smooth(), 1000 * i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for x, chosen in zip(vectors, pool.map(lambda x: top_k_indices(x, FEW), vectors), strict=True):
            np.testing.assert_array_equal(chosen, by_sorting(x, FEW))


def fastest_seconds(rounds, **calls):
    """The fastest of several runs of each, interleaved, so that a busy machine is as busy for all."""
    fastest = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            fastest[name] = min(fastest[name], time.perf_counter() - start)
    return fastest


@pytest.mark.slow
@pytest.mark.parametrize(("d", "copies", "rounds"), [(11_200_000, 4, 15), (10**8, 3, 5)])
def test_one_percent_is_chosen_in_the_time_of_a_few_copies(d, copies, rounds):
    x = np.random.default_rng(0).standard_normal(d, dtype=np.float32)
    k, copy = d // 100, x.copy()
    seconds = fastest_seconds(
        rounds,
        copy=lambda: np.copyto(copy, x),
        ours=lambda: top_k_indices(x, k),
        torch=lambda: torch.topk(torch.from_numpy(x).abs(), k),
    )
    assert seconds["ours"] <= copies * seconds["copy"]
    assert seconds["torch"] >= 20 * seconds["ours"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "seen", [(1e9, 2e9), (0.0, 0.0), (2.2, 2.201)], ids=["too few above", "too many above", "somewhat too many above"]
)
def test_a_bad_guess_costs_at_most_a_quarter_more_than_a_partition(seen, partitions):
    d, k, rounds = 11_200_000, 112_000, 9
    x = np.random.default_rng(0).standard_normal(d, dtype=np.float32)
    x[selection.sample_positions(d, selection.SAMPLE_SIZE)] = np.linspace(*seen, selection.SAMPLE_SIZE)
    magnitude = np.abs(x)
    seconds = fastest_seconds(
        rounds, ours=lambda: top_k_indices(x, k), partition=lambda: np.partition(magnitude, d - k)
    )
    assert partitions == [k] * rounds
    assert seconds["ours"] <= 1.25 * seconds["partition"]


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1e-45])
def test_of_a_constant_vector_the_first_k_win(value):
    for k in (0, 1, 3, 7):
        assert top_k_indices(np.full(7, value, np.float32), k).tolist() == list(range(k))


@pytest.mark.parametrize("k", [-1, 4])
def test_k_lies_between_none_and_all(k):
    with pytest.raises(ValueError, match=r"0 ≤ k ≤ d"):
        top_k_indices(np.zeros(3, np.float32), k)


def test_only_a_row_is_ranked():
    with pytest.raises(ValueError, match="give a row"):
        top_k_indices(np.zeros((2, 3), np.float32), 1)


@pytest.mark.parametrize("k", [0, 1, 5])
def test_values_that_cannot_be_ranked_are_counted(k):
    x = np.array([1.0, np.nan, 2.0, -np.inf, np.inf], np.float32)
    with pytest.raises(ValueError, match="3 of 5 values are NaN or infinite"):
        top_k_indices(x, k)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["smooth", "nearly all zeros", "too few above", "too many above"])
@pytest.mark.parametrize("count", [1, 50, 2 * FEW, LONG])
def test_in_a_long_vector_all_of_them_are_counted(name, count, bad):
    x = (GUESSED | MISLED)[name].copy()
    x[np.random.default_rng(6).permutation(LONG)[:count]] = bad
    for k in (0, 1, FEW):
        with pytest.raises(ValueError, match=f"{count} of {LONG} values are NaN or infinite"):
            top_k_indices(x, k)


def test_of_nothing_nothing_is_chosen():
    assert top_k_indices(np.empty(0, np.float32), 0).tolist() == []


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
            masked = dp.TopK(fraction).apply(units, PublicContext(layout=units.layout, mask_key=0))
            rows = np.concatenate([np.asarray(layer) for layer in masked.layers], axis=1)
            for row, unit in zip(rows, whole, strict=True):
                expected, kept = np.zeros_like(unit), by_sorting(unit, max(1, round(20 * fraction)))
                expected[kept] = unit[kept]
                np.testing.assert_array_equal(row, expected)


@FRAMEWORKS
def test_the_mask_per_layer_is_the_mask_of_every_layer_by_itself(array):
    rng = np.random.default_rng(7)
    sizes, stage = {"a": (12,), "none": (0,), "b": (1,), "c": (3, 4)}, dp.TopK(0.3, per="layer")
    whole = rng.choice(TIED, (20, 25)).astype(np.float32)
    layout = dp.Layout.of(sizes)
    parts = [whole[:, layout.edges[i] : layout.edges[i + 1]] for i in range(4)]
    expected = np.zeros_like(whole)
    for row, unit in zip(expected, whole, strict=True):
        for begin, end in pairwise(layout.edges):
            kept = begin + by_sorting(unit[begin:end], min(end - begin, max(1, round(0.3 * (end - begin)))))
            row[kept] = unit[kept]
    for block in (tuple(map(array, parts)), array(whole)):
        masked = stage.apply(Units.of(block, layout), PublicContext(layout=layout))
        rows = np.concatenate([np.asarray(layer) for layer in masked.layers], axis=1)
        np.testing.assert_array_equal(rows, expected)
        assert [layer.shape for layer in masked.layers] == [layer.shape for layer in Units.of(block, layout).layers]


def test_after_random_k_the_mask_per_layer_keeps_its_share_of_what_each_layer_has_left():
    layout, rng = dp.Layout.of({"a": (40,), "b": (60,)}), np.random.default_rng(8)
    left = dp.RandomK(0.5).apply(
        Units.of(rng.standard_normal((3, 100)).astype(np.float32), layout), PublicContext(layout=layout, mask_key=9)
    )
    masked = dp.TopK(0.2, per="layer").apply(left, PublicContext(layout=layout, mask_key=9))
    for layer in (slice(0, 40), slice(40, 100)):
        among = np.isin(left.support.indices(100), np.arange(100)[layer])
        kept = np.count_nonzero(masked.layers[0][:, among], axis=1)
        assert kept.tolist() == [round(0.2 * np.count_nonzero(among))] * 3


def test_the_top_of_a_sum_per_layer_is_that_of_the_codec():
    layout, rng = dp.Layout.of({"a": (40,), "b": (60,)}), np.random.default_rng(8)
    total = Units.of(rng.standard_normal((3, 100)).astype(np.float32), layout).sum()
    for per in ("vector", "layer"):
        stage = dp.TopK(0.1, per=per)
        context = PublicContext(layout=layout)
        assert stage.apply(total, context).support == stage.select(total.vector(), dp.Everywhere(), context)


@pytest.mark.parametrize("stage", [dp.TopK, dp.RandomK])
@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(stage, fraction):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        stage(fraction)


@pytest.mark.parametrize("per", ["layers", "", None, True])
def test_the_two_ways_to_rank_are_named_when_another_is_asked_for(per):
    stage = dp.TopK(0.1)
    object.__setattr__(stage, "per", per)  # at birth, beartype would speak first while the tests run
    with pytest.raises(ValueError, match=r'write per="vector" .* per="layer"'):
        stage.__post_init__()


def test_the_repr_is_the_call_that_makes_it():
    for stage in (dp.TopK(0.1), dp.TopK(0.1, per="layer")):
        assert eval(repr(stage), {"TopK": dp.TopK}) == stage  # noqa: S307


@pytest.mark.parametrize("stage", [dp.TopK, dp.RandomK])
@pytest.mark.parametrize(("fraction", "d", "k"), [(0.1, 100, 10), (1e-9, 100, 1), (1, 100, 100), (0.126, 100, 13)])
def test_the_share_kept_is_the_nearest_whole_number_and_at_least_one(stage, fraction, d, k):
    x = np.random.default_rng(0).standard_normal(d).astype(np.float32)
    assert (
        len(stage(fraction).select(x, dp.Everywhere(), PublicContext(layout=dp.Layout.of(d), mask_key=5)).indices(d))
        == k
    )


def test_the_codecs_top_k_stays_among_its_candidates():
    x = np.random.default_rng(3).standard_normal(100).astype(np.float32)
    candidates, layout = dp.Seeded(seed=11, k=30), dp.Layout.of(100)
    chosen = dp.TopK(0.1).select(x, candidates, PublicContext(layout=layout, mask_key=0)).indices(100)
    among = candidates.indices(100)
    np.testing.assert_array_equal(chosen, among[by_sorting(x[among], 10)])
    assert dp.TopK(0.3).select(x, candidates, PublicContext(layout=layout, mask_key=0)) == candidates


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_per_layer_every_layer_keeps_its_own_share(sizes, fraction, candidate_share, seed):
    layout, rng = dp.Layout.of({f"layer {i}": (size,) for i, size in enumerate(sizes)}), np.random.default_rng(seed)
    x = rng.choice(TIED, layout.size)
    for candidates in (dp.Everywhere(), dp.Seeded(seed=seed, k=round(candidate_share * layout.size))):
        chosen = (
            dp.TopK(fraction, per="layer")
            .select(x, candidates, PublicContext(layout=layout, mask_key=0))
            .indices(layout.size)
        )
        expected, among = [], candidates.indices(layout.size)
        for begin, end in pairwise(layout.edges):
            mine, share = among[(begin <= among) & (among < end)], max(1, round(fraction * (end - begin)))
            expected.append(mine[by_sorting(x[mine], min(len(mine), share))])
        np.testing.assert_array_equal(chosen, np.concatenate(expected))


def test_one_layer_is_ranked_as_the_whole_vector():
    x, context = smooth(), PublicContext(layout=dp.Layout.of(LONG))
    chosen = [dp.TopK(0.01, per=per).select(x, dp.Everywhere(), context) for per in ("vector", "layer")]
    assert chosen[0] == chosen[1]


def test_the_codecs_top_k_lists_no_coordinate_that_it_drops(monkeypatch):
    monkeypatch.setattr(dp.Everywhere, "indices", lambda self, d: pytest.fail(f"it listed all {d}"))
    for per in ("vector", "layer"):
        context = PublicContext(layout=dp.Layout.of(LONG))
        chosen = dp.TopK(0.01, per=per).select(smooth(), dp.Everywhere(), context)
        assert chosen.count(LONG) == FEW


def test_random_k_looks_at_the_key_and_never_at_the_values():
    rng = np.random.default_rng(4)
    layout, stage = dp.Layout.of(50), dp.RandomK(0.1)
    first, second = (PublicContext(layout=layout, mask_key=key) for key in (1, 2))
    chosen = {stage.select(rng.standard_normal(50), dp.Everywhere(), first) for _ in range(5)}
    assert len(chosen) == 1
    assert stage.select(rng.standard_normal(50), dp.Everywhere(), second) not in chosen


@FRAMEWORKS
def test_random_k_cuts_each_layer_down_to_the_rounds_support(array):
    block = np.arange(24, dtype=np.float32).reshape(2, 12)
    units = Units.of((array(block[:, :5]), array(block[:, 5:])), dp.Layout.of({"a": (5,), "b": (7,)}))
    restricted = dp.RandomK(0.5).apply(units, PublicContext(layout=units.layout, mask_key=3))
    rows = np.concatenate([np.asarray(layer) for layer in restricted.layers], axis=1)
    np.testing.assert_array_equal(rows, block[:, restricted.support.indices(12)])
    assert rows.shape == (2, 6)


@pytest.mark.parametrize("part", [dp.TopK, dp.RandomK])
@pytest.mark.parametrize("wrong", ["0.1", None, True])
def test_a_share_that_is_no_number_is_refused_by_name(part, wrong):
    with pytest.raises(TypeError, match=rf"{part.__name__}\(fraction\) is .*: give a share above 0, up to 1"):
        part(wrong)

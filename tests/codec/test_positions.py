"""Listed supports cost what information theory says, whatever they resemble."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import entr

import dpcomp as dp
from dpcomp.codec.entropy.positions import merge_with_previous, split_by_previous
from dpcomp.codec.entropy.range_reader import ranks_of
from dpcomp.core.errors import CorruptPayload
from dpcomp.core.public_context import PublicContext
from dpcomp.wire.update import with_claim

CODEC = dp.Codec(quantize=dp.Uniform(2))


def following(previous, d, overlap, rng):
    """As many positions, of which a share was there before."""
    k = len(previous)
    kept = rng.choice(previous, round(overlap * k), replace=False)
    others = np.setdiff1d(np.arange(d), previous, assume_unique=True)
    return np.sort(np.concatenate([kept, rng.choice(others, k - len(kept), replace=False)]))


def bits_a_position(positions, layout, previous=None):
    """What the body costs, its reader checked; the values are all alike, and cost nothing."""
    common = PublicContext(layout=layout, previous_support=None if previous is None else dp.Listed(previous))
    body, _ = CODEC.encode(np.ones(len(positions), np.float32), dp.Listed(positions), common)
    assert CODEC.decode(body, common)[1] == dp.Listed(positions)
    return 8 * len(body) / len(positions)


def index_cost(overlap, density):
    """Bits a kept coordinate, when a share of the last support is kept and the rest is random."""
    new = (1 - overlap) * density / (1 - density)
    both = [entr(p) + entr(1 - p) for p in (overlap, new)]
    return (both[0] + (1 - density) / density * both[1]) / np.log(2)


@pytest.mark.parametrize("density", [0.01, 0.1])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8, 1.0])
def test_a_support_costs_what_is_new_in_it(density, overlap):
    d, rng = 10**6, np.random.default_rng(1)
    previous = np.sort(rng.choice(d, round(density * d), replace=False))
    positions = following(previous, d, overlap, rng)
    layout = dp.Layout.of(d)
    bits = bits_a_position(positions, layout, previous)
    assert bits <= 1.003 * index_cost(overlap, density) + 8 * 40 / len(positions)
    assert bits <= bits_a_position(positions, layout) + 8 * 2 / len(positions)


def test_a_support_that_resembles_the_last_one_by_chance_alone_costs_no_more():
    d, k, rng = 10**6, 10**4, np.random.default_rng(2)
    previous, positions = (np.sort(rng.choice(d, k, replace=False)) for _ in range(2))
    layout = dp.Layout.of(d)
    assert bits_a_position(positions, layout, previous) <= bits_a_position(positions, layout) + 8 / k


def test_layers_of_their_own_density_are_coded_by_it():
    rng = np.random.default_rng(3)
    sizes, densities = [200_000] * 10, np.geomspace(0.0005, 0.05, 10)
    kept = [rng.random(size) < density for size, density in zip(sizes, densities, strict=True)]
    positions = np.flatnonzero(np.concatenate(kept))
    layered = dp.Layout.of({str(number): (size,) for number, size in enumerate(sizes)})
    ideal = sum(size * (entr(p) + entr(1 - p)) for size, p in zip(sizes, densities, strict=True)) / np.log(2)
    bits = bits_a_position(positions, layered)
    assert bits <= 1.01 * ideal / len(positions)
    assert bits < 0.9 * bits_a_position(positions, dp.Layout.of(sum(sizes)))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), d=st.integers(1, 60))
def test_what_is_split_is_merged_again(data, d):
    subset = st.lists(st.booleans(), min_size=d, max_size=d).map(np.flatnonzero)
    positions, previous = data.draw(subset), data.draw(subset)
    cut = data.draw(st.integers(0, d))
    kept, new = split_by_previous(positions, previous, np.array([0, cut, d]))
    np.testing.assert_array_equal(merge_with_previous(kept.ranks, new.ranks, previous), positions)
    assert kept.counts.tolist() == [
        np.isin(part, previous).sum() for part in np.split(positions, [np.searchsorted(positions, cut)])
    ]
    assert (new.edges[-1], kept.edges[-1]) == (d - len(previous), len(previous))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any))
def test_any_support_arrives_after_any_other(data, sizes):
    layout = dp.Layout.of({str(number): (size,) for number, size in enumerate(sizes)})
    subset = st.lists(st.booleans(), min_size=layout.size, max_size=layout.size).map(np.flatnonzero)
    positions, previous = data.draw(subset), data.draw(subset)
    common = PublicContext(layout=layout, previous_support=dp.Listed(previous))
    body, _ = CODEC.encode(np.ones(len(positions), np.float32), dp.Listed(positions), common)
    assert CODEC.decode(body, common)[1] == dp.Listed(positions)


def test_over_rounds_both_ends_code_a_slow_support_by_its_changes():
    d, rng = 50_000, np.random.default_rng(4)
    codec = dp.Codec(sparsify=dp.TopK(0.02), quantize=dp.Uniform(4))
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a test of the wire"), codec=codec, feedback=False)
    memory, server = pipeline.init_client(d, dp.PublicSeed(0), client=1), pipeline.init_server(d, dp.PublicSeed(0))
    steady, sizes = rng.standard_t(2, d), []
    for _ in range(4):
        values = (steady + 0.1 * rng.standard_normal(d)).astype(np.float32)
        update = with_claim(dp.Update(values=values, layout=memory.layout, address=memory.address), pipeline.claim)
        payload, after = pipeline.send(update, memory)
        lost, _ = pipeline.send(update, memory)  # made again from the same memory, it is the same
        assert lost == payload
        estimate, server = pipeline.receive(payload, server)
        memory, sizes = after, [*sizes, len(payload)]
        assert memory.link == server.link(1)
        assert memory.link.last_support == estimate.support
        down, server = pipeline.broadcast(estimate, server)
        memory = pipeline.follow(down, memory)
    assert max(sizes[1:]) < 0.75 * sizes[0]


@pytest.mark.parametrize("gaps", [[0, 4, 0], [4, 0, 0], [0, 0, 4]])
def test_a_rank_beyond_its_layer_is_refused_though_it_lies_within_the_vector(gaps):
    counts, begins, sizes = [1, 2], [0, 4], [4, 5]
    assert ranks_of(np.array([3, 0, 3]), counts, begins, sizes).tolist() == [3, 4, 8]
    with pytest.raises(CorruptPayload, match=r"rank \d among \d places"):
        ranks_of(np.array(gaps), counts, begins, sizes)


def test_gaps_with_and_without_an_excess_arrive_in_layers_of_every_density():
    rng, sizes = np.random.default_rng(5), (30_000, 0, 50, 4, 400_000, 1, 2_000_000)
    layout = dp.Layout.of({str(number): (size,) for number, size in enumerate(sizes)})
    first = layout.edges
    crowded = first[4] + np.arange(300)  # and then nothing for a long way: such gaps have an excess
    spread = rng.choice(30_000, 900, replace=False)
    positions = np.unique([*spread, *range(first[2], first[4]), *crowded, first[5] - 1, first[5], first[7] - 1])
    for previous in (None, positions[::3], positions):
        common = PublicContext(layout=layout, previous_support=None if previous is None else dp.Listed(previous))
        body, _ = CODEC.encode(np.ones(len(positions), np.float32), dp.Listed(positions), common)
        assert CODEC.decode(body, common)[1] == dp.Listed(positions)

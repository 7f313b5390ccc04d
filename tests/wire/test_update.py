"""Addresses, layouts, supports and updates."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

import dpcomp as dp
from dpcomp.wire.update import with_claim

ADDRESS = dp.Address(run=1, client=2, round=3)
GOLDEN_SPARSE = [377, 419, 507, 586, 636, 666]
GOLDEN_DENSE = [0, 1, 2, 3, 4, 5, 8]
GOLDEN_WIDE = [1684107383, 2739471141, 3337516617, 4141100122]

LAYERS = {"weight": (2, 3), "nothing": (0, 5), "bias": (3,), "scale": ()}


def update_of(values, support=dp.Everywhere(), d=None):
    layout = dp.Layout.of(len(values) if d is None else d)
    return dp.Update(values=np.asarray(values, dtype=np.float32), layout=layout, address=ADDRESS, support=support)


@pytest.mark.parametrize("numbers", [(0, 0, 0), (2**64 - 1, 2**32 - 1, 2**32 - 1)])
def test_an_address_holds_its_whole_range(numbers):
    assert dataclasses.astuple(dp.Address(*numbers)) == numbers


@pytest.mark.parametrize("numbers", [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (2**64, 0, 0), (0, 2**32, 0), (0, 0, 2**32)])
def test_an_address_outside_its_range_is_refused(numbers):
    with pytest.raises(ValueError, match="give a whole number from 0 to"):
        dp.Address(*numbers)


@pytest.mark.parametrize("number", [1.0, True, "1", None, np.float64(1)])
def test_an_address_of_anything_but_whole_numbers_is_refused(number):
    for place in range(3):
        numbers = [0, 0, 0]
        numbers[place] = number
        with pytest.raises(TypeError, match="whole number"):
            dp.Address(*numbers)


def test_an_address_of_numpy_numbers_is_that_of_plain_ones():
    address = dp.Address(np.uint64(2**63), np.int32(2), np.int64(3))
    assert address == dp.Address(2**63, 2, 3)
    assert hash(address) == hash(dp.Address(2**63, 2, 3))
    assert repr(address) == "Address(run=9223372036854775808, client=2, round=3)"


def test_a_layout_of_a_number_is_one_layer():
    layout = dp.Layout.of(7)
    assert (layout.size, layout.sizes, layout.edges.tolist()) == (7, (7,), [0, 7])


def test_a_layout_of_a_mapping_keeps_its_order_and_counts_scalars_and_empty_layers():
    layout = dp.Layout.of(LAYERS)
    assert [name for name, _ in layout.shapes] == list(LAYERS)
    assert layout.sizes == (6, 0, 3, 1)
    assert layout.edges.tolist() == [0, 6, 6, 9, 10]
    assert layout.size == 10


def test_a_layout_of_a_layout_is_itself():
    assert dp.Layout.of(dp.Layout.of(LAYERS)) == dp.Layout.of(LAYERS)


@pytest.mark.parametrize("layers", [0, -3, {}, {"a": (0,)}, {"a": (-1, -1)}, {"a": (4,), "b": (-1, 2)}])
def test_a_layout_without_coordinates_is_refused(layers):
    with pytest.raises(ValueError, match="coordinates"):
        dp.Layout.of(layers)


def test_a_layout_that_the_wire_cannot_hold_is_refused():
    assert dp.Layout.of(2**32 - 1).size == 2**32 - 1
    with pytest.raises(ValueError, match="wire format"):
        dp.Layout.of({"a": (2**16, 2**16)})


def test_layouts_have_one_digest_only_when_they_are_equal():
    others = [{"a": (2, 3)}, {"a": (3, 2)}, {"a": (6,)}, {"b": (6,)}, {"a": (5,), "b": (1,)}, {"b": (1,), "a": (5,)}]
    digests = {dp.Layout.of(layers).digest for layers in others}
    assert len(digests) == len(others)
    assert dp.Layout.of({"a": [2, 3]}).digest in digests


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 300), st.floats(0, 1), st.integers(0, 2**256 - 1))
def test_a_seeded_support_holds_k_distinct_ascending_positions(d, share, key):
    k = round(share * d)
    positions = dp.Seeded(key, k).indices(d)
    assert len(positions) == k == dp.Seeded(key, k).count(d)
    assert (np.diff(positions) > 0).all()
    assert ((positions >= 0) & (positions < d)).all()
    np.testing.assert_array_equal(dp.Seeded(key, k).indices(d), positions)


def test_a_seeded_support_is_the_same_for_ever():
    assert dp.Seeded(12345, 6).indices(1000).tolist() == GOLDEN_SPARSE
    assert dp.Seeded(12345, 7).indices(10).tolist() == GOLDEN_DENSE
    assert dp.Seeded(2**256 - 1, 4).indices(2**32 - 1).tolist() == GOLDEN_WIDE


@pytest.mark.parametrize("k", [6, 14])
def test_a_seeded_support_favours_no_coordinate(k):
    d, rounds = 20, 2000
    chosen = np.zeros(d)
    for version in range(rounds):
        chosen[dp.Seeded(dp.PublicSeed(0).key("mask", version), k).indices(d)] += 1
    p = k / d
    # Each round's cells add up to k, which takes one degree of freedom, evenly.
    statistic = ((chosen - rounds * p) ** 2).sum() / (rounds * p * (1 - p)) * (d - 1) / d
    assert statistic < chi2.ppf(1 - 1e-6, d - 1)
    assert statistic > chi2.ppf(1e-6, d - 1)


def test_the_masks_of_two_versions_differ():
    masks = {tuple(dp.Seeded(dp.PublicSeed(4).key("mask", v), 8).indices(200)) for v in range(50)}
    assert len(masks) == 50


@pytest.mark.parametrize("k", [-1, 11])
def test_a_seeded_support_cannot_hold_more_than_there_is(k):
    with pytest.raises(ValueError, match=r"cannot choose|Seeded\(k\)"):
        dp.Seeded(1, k).indices(10)


@pytest.mark.parametrize("positions", [[1, 1], [2, 1], [-1, 2], [[1, 2]]])
def test_listed_positions_must_ascend_from_zero(positions):
    with pytest.raises(ValueError, match="ascending"):
        dp.Listed(np.array(positions))


def test_listed_positions_lie_inside_the_vector():
    assert dp.Listed(np.array([0, 4])).indices(5).tolist() == [0, 4]
    with pytest.raises(ValueError, match="outside"):
        dp.Listed(np.array([0, 5])).indices(5)


def test_a_listed_support_is_a_value_that_nobody_can_change():
    mine = np.array([1, 3])
    support = dp.Listed(mine)
    mine[0] = 0
    assert support == dp.Listed(np.array([1, 3]))
    assert hash(support) == hash(dp.Listed(np.array([1, 3])))
    assert support != dp.Listed(np.array([1, 4]))
    with pytest.raises(ValueError, match="read-only"):
        support.positions[0] = 0


@pytest.mark.parametrize("support", [dp.Everywhere(), dp.Seeded(9, 4), dp.Listed(np.array([0, 2, 3, 9]))])
def test_a_dense_update_is_zero_off_its_support(support):
    positions = support.indices(10)
    values = np.arange(1, len(positions) + 1, dtype=np.float32)
    dense = update_of(values, support, d=10).dense()
    assert dense.dtype == np.float32
    np.testing.assert_array_equal(dense[positions], values)
    assert np.count_nonzero(dense) == len(values)


@pytest.mark.parametrize("count", [3, 5])
def test_an_update_has_a_value_for_each_supported_coordinate(count):
    with pytest.raises(ValueError, match="holds 4 values"):
        update_of(np.zeros(count), dp.Seeded(9, 4), d=10)


def test_an_update_cannot_be_changed():
    update = update_of([1, 2, 3])
    with pytest.raises(ValueError, match="read-only"):
        update.values[0] = 5
    with pytest.raises(ValueError, match="read-only"):
        update.dense()[0] = 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        update.values = np.zeros(3, np.float32)
    np.testing.assert_array_equal(update.values, [1, 2, 3])


def test_what_is_derived_keeps_claim_support_and_address_and_leaves_the_source_alone():
    claim = dp.Bounded(l2=2.0)
    update = with_claim(update_of([1, 2], dp.Listed(np.array([1, 3])), d=4), claim)
    derived = update.derive(update.dense() * 2 + 1)
    assert (derived.claim, derived.support, derived.address) == (claim, update.support, ADDRESS)
    np.testing.assert_array_equal(derived.dense(), [0, 3, 0, 5])
    np.testing.assert_array_equal(update.dense(), [0, 1, 0, 2])
    with pytest.raises(ValueError, match="derive"):
        update.derive(np.zeros(2, np.float32))


def test_an_update_made_by_hand_is_not_released():
    assert isinstance(update_of([1, 2]).claim, dp.Unbounded)


def released_update(d=4):
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
    memory = pipeline.init_client(d, seed=dp.PublicSeed(0), client=1)
    permit = dp.Ledger().charge(pipeline.cost, memory.address)
    return pipeline, memory, pipeline.release([], memory, dp.SecretSeed(), permit)


@pytest.mark.parametrize(
    "forge",
    [
        lambda update: dp.Update(values=np.ones(4), layout=update.layout, address=update.address, claim=update.claim),
        lambda update: dataclasses.replace(update, values=np.ones(4)),
        lambda update: dataclasses.replace(update, support=dp.Listed(np.arange(4))),
        lambda update: dataclasses.replace(update_of(np.ones(4)), claim=update.claim),
    ],
)
def test_a_released_claim_is_not_given_by_hand(forge):
    _, _, update = released_update()
    with pytest.raises(dp.NotPrivate, match="by hand"):
        forge(update)


@pytest.mark.parametrize(
    "copied",
    [
        lambda update: update,
        copy.copy,
        copy.deepcopy,
        lambda update: pickle.loads(pickle.dumps(update)),
        lambda update: update.derive(update.dense()),
    ],
)
def test_the_values_of_a_release_cannot_be_written_to_by_any_flag(copied):
    pipeline, memory, update = released_update()
    same = copied(update)
    assert same.claim == update.claim
    np.testing.assert_array_equal(same.values, update.values)
    arrays = [same.values, same.dense(), same.values.view(), same.values[:2]]
    for array in arrays:
        while isinstance(array, np.ndarray):
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
            array = array.base
    payload, _ = pipeline.send(same, memory)
    assert payload == pipeline.send(update, memory)[0]


def test_values_are_copied_from_what_was_given():
    mine = np.arange(4, dtype=np.float32)
    update = update_of(mine)
    mine[:] = 9.0
    np.testing.assert_array_equal(update.values, np.arange(4))

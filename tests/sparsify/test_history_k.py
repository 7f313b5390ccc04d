"""HistoryK: which coordinates it draws, that all machines draw the same, and that it reads released values alone."""

import math
from dataclasses import replace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.core.public_context import PublicContext
from dpcomp.sparsify.history_k import _LOGARITHMS, FRACTION_BITS, TABLE_BITS, _exponential, _smallest

LAYOUT = dp.Layout.of({"weight": (20, 15), "bias": (20,), "scale": (), "empty": (0, 4), "kernel": (6, 2, 3, 3)})
D = LAYOUT.size
SCORES = ("layer", "row_column", "coordinate")


def after(stage, *broadcasts, layout=LAYOUT):
    history = stage.initial_history(layout)
    for broadcast in broadcasts:
        history = stage.update_history(history, np.asarray(broadcast, np.float32), layout)
    return history


def drawn(stage, history, keys, layout=LAYOUT):
    times = np.zeros(layout.size)
    for key in keys:
        support = stage.public_support(PublicContext(layout=layout, mask_key=key, history=history))
        assert len(support.positions) == stage.count(layout.size)
        times[support.positions] += 1
    return times / len(keys)


def test_the_table_is_of_logarithms():
    mantissas = 0.5 + np.arange(2**TABLE_BITS) / 2 ** (TABLE_BITS + 1)
    assert np.abs(_LOGARITHMS / 2**FRACTION_BITS - np.log2(mantissas)).max() < 2.0**-15


def test_clocks_are_exponential():
    words = np.random.default_rng(0).integers(0, 2**64, 200_000, dtype=np.uint64)
    times = np.sort(_exponential(words) / 2**FRACTION_BITS * math.log(2))
    expected = -np.log1p(-(np.arange(len(times)) + 0.5) / len(times))
    assert (times >= 0).all()
    assert np.abs(times - expected)[: len(times) * 99 // 100].max() < 0.05
    assert _exponential(np.array([0, 1, 2**64 - 1], np.uint64)).tolist() == [64 << 16, 64 << 16, 0]


def test_of_equal_numbers_the_lower_positions_are_smallest():
    assert sorted(_smallest(np.array([3, 1, 2, 1, 1]), 2).tolist()) == [1, 3]
    assert _smallest(np.array([3, 1]), 0).tolist() == []


@pytest.mark.parametrize("score", SCORES)
def test_without_history_all_coordinates_are_alike(score):
    stage = dp.HistoryK(0.2, score=score)
    share = drawn(stage, after(stage), range(400))
    assert abs(share - 0.2).max() < 6 * math.sqrt(0.16 / 400)


@pytest.mark.parametrize("score", SCORES)
def test_energy_draws_coordinates_and_exploration_leaves_none_out(score):
    broadcast = np.full(D, 2.0**-8)
    broadcast[300:320] = 1.0  # the bias
    stage = dp.HistoryK(0.1, score=score, explore=0.2)
    share = drawn(stage, after(stage, broadcast, broadcast), range(300))
    assert share[300:320].min() > 0.9
    rest = np.delete(share, np.arange(300, 320))
    uniform = (stage.count(D) - 20) / (D - 20)  # 20 take what is not uniform; the uniform ones fall on the rest
    assert rest.mean() == pytest.approx(uniform, rel=0.02)
    assert rest.min() > 0


def test_a_row_and_a_column_are_found_behind_noise():
    rng, truth = np.random.default_rng(0), np.zeros((20, 15))
    truth[3, :], truth[:, 7] = 1.0, 1.0
    noisy = [np.concatenate([(truth + rng.standard_normal((20, 15))).ravel(), np.zeros(D - 300)]) for _ in range(40)]
    stage = dp.HistoryK(0.1, score="row_column", decay=0.95, noise_stddev=1.0)
    share = drawn(stage, after(stage, *noisy), range(200))[:300].reshape(20, 15)
    assert share[3, 7] == share.max()
    assert share[3].mean() > 2 * np.delete(share, 3, axis=0).mean()


def test_a_power_of_zero_draws_uniformly():
    stage = dp.HistoryK(0.2, score="coordinate", power=0)
    share = drawn(stage, after(stage, np.arange(D)), range(400))
    assert abs(share - 0.2).max() < 6 * math.sqrt(0.16 / 400)


def test_probabilities_follow_the_energy():
    layout = dp.Layout.of(256)
    stage = dp.HistoryK(1 / 256, score="coordinate", explore=1e-9)  # one coordinate, drawn uniformly at least once
    stage = replace(stage, fraction=2 / 256)
    broadcast = np.repeat([1.0, 0.5], 128)  # energies 1 and 1/4
    share = drawn(stage, after(stage, broadcast, layout=layout), range(3000), layout)
    weighted = share - share.mean() / 2  # without the uniform one, which falls on all alike
    assert weighted[:128].mean() / weighted[128:].mean() == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**30])
def test_what_all_is_multiplied_by_does_not_matter(score, scale):
    broadcast = np.random.default_rng(1).standard_normal(D).astype(np.float32)
    stage = dp.HistoryK(0.1, score=score)
    supports = [
        stage.public_support(PublicContext(layout=LAYOUT, mask_key=3, history=after(stage, factor * broadcast)))
        for factor in (np.float32(1), np.float32(scale))
    ]
    assert supports[0] == supports[1]


def test_the_support_is_the_same_on_every_machine():
    stage = dp.HistoryK(0.02)
    broadcasts = [((np.arange(D) * number) % 23 - 11) / 8 for number in (7, 37)]
    support = stage.public_support(PublicContext(layout=LAYOUT, mask_key=9, history=after(stage, *broadcasts)))
    assert support.positions.tolist() == [43, 129, 148, 256, 378, 391, 404, 413, 427]


@pytest.mark.parametrize("score", SCORES)
def test_both_ends_agree_over_rounds(score):
    stage = dp.HistoryK(0.1, score=score)
    pipe = dp.Pipeline(
        mechanism=(stage, dp.Clip(1.0), dp.Gaussian(0.1)),
        codec=dp.Codec(quantize=dp.Rotated(), entropy=dp.FixedWidth()),
        feedback=False,
    )
    server = pipe.init_server(LAYOUT, dp.PublicSeed(0))
    clients = [pipe.init_client(LAYOUT, dp.PublicSeed(0), client=number) for number in range(2)]
    ledgers, rng = [dp.Ledger(), dp.Ledger()], np.random.default_rng(0)
    for _ in range(4):
        updates = []
        for number, memory in enumerate(clients):
            permit = ledgers[number].charge(pipe.cost, memory.address)
            update = pipe.release([rng.standard_normal((3, D))], memory, dp.SecretSeed(2), permit)
            payload, clients[number] = pipe.send(update, memory)
            received, server = pipe.receive(payload, server)
            assert received.support == stage.public_support(pipe.channel.context(memory))
            updates.append(received.dense())
        broadcast, server = pipe.broadcast(np.mean(updates, axis=0).astype(np.float32), server)
        clients = [pipe.follow(broadcast, memory) for memory in clients]
        assert clients[0].shared.history.tobytes() == server.shared.history.tobytes()


def test_other_data_with_the_same_releases_give_the_same_support():
    stage = dp.HistoryK(0.1)
    pipe = dp.Pipeline(mechanism=(stage, dp.Clip(1.0), dp.Gaussian(1.0)), feedback=False)
    supports = []
    for data in (0, 1):
        memory = pipe.init_client(LAYOUT, dp.PublicSeed(0), client=0)
        server = pipe.init_server(LAYOUT, dp.PublicSeed(0))
        block = np.random.default_rng(data).standard_normal((3, D))
        total = pipe.clip(block, memory)
        assert total.units == 3
        step = np.zeros(D, np.float32)
        step[:50] = 1.0  # what was released, whatever the data
        step = step * np.isin(np.arange(D), stage.public_support(pipe.channel.context(memory)).positions)
        broadcast, server = pipe.broadcast(step, server)
        memory = pipe.follow(broadcast, memory)
        supports.append(pipe.clip(block, memory).support)
    assert supports[0] == supports[1]


@pytest.mark.parametrize(
    "wrong",
    [{"score": "rows"}, {"decay": 1.0}, {"decay": -0.1}, {"explore": 0.0}, {"power": 5}, {"noise_stddev": -1.0}],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="HistoryK"):
        dp.HistoryK(0.1, **wrong)


def test_the_energy_of_a_layer_of_any_size_is_added_up_without_overflow():
    """Squares of numbers of 20 bits fill 63 bits at 2²³ of them, which a broadcast of signs in one layer reaches."""
    layout, history = dp.Layout.of(2**23 + 2**20), dp.HistoryK(0.01, score="layer")
    broadcast = np.full(layout.size, 0.9999, np.float32)
    energy, number = history.update_history(history.initial_history(layout), broadcast, layout)
    assert number == layout.size
    assert energy == pytest.approx(0.9999**2 * layout.size, rel=1e-4)

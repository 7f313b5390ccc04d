"""A support for each client of a round: how it is dealt, what it does to a mean, and how a broadcast names it."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import dpcomp as dp
from dpcomp.codec.support_code import UNION
from dpcomp.core import support as support_module
from dpcomp.core.public_context import PublicContext
from dpcomp.core.support import _permuted
from dpcomp.federated.server.aggregation import ReleasedSum, mean_of_released
from dpcomp.wire.update import with_claim

D = 1000
LAYOUT = dp.Layout.of({"a": (20, 40), "b": (200,)})


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**256 - 1), st.integers(0, 50))
def test_the_permutation_is_one(d, key, number):
    assert np.array_equal(np.sort(_permuted(np.arange(d)[None, :], key, np.array([number]), d)), np.arange(d))


@settings(deadline=None)
@given(st.integers(1, 3000), st.data())
def test_places_of_one_permutation_share_nothing_and_the_union_is_theirs(d, data):
    k = data.draw(st.integers(1, d))
    together = d // k
    first = data.draw(st.integers(0, 3)) * together
    places = data.draw(st.sets(st.integers(first, first + together - 1), max_size=5))
    each = [dp.Dealt(seed=7, k=k, places=(place,)).indices(d) for place in places]
    union = dp.Dealt(seed=7, k=k, places=tuple(sorted(places)))
    assert union.count(d) == k * len(places)
    assert np.array_equal(union.indices(d), np.sort(np.concatenate([*each, np.empty(0, np.int64)])))


def test_each_coordinate_comes_as_often_as_any_other():
    d, k, keys = 97, 5, 400
    times = np.zeros(d)
    overlap = 0
    for key in range(keys):
        one, other = (dp.Dealt(seed=1 + 7919 * key, k=k, places=(place,)).indices(d) for place in (4, 4 + d // k))
        times[one] += 1
        overlap += len(np.intersect1d(one, other))
    assert stats.chisquare(times).pvalue > 1e-6
    assert overlap / keys == pytest.approx(k * k / d, rel=0.3)  # of two permutations: as if drawn independently


def test_the_positions_are_the_same_on_every_machine():
    positions = dp.Dealt(seed=2**255 + 9, k=4, places=(3, 900)).indices(D)
    assert positions.tolist() == [117, 271, 581, 616, 632, 860, 908, 919]


@pytest.mark.parametrize(
    ("places", "error"), [((2, 1), ValueError), ((1, 1), ValueError), ((-1,), ValueError), ((2**40,), ValueError)]
)
def test_places_that_mean_nothing_are_refused(places, error):
    with pytest.raises(error):
        dp.Dealt(seed=1, k=2, places=places)


def place(client, version, d=D, fraction=0.1, run_key=3):
    context = PublicContext(layout=dp.Layout.of(d), run_key=run_key, mask_key=version, client=client, version=version)
    return dp.RandomK(fraction, per="client").public_support(context)


@given(st.integers(1, 60), st.integers(0, 10**6), st.integers(0, 2**32 - 2))
def test_a_client_has_every_place_of_a_permutation_once_before_the_next_permutation(together, lap, client):
    versions = range(lap * together, (lap + 1) * together)
    places = [place(client, version, d=together, fraction=1 / together).places[0] for version in versions]
    assert {each // together for each in places} == {lap + client // together}
    assert {each % together for each in places} == set(range(together))


@given(st.integers(1, 400), st.integers(0, 10**9), st.sets(st.integers(0, 2**32 - 2), min_size=2, max_size=9))
def test_no_two_clients_of_a_round_have_a_place_in_common(together, version, clients):
    assert len({place(client, version, d=together, fraction=1 / together).places for client in clients}) == len(clients)


def test_rounds_cover_the_coordinates_more_evenly_than_drawn_supports_do():
    d, n, rounds = 1010, 10, 30
    for start in (0, 50, 200):
        times = np.zeros(d)
        for version, client in np.ndindex(rounds, n):
            times[place(client, start + version, d, 0.01).indices(d)] += 1
        assert times.var() < 0.25 * (rounds * n * 0.01 * 0.99)  # of a binomial, where each were drawn anew


def test_runs_have_other_permutations():
    assert place(0, 0, run_key=1).indices(D).tolist() != place(0, 0, run_key=2).indices(D).tolist()


def pipeline(per, **more):
    mechanism = (dp.RandomK(0.1, per=per), dp.Clip(1.0), dp.Gaussian(1.0))
    return dp.Pipeline(mechanism=mechanism, feedback=False, **more)


def play(pipe, clients=(0, 3, 7), rounds=3, weights=None):
    """Play rounds; return the clients' updates, payloads and broadcasts of the last one, and all ends."""
    server = pipe.init_server(LAYOUT, dp.PublicSeed(0))
    ends = [pipe.init_client(LAYOUT, dp.PublicSeed(0), client=client) for client in clients]
    ledgers, rng = [dp.Ledger() for _ in clients], np.random.default_rng(0)
    for _ in range(rounds):
        updates = []
        for i, memory in enumerate(ends):
            permit = ledgers[i].charge(pipe.cost, memory.address)
            update = pipe.release([rng.standard_normal((5, D))], memory, dp.SecretSeed(1), permit)
            payload, ends[i] = pipe.send(update, memory)
            received, server = pipe.receive(payload, server)
            updates.append(received)
        broadcast, server = pipe.broadcast(mean_of_released(pipe.channel, updates, server, weights), server)
        ends = [pipe.follow(broadcast, memory) for memory in ends]
    return updates, broadcast, ends, server


@pytest.mark.parametrize("downlink", [None, dp.Codec(quantize=dp.Uniform(4)), dp.Codec()])
def test_a_broadcast_stands_on_the_union_and_all_ends_decode_it_alike(downlink):
    pipe = pipeline("client", downlink=downlink, codec=dp.Codec(quantize=dp.Rotated(), entropy=dp.FixedWidth()))
    updates, broadcast, ends, server = play(pipe)
    union = np.unique(np.concatenate([update.support.indices(D) for update in updates]))
    assert len(union) == 300
    assert np.array_equal(server.step.support.indices(D), union)
    assert all(np.array_equal(memory.step.dense(), server.step.dense()) for memory in ends)
    assert len(broadcast) < 4 * 300 + 40


def test_the_mean_is_that_of_dense_updates_with_zeros():
    updates, _, _, server = play(pipeline("client"))
    mean = sum(update.dense().astype(np.float64) for update in updates) / 3
    assert np.allclose(server.step.dense(), mean, rtol=1e-6, atol=0)


def test_as_a_sparsifier_it_selects_what_a_client_sends_and_broadcasts_the_union():
    pipe = dp.Pipeline(
        mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(sparsify=dp.RandomK(0.1, per="client"))
    )
    updates, _, ends, server = play(pipe)
    assert [len(update.values) for update in updates] == [100] * 3
    assert np.count_nonzero(server.step.dense()) <= 300
    assert all(np.array_equal(memory.step.dense(), server.step.dense()) for memory in ends)


def test_more_clients_than_places_are_answered_everywhere():
    _, _, ends, server = play(pipeline("client"), clients=tuple(range(12)), rounds=1)
    assert isinstance(server.step.support, dp.Everywhere)
    assert np.array_equal(ends[0].step.dense(), server.step.dense())


def test_a_layer_keeps_its_share():
    pipe = pipeline("layer")
    updates, broadcast, _, _ = play(pipe, rounds=1)
    assert LAYOUT.counts(updates[0].support).tolist() == [80, 20]
    assert len(broadcast) < 4 * 100 + 80  # no position is sent


def test_own_supports_err_as_the_law_says():
    """The excess of the second moment of a mean: (1 − κ)/κ with a common support, (1 − κ)/(κn) with own ones."""
    d, n, rounds = 400, 4, 100
    signal = np.random.default_rng(0).standard_normal(d)
    excess = {}
    for per in ("vector", "client"):
        moment = 0.0
        for number in range(rounds):
            mean = np.zeros(d)
            for client in range(n):
                # Of clients far apart, whose supports are of different permutations: drawn independently.
                context = PublicContext(
                    layout=dp.Layout.of(d), mask_key=number + 1, run_key=number + 1, client=1000 * client
                )
                indices = dp.RandomK(0.1, per=per).public_support(context).indices(d)
                mean[indices] += signal[indices] / (0.1 * n)
            moment += mean @ mean / (signal @ signal) / rounds
        excess[per] = moment - 1
    assert excess["vector"] == pytest.approx(0.9 / 0.1, rel=0.1)
    assert excess["client"] == pytest.approx(0.9 / (0.1 * n), rel=0.1)


def test_a_trusted_server_refuses_own_supports_before_its_noise_alone():
    with pytest.raises(dp.NotPrivate, match="support of its own"):
        pipeline("client", unit="client", trust="server")
    codec = dp.Codec(sparsify=dp.RandomK(0.1, per="client"))
    mechanism = (dp.Clip(1.0), dp.Gaussian(1.0))
    dp.Pipeline(mechanism=mechanism, codec=codec, unit="client", trust="server", feedback=False)


def test_an_unknown_per_is_refused():
    with pytest.raises(ValueError, match="per='round'"):
        dp.RandomK(0.1, per="round")  # pyright: ignore[reportArgumentType]


def test_unions_that_no_sender_writes_are_corrupt():
    base = dp.Dealt(seed=5, k=100, places=())
    context = PublicContext(layout=LAYOUT, public_support=base, client=dp.SERVER)
    codec, support = dp.Codec(quantize=dp.Sign(), entropy=dp.FixedWidth()), dp.Dealt(seed=5, k=100, places=(2, 200))
    body, decoded = codec.encode(np.ones(support.count(D), np.float32), support, context)
    values, found = codec.decode(body, context)
    assert (found, values.tobytes()) == (support, decoded.tobytes())
    assert body[:2] == bytes([UNION, 2])
    wrong = [
        bytes([UNION, 11]) + bytes([1] * 11) + body[5:],  # more coordinates than there are
        bytes([UNION, 2, 3, 0]) + body[5:],  # a place twice
        bytes([UNION, 2, 0]) + body[3:],
        bytes([UNION, 2, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 1]) + body[5:],  # a place beyond all
        bytes([UNION, 1, 3]) + body[5:],  # one place less than there are levels
        bytes([UNION]),
        bytes([4]) + body[1:],
    ]
    for each in wrong:
        with pytest.raises(dp.CorruptPayload):
            codec.decode(each, context)
    other = PublicContext(layout=LAYOUT, public_support=dp.Seeded(seed=5, k=100))
    with pytest.raises(dp.CorruptPayload):
        codec.decode(body, other)


def test_a_client_sends_on_its_own_support_and_names_no_places():
    """Only a broadcast names places: by a few thousand of them, a client would make the server compute for a minute."""
    own, more = dp.Dealt(seed=5, k=100, places=(2,)), dp.Dealt(seed=5, k=100, places=(2, 200))
    context = PublicContext(layout=LAYOUT, public_support=own, client=2)
    codec = dp.Codec(quantize=dp.Sign(), entropy=dp.FixedWidth())
    body, _ = codec.encode(
        np.ones(more.count(D), np.float32), more, replace(context, public_support=replace(own, places=()))
    )
    assert body[0] == UNION
    with pytest.raises(dp.CorruptPayload, match="support code 3"):
        codec.decode(body, context)
    with pytest.raises(ValueError, match="neither listed nor the public one"):
        codec.encode(np.ones(more.count(D), np.float32), more, context)


MECHANISM = (dp.Clip(1.0), dp.Gaussian(1.0))
OWN = dp.RandomK(0.1, per="client")


@pytest.mark.parametrize("outside", [dp.Everywhere(), dp.Listed(np.arange(3)), None], ids=["all", "few", "another's"])
@pytest.mark.parametrize(
    "pipe",
    [
        pipeline("client"),
        pipeline("layer"),
        dp.Pipeline(mechanism=MECHANISM, codec=dp.Codec(sparsify=OWN), feedback=False),
        dp.Pipeline(mechanism=MECHANISM, codec=dp.Codec(sparsify=OWN), unit="client", trust="server"),
    ],
    ids=["mechanism", "layer", "codec", "trusted"],
)
def test_an_update_outside_the_support_of_its_sender_is_refused(pipe, outside, monkeypatch):
    memory, server = pipe.init_client(LAYOUT, dp.PublicSeed(0), client=2), pipe.init_server(LAYOUT, dp.PublicSeed(0))
    support = outside or pipe.channel.message_context(pipe.codec, replace(memory, client=7)).public_support
    if outside is None and pipe.stages[0] == dp.RandomK(0.1, per="layer"):
        support = dp.Seeded(seed=1, k=100)
    update = dp.Update(values=np.ones(support.count(D)), layout=LAYOUT, address=memory.address, support=support)
    monkeypatch.setattr(dp.Codec, "select", lambda self, vector, candidates, context: candidates)  # a hostile sender
    payload, _ = pipe.send(with_claim(update, pipe.claim), memory)
    with pytest.raises(dp.CorruptPayload, match="its public support"):
        pipe.receive(payload, server)


def test_an_update_of_an_earlier_round_is_on_the_support_that_it_was_released_on():
    pipe = pipeline("client")
    memory, server = pipe.init_client(LAYOUT, dp.PublicSeed(0), client=2), pipe.init_server(LAYOUT, dp.PublicSeed(0))
    permit = dp.Ledger().charge(pipe.cost, memory.address)
    update = pipe.release([np.ones((1, D))], memory, dp.SecretSeed(), permit)
    broadcast, server = pipe.broadcast(np.zeros(D, np.float32), server)
    payload, _ = pipe.send(update, pipe.follow(broadcast, memory))
    received, _ = pipe.receive(payload, server)
    assert np.array_equal(received.dense(), update.dense())


def test_own_supports_of_broadcasts_alone_are_refused():
    with pytest.raises(ValueError, match="all coordinates would be sent"):
        dp.Pipeline(mechanism=MECHANISM, codec=dp.Codec(), downlink=dp.Codec(sparsify=OWN))
    smaller = dp.Codec(sparsify=OWN, quantize=dp.Uniform(4))
    dp.Pipeline(mechanism=MECHANISM, codec=dp.Codec(sparsify=OWN), downlink=smaller)


def test_places_of_many_permutations_take_no_longer_than_those_of_one():
    took = {}
    for step in (1, 10**6):
        places = tuple(range(step, 901 * step, step))
        started = time.process_time()
        assert dp.Dealt(seed=time.perf_counter_ns(), k=26, places=places).count(26_010) > 26
        took[step] = time.process_time() - started
    assert took[10**6] < 20 * took[1]  # a permutation after the other: 200 times as long


def test_a_sum_of_many_own_supports_does_not_look_at_all_places_for_each(monkeypatch):
    pipe, layout, n = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0))), dp.Layout.of(200), 200
    total = ReleasedSum(pipe.channel, pipe.init_server(layout, dp.PublicSeed(0)))
    supports = [dp.Dealt(seed=1, k=1, places=(place,)) for place in range(n)]
    updates = [
        with_claim(dp.Update(values=np.ones(1), layout=layout, address=dp.Address(0, i, 0), support=each), pipe.claim)
        for i, each in enumerate(supports)
    ]
    looks = []

    def counted(value, what, **ranges):
        looks.append(value)
        return value

    monkeypatch.setattr(support_module, "whole_number", counted)
    for update in updates:
        total.add(update)
    assert total.mean().support.places == tuple(range(n))
    assert len(looks) < 10 * n  # a union with each update looks at a place n²/2 times


class Outside:
    """A sparsifier that chooses a coordinate that no client sent."""

    def select(self, vector, candidates, context):
        outside = np.setdiff1d(np.arange(context.layout.size), candidates.indices(context.layout.size))
        return dp.Listed(outside[:1])


def test_a_broadcast_sends_nothing_that_no_client_sent():
    base = dp.Dealt(seed=5, k=100, places=())
    context = PublicContext(layout=LAYOUT, public_support=base, client=dp.SERVER)
    union = dp.Dealt(seed=5, k=100, places=(2, 3))
    with pytest.raises(ValueError, match="not among the 200 candidates"):
        dp.Codec(sparsify=Outside()).select(np.ones(D, np.float32), union, context)
    assert dp.Codec(sparsify=dp.RandomK(0.1, per="client")).select(np.ones(D, np.float32), union, context) == union

"""What a server reads, keeps and sends is bounded, whatever clients send."""

import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.federated import Server, TimedOut, largest_update
from dpcomp.federated.messages import REPLY, largest_message, write_snapshot
from dpcomp.wire import checkpoint
from dpcomp.wire.checkpoint import Checkpoint
from dpcomp.wire.frame import PAYLOAD, Frame
from dpcomp.wire.links import Link, Links
from tests.federated.ends import LAYOUT, NOISE, PIPELINE, RUN, RUN_ID, TOP, participant_of, server_of, update_of, zeros

CODECS = {
    "float32": dp.Codec(),
    "float16": dp.Codec(quantize=dp.Float16()),
    "16 bits": dp.Codec(quantize=dp.Uniform(16)),
    "16 bits, packed": dp.Codec(quantize=dp.Uniform(16), entropy=dp.FixedWidth()),
    "2 bits": dp.Codec(quantize=dp.Uniform(2)),
    "water-filling": dp.Codec(quantize=dp.Uniform(dp.Waterfill(12.0))),
    "listed": dp.Codec(sparsify=dp.TopK(1.0)),
    "listed, 16 bits": dp.Codec(sparsify=dp.TopK(0.9), quantize=dp.Uniform(16)),
    "rotated": dp.Codec(quantize=dp.Rotated()),
    "sign": dp.Codec(quantize=dp.Sign()),
    "ternary": dp.Codec(quantize=dp.Ternary()),
}


def memory_of(pipeline, client, layout=LAYOUT, server=False):
    begun = {"first_model": zeros(layout), "run_id": RUN_ID}
    return pipeline.init_server(layout, RUN, **begun) if server else pipeline.init_client(layout, RUN, client, **begun)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("layout", [{"one": (1,)}, {"a": (3, 5), "b": ()}, {"a": (60, 50), "b": (77,)}, 20_000])
def test_an_honest_payload_is_far_shorter_than_the_longest_that_is_read(name, layout):
    pipeline = dp.Pipeline(mechanism=NOISE, codec=CODECS[name])
    memory = memory_of(pipeline, 0, dp.Layout.of(layout))
    rng, d = np.random.default_rng(0), memory.layout.size
    for values in (rng.standard_normal(d), rng.standard_cauchy(d), np.zeros(d), 10.0 ** rng.uniform(-30, 10, d)):
        update = update_of(pipeline, memory).derive(values)
        assert len(pipeline.send(update, memory)[0]) < largest_message(d) / 2


def test_a_longer_message_is_refused_before_it_is_hashed(monkeypatch):
    server = server_of()
    frame = Frame(pipeline=bytes(8), run=0, client=1, round=0, version=0, shared=bytes(8), link_count=0, link=bytes(8))
    message = PAYLOAD.seal(frame, bytes(largest_message(LAYOUT.size)))
    monkeypatch.setattr("dpcomp.wire.frame.digest", None)
    assert server.handle(message, 1) is None
    assert server.refusals == {"length": 1}


def test_a_round_takes_no_memory_for_an_update():
    layout = dp.Layout.of(20_000)
    pipeline = dp.Pipeline(mechanism=NOISE, codec=dp.Codec(), feedback=False)
    server = Server(pipeline.channel, memory_of(pipeline, 0, layout, server=True), zeros(layout))
    payloads = []
    for client in range(60):
        memory = memory_of(pipeline, client, layout)
        payloads.append(pipeline.send(update_of(pipeline, memory, client), memory)[0])
    for client in range(20):
        server.handle(payloads[client], client)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for client in range(20, 60):
        server.handle(payloads[client], client)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(server.accepted) == 60
    assert after - before < 40 * 2000  # a link and 16 bytes each; an update has 80,000
    assert peak - before < 12 * 80_000


def test_the_mean_does_not_depend_on_the_order():
    pipeline = dp.Pipeline(mechanism=NOISE, codec=dp.Codec())
    payloads = []
    for client in range(12):
        memory = memory_of(pipeline, client)
        update = update_of(pipeline, memory, client)
        scale = np.float32(10.0) ** np.random.default_rng(client).integers(-20, 20, LAYOUT.size).astype(np.float32)
        payloads.append(pipeline.send(update.derive(update.dense() * scale), memory)[0])
    broadcasts = set()
    for seed in range(6):
        server = Server(pipeline.channel, memory_of(pipeline, 0, server=True), zeros())
        for client in np.random.default_rng(seed).permutation(12).tolist():
            server.handle(payloads[client], client)
        broadcasts.add(server.close_round())
    assert len(broadcasts) == 1


def test_a_snapshot_is_made_once_a_version(monkeypatch):
    layout, made = dp.Layout.of(1000), []
    server = Server(PIPELINE.channel, memory_of(PIPELINE, 0, layout, server=True), zeros(layout))

    def counted(*arguments):
        made.append(arguments)
        return write_snapshot(*arguments)

    monkeypatch.setattr("dpcomp.federated.server.state.write_snapshot", counted)
    for version in range(200):
        server.close_round()
        if version in (150, 199):
            for client in range(5):
                (hello,) = participant_of(client=client, layout=layout).handle(TimedOut())
                reply, body = REPLY.unseal(server.handle(hello, client))
                assert reply.snapshot == 1
                assert len(body) <= 4 * layout.size + 100
    assert len(made) == 2


BOUND = largest_update(clip_norm=1.0, noise_multiplier=0.5, coordinates=LAYOUT.size)


def bounded(**more):
    pipeline = dp.Pipeline(mechanism=NOISE, codec=TOP, unit="client")
    return pipeline, Server(pipeline.channel, memory_of(pipeline, 0, server=True), zeros(), **more)


def test_an_update_beyond_what_the_configuration_allows_is_refused():
    pipeline, server = bounded(largest_update=BOUND)
    for client, scale in ((1, 1.0), (2, 1000.0)):
        memory = memory_of(pipeline, client)
        update = update_of(pipeline, memory)
        update = update.derive(np.float32(0.5 * scale) * update.dense())
        assert server.handle(pipeline.send(update, memory)[0], client) is not None
    assert [one.client for one in server.accepted] == [1]
    assert server.refusals == {"size": 1}
    with pytest.raises(ValueError, match="above 0"):
        bounded(largest_update=0.0)


@pytest.mark.parametrize("quantize", [None, dp.Sign(), dp.Uniform(2), dp.Uniform(8), dp.Rotated(), dp.Float16()])
@pytest.mark.parametrize("sparsify", [None, dp.TopK(0.05), dp.RandomK(0.1)])
def test_no_honest_update_is_refused_over_rounds_with_feedback(quantize, sparsify):
    codec = dp.Codec(sparsify=sparsify, quantize=quantize)
    pipeline = dp.Pipeline(mechanism=NOISE, codec=codec, downlink=dp.Codec(), unit="client")
    bound = largest_update(clip_norm=1.0, noise_multiplier=0.5, coordinates=LAYOUT.size, rounds=12)
    client, server = memory_of(pipeline, 1), memory_of(pipeline, 0, server=True)
    ledger = dp.Ledger()
    for number in range(12):
        block = np.random.default_rng(number).standard_normal((1, LAYOUT.size)).astype(np.float32)
        permit = ledger.charge(pipeline.cost, client.address)
        update = pipeline.release([100 * block], client, dp.SecretSeed(), permit)
        payload, client = pipeline.send(update, client)
        decoded, server = pipeline.receive(payload, server)
        assert np.linalg.norm(decoded.values.astype(np.float64)) < bound
        broadcast, server = pipeline.broadcast(decoded, server)
        client = pipeline.follow(broadcast, client)


def test_the_bound_holds_for_poisson_batches_of_any_size():
    rng = np.random.default_rng(3)
    for batch, examples in ((1.0, 1000), (30.0, 300), (256.0, 60_000)):
        bound = largest_update(
            clip_norm=2.0,
            noise_multiplier=1.0,
            coordinates=50,
            releases=4,
            learning_rate=0.5,
            expected_batch_size=batch,
        )
        for _ in range(2000):  # every example pulls in one direction
            counts = rng.binomial(examples, batch / examples, 4)
            total = 2.0 * counts.sum() * np.eye(50)[0] + rng.normal(0, 2.0, (4, 50)).sum(axis=0)
            assert np.linalg.norm(0.5 * total / batch) < bound / 2


@pytest.mark.parametrize("wrong", [{"clip_norm": 0.0}, {"chance": 1.0}, {"releases": 0}, {"noise_multiplier": -1.0}])
def test_numbers_without_a_bound_are_refused(wrong):
    with pytest.raises(ValueError, match="above 0"):
        largest_update(**{"clip_norm": 1.0, "noise_multiplier": 1.0, "coordinates": 10} | wrong)


def one_link(client, count=1, support=None):
    last = dp.Address(5, client, count - 1)
    return Link(count=count, digest=b"\0" * 7 + b"\1", last=last, last_version=count - 1, last_support=support)


def test_links_are_values_like_a_dict():
    rng = np.random.default_rng(0)
    links, mirror, kept = Links(), {}, []
    for number in range(6000):
        client = int(rng.integers(2**32 - 1)) if number % 3 else int(rng.integers(50))
        support = dp.Listed(np.sort(rng.choice(1000, 5, replace=False))) if number % 5 == 0 else None
        link = one_link(client, mirror[client].count + 1 if client in mirror else 1, support)
        links, mirror[client] = links.replaced(client, link), link
        if number in (10, 2000):
            kept.append((links, dict(mirror)))
    for value, expected in [*kept, (links, mirror)]:
        assert len(value) == len(expected) and dict(value) == expected
        again = Links.from_columns(value.columns())
        assert again == value and dict(again) == expected
        assert 2**31 + 12345 not in again or 2**31 + 12345 in expected


def test_a_link_without_its_last_address_is_refused():
    with pytest.raises(ValueError, match="address"):
        Links({1: Link(count=2)})


def test_the_last_support_is_kept_only_where_the_codec_needs_it():
    for entropy, kept in ((dp.RangeCoder(), True), (dp.FixedWidth(), False)):
        pipeline = dp.Pipeline(mechanism=NOISE, codec=replace(TOP, entropy=entropy))
        client, server = memory_of(pipeline, 1), memory_of(pipeline, 0, server=True)
        payload, after = pipeline.send(update_of(pipeline, client), client)
        _, server = pipeline.receive(payload, server)
        assert server.link(1) == after.link
        assert (after.link.last_support is not None) == kept


@pytest.mark.slow
def test_a_million_links_fit_into_memory_and_a_checkpoint(tmp_path):
    links = Links()
    tracemalloc.start()
    for client in range(10**6):
        links = links.replaced(client, one_link(client))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100e6
    memory = replace(PIPELINE.init_server(LAYOUT, RUN), links=links)
    started = time.perf_counter()
    checkpoint.save(tmp_path, Checkpoint(memory, zeros()))
    again = checkpoint.load(tmp_path, PIPELINE.channel).memory.links
    assert time.perf_counter() - started < 10
    assert len(again) == 10**6 and again[77] == links[77]
    started = time.perf_counter()
    for client in range(5000):
        links = links.replaced(client, one_link(client, 2))
    assert (time.perf_counter() - started) / 5000 < 1e-3

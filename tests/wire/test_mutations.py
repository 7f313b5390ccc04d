"""Hostile bytes, by the ten thousand: refused as they should be, at no more than an update's cost, without a trace."""

import contextlib
import struct
import tracemalloc
from collections import Counter
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.core.public_context import PublicContext
from dpcomp.wire.frame import FULL_HEADER_BYTES, PAYLOAD
from dpcomp.wire.headers import read
from dpcomp.wire.short_header import SHORT_HEADER_BYTES
from dpcomp.wire.update import with_claim
from tests.cpu_time import cpu_loops

FAST_PER_CODEC, SLOW_PER_CODEC = 105, 3600
MOST_LOOPS = 80  # of a million steps in Python, for one message: about a second
DENSE_MULTIPLES = 4  # of the dense update's bytes, at most, to read any message
SMALL_BYTES = 2**22  # tables of 2^16 symbols, and what Python itself takes
SMALL = {"a": (12, 25), "scalar": (), "empty": (0,), "b": (99,)}
LARGE = {"a": (600, 1000), "scalar": (), "empty": (0,), "b": (399_999,)}
PREDICT = dp.LastBroadcast()
CODECS = {
    "float32": dp.Codec(),
    "float32 packed": dp.Codec(quantize=dp.Float32(), entropy=dp.FixedWidth()),
    "float16": dp.Codec(quantize=dp.Float16()),
    "uniform": dp.Codec(quantize=dp.Uniform(5)),
    "wide": dp.Codec(quantize=dp.Uniform(14)),
    "int8": dp.Codec(quantize=dp.Uniform(8), entropy=dp.FixedWidth()),
    "odd width": dp.Codec(quantize=dp.Uniform(11), entropy=dp.FixedWidth()),
    "stochastic": dp.Codec(quantize=dp.Uniform(3, rounding=dp.Stochastic())),
    "dithered": dp.Codec(quantize=dp.Uniform(4, rounding=dp.Dithered())),
    "dithered packed": dp.Codec(quantize=dp.Uniform(4, rounding=dp.Dithered()), entropy=dp.FixedWidth()),
    "equal": dp.Codec(quantize=dp.Uniform(dp.Equal(4))),
    "waterfill": dp.Codec(quantize=dp.Uniform(dp.Waterfill(2.5))),
    "waterfill packed": dp.Codec(quantize=dp.Uniform(dp.Waterfill(2.5)), entropy=dp.FixedWidth()),
    "fixed step": dp.Codec(quantize=dp.Uniform(dp.FixedStep(0.01), rounding=dp.Dithered())),
    "sign": dp.Codec(quantize=dp.Sign()),
    "sign packed": dp.Codec(quantize=dp.Sign(), entropy=dp.FixedWidth()),
    "ternary": dp.Codec(quantize=dp.Ternary()),
    "ternary packed": dp.Codec(quantize=dp.Ternary(), entropy=dp.FixedWidth()),
    "rotated": dp.Codec(quantize=dp.Rotated()),
    "rotated packed": dp.Codec(sparsify=dp.TopK(0.5), quantize=dp.Rotated(), entropy=dp.FixedWidth()),
    "exact": dp.Codec(quantize=dp.ExactGaussian(cohort=4)),
    "top": dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4)),
    "top packed": dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4), entropy=dp.FixedWidth()),
    "top float32": dp.Codec(sparsify=dp.TopK(0.1)),
    "top of layers": dp.Codec(sparsify=dp.TopK(0.1, per="layer"), quantize=dp.Uniform(dp.Waterfill(3.0))),
    "random": dp.Codec(sparsify=dp.RandomK(0.2), quantize=dp.Uniform(4)),
    "random rotated": dp.Codec(sparsify=dp.RandomK(0.4), quantize=dp.Rotated()),
    "predicted": dp.Codec(predict=PREDICT, sparsify=dp.TopK(0.2), quantize=dp.Uniform(4)),
    "predicted packed": dp.Codec(predict=PREDICT, quantize=dp.Uniform(dp.Waterfill(4.0)), entropy=dp.FixedWidth()),
    "predicted float32": dp.Codec(predict=PREDICT),
}
EVERY_CODEC = pytest.mark.parametrize("name", CODECS)
LARGE_AND_FAST = (
    "float32",
    "wide",
    "waterfill packed",
    "odd width",
    "dithered",
    "rotated",
    "top",
    "top packed",
    "predicted",
    "predicted float32",
)


@dataclass(frozen=True)
class Victim:
    """Both ends in the middle of a run: each has accepted a message, and waits for the next."""

    pipeline: dp.Pipeline
    server: dp.ServerMemory
    client: dp.ClientMemory
    up: bytes  # what the server waits for, with a full header
    down: bytes  # what the client waits for, with a full header
    short: tuple[bytes, bytes]  # both as they travel

    def receive(self, payload):
        return self.pipeline.receive(payload, self.server)[0].dense()

    def follow(self, payload):
        return self.pipeline.follow(payload, self.client).step.dense()

    @property
    def ways(self):
        """What reads, whose memory it is, and what it waits for."""
        return (self.receive, self.server, self.up), (self.follow, self.client, self.down)


def heavy_tailed(rng, layout):
    """Layers of different size, whose large values mostly stay where they were."""
    scales = np.repeat(2.0 ** -np.arange(len(layout.sizes)), layout.sizes)
    places = np.random.default_rng(5).standard_t(2.5, layout.size)
    return (scales * (places + 0.3 * rng.standard_normal(layout.size))).astype(np.float32)


def pipeline_of(codec):
    if codec.noise_share is None:
        return dp.Pipeline(mechanism=dp.unsafe("a test of the wire"), codec=codec)
    trusted = {"unit": "client", "trust": "server", "mechanism": (dp.Clip(1.0), dp.Gaussian(0.1))}
    return dp.Pipeline(**trusted, codec=codec, downlink=dp.Codec(), feedback=False)


@lru_cache(maxsize=len(CODECS) + 1)
def victim(name, large=False, run=7, rounds=1):
    """Ends that have `rounds` messages behind them each way, so that a last support and a broadcast are known."""
    pipeline = pipeline_of(CODECS[name])
    layout, seed, rng = dp.Layout.of(LARGE if large else SMALL), dp.PublicSeed(run), np.random.default_rng(run)
    keys = dp.DitherKeys(bytes(32)) if pipeline.largest_cohort else None
    run_id = keys and b"mutation"
    client = pipeline.init_client(layout, seed, client=1, run_id=run_id, dither_key=keys and keys.of(1))
    server = pipeline.init_server(layout, seed, run_id=run_id, dither_keys=keys)

    def update(memory):
        values = heavy_tailed(rng, layout)
        return with_claim(dp.Update(values=values, layout=layout, address=memory.address), pipeline.claim)

    for _ in range(rounds):
        payload, client = pipeline.send(update(client), client)
        _, server = pipeline.receive(payload, server)
        payload, server = pipeline.broadcast(update(server), server)
        client = pipeline.follow(payload, client)
    short = pipeline.send(update(client), client)[0], pipeline.broadcast(update(server), server)[0]
    up, down = (read(payload, server).in_full() for payload in short)
    return Victim(pipeline, server, client, up, down, short)


def state(memory):
    """All that a memory holds, as values."""
    shared, residual = memory.shared, None if memory.residual is None else memory.residual.tobytes()
    step = None if memory.step is None else memory.step.dense().tobytes()
    links = memory.link if isinstance(memory, dp.ClientMemory) else dict(memory.links)
    return shared.version, shared.digest, step, shared.last_support, residual, links


@dataclass
class Outcomes:
    """What became of the messages, and the most that one of them cost."""

    counts: Counter
    most_loops: float = 0.0
    most_bytes: int = 0

    def read(self, act, payload, memory, kind):
        """One message; any other answer than the three that are allowed fails, and shows the bytes."""
        before, d = state(memory), memory.layout.size
        tracemalloc.start()  # only now: it would slow down what prepares the messages
        tracemalloc.reset_peak()
        held, _ = tracemalloc.get_traced_memory()
        try:
            with cpu_loops() as loops:
                vector = act(payload)
        except (dp.CorruptPayload, dp.VersionMismatch) as refusal:
            found = type(refusal).__name__
        except BaseException as error:  # a panic of a compiled library is no Exception
            raise AssertionError(f"{kind} gave {error!r}: {payload[:300].hex()}") from error
        else:
            assert vector.shape == (d,) and vector.dtype == np.float32, payload[:300].hex()
            assert np.isfinite(vector).all(), f"{kind} gave what is not finite: {payload[:300].hex()}"
            found = "an update"
        peak = tracemalloc.get_traced_memory()[1] - held
        self.counts[kind.split()[0], found] += 1
        self.most_loops, self.most_bytes = max(self.most_loops, loops.count), max(self.most_bytes, peak)
        assert loops.count < MOST_LOOPS, f"{kind} took {loops.count:.1f} loops: {payload[:300].hex()}"
        assert peak <= DENSE_MULTIPLES * 4 * d + SMALL_BYTES, (
            f"{kind} took {peak / (4 * d):.1f} times the update's bytes: {payload[:300].hex()}"
        )
        assert state(memory) == before, f"{kind} left a trace: {payload[:300].hex()}"
        return found


@pytest.fixture
def outcomes(request):
    """Counts, while memory is traced; `pytest -s` shows what was found."""
    found = Outcomes(Counter())
    yield found
    tracemalloc.stop()
    counts = {", ".join(key): count for key, count in sorted(found.counts.items())}
    print(f"\n{request.node.name}: {counts}, at most {found.most_loops:.2f} loops and {found.most_bytes} bytes")


def leb128(number):
    coded = bytearray()
    while number >= 0x80:
        coded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*coded, number])


HOSTILE_BYTES = (0, 1, 2, 3, 15, 16, 127, 128, 129, 254, 255)
HOSTILE_NUMBERS = tuple(map(leb128, (0, 1, 398, 400, 401, 2**16, 2**31, 2**32 - 1, 2**32, 2**35 - 1, 2**35, 2**40)))


def damaged(rng, payload, others):
    """The bytes after damage that knows nothing of checksums: how, and what they are now."""
    kind, mutated = rng.integers(6), bytearray(payload)
    if kind == 0:
        for _ in range(rng.integers(1, 4)):
            mutated[rng.integers(len(mutated))] ^= 1 << rng.integers(8)
    elif kind == 1:
        for _ in range(rng.integers(1, 9)):
            mutated[rng.integers(len(mutated))] = rng.integers(256)
    elif kind == 2:
        del mutated[rng.integers(len(mutated)) :]
    elif kind == 3:
        mutated += rng.bytes(rng.integers(1, 40))
    elif kind == 4:
        mutated = payload[: rng.integers(FULL_HEADER_BYTES + 1)] + rng.bytes(rng.integers(200))
    else:
        mutated = payload[:FULL_HEADER_BYTES] + others[rng.integers(len(others))][FULL_HEADER_BYTES:]
    return ("flipped", "changed", "cut", "extended", "garbage", "spliced")[kind], bytes(mutated)


def hostile_body(rng, body, others):
    """A body that an attacker may write, mostly changed where the integers stand that decide how the rest is read."""
    kind, mutated = rng.choice(7, p=[0.35, 0.2, 0.1, 0.1, 0.15, 0.05, 0.05]), bytearray(body)
    front = min(40, len(mutated))
    if kind == 0:
        for _ in range(rng.integers(1, 4)):
            mutated[rng.integers(front)] = HOSTILE_BYTES[rng.integers(len(HOSTILE_BYTES))]
    elif kind == 1:
        mutated[rng.integers(front)] ^= 1 << rng.integers(8)
    elif kind == 2:
        for _ in range(rng.integers(1, 9)):
            mutated[rng.integers(len(mutated))] = rng.integers(256)
    elif kind == 3:
        at = rng.integers(len(mutated))
        mutated = mutated[:at] + rng.bytes(rng.integers(9)) + mutated[at + rng.integers(9) :]
    elif kind == 4:
        at = rng.integers(front)
        number = HOSTILE_NUMBERS[rng.integers(len(HOSTILE_NUMBERS))]
        mutated = mutated[:at] + number + mutated[at + rng.integers(1, 3) :]
    elif kind == 5:
        other = others[rng.integers(len(others))][FULL_HEADER_BYTES:]
        mutated = other if rng.random() < 0.5 else mutated[: rng.integers(len(mutated))] + other[rng.integers(5) :]
    else:
        number = leb128(int(rng.choice([0, 1, 40, 80, 400, 401, 2**32 - 1])))
        mutated = bytes([rng.integers(5)]) + number + body[1:]
    names = ("front bytes", "front bits", "bytes", "stretches", "numbers", "foreign bodies", "supports")
    return "forged " + names[kind], bytes(mutated)


def forged(payload, body):
    """The payload with another body, under a checksum that fits."""
    frame, _ = PAYLOAD.unseal(payload)
    return PAYLOAD.seal(frame, body)


def hostile_frame(rng, payload):
    """The payload with one field of its header changed, under a checksum that fits."""
    frame, body = PAYLOAD.unseal(payload)
    names = [field.name for field in fields(frame)]
    name = names[rng.integers(len(names))]
    old = getattr(frame, name)
    if isinstance(old, bytes):
        return PAYLOAD.seal(replace(frame, **{name: rng.bytes(len(old))}), body)
    return PAYLOAD.seal(
        replace(frame, **{name: int(rng.choice([0, 1, 2, min(old + 1, 2**32 - 1), 2**31, 2**32 - 1]))}), body
    )


def attack(name, count, outcomes):
    """`count` hostile messages in both directions: a third damaged, the others forged."""
    rng, target = np.random.default_rng(list(CODECS).index(name)), victim(name)
    others = [payload for other in ("float32", "top", "top packed", "rotated", name) for payload in ways_of(other)]
    for number in range(count):
        act, memory, payload = target.ways[number % 2]
        allowed = {"CorruptPayload"}
        if number % 12 in (3, 6):  # once each way
            payload = target.short[number % 2]
            assert len(payload) == SHORT_HEADER_BYTES + len(target.ways[number % 2][2]) - FULL_HEADER_BYTES
            kind, mutated = damaged(rng, payload, others)
            allowed |= {"VersionMismatch"}  # once in 65,536 times
        elif number % 3 == 0:
            kind, mutated = damaged(rng, payload, others)
        elif number % 30 == 1:
            kind, mutated = "readdressed", hostile_frame(rng, payload)
        else:
            kind, body = hostile_body(rng, payload[FULL_HEADER_BYTES:], others)
            mutated = forged(payload, body)
        if mutated == payload:
            continue
        found = outcomes.read(act, mutated, memory, kind)
        assert found in allowed or number % 3 != 0, f"{kind} was not noticed"


def ways_of(name):
    return victim(name).up, victim(name).down


def test_the_attacked_supports_are_told_in_two_worlds_and_by_layers_behind_gains():
    for payload in ways_of("top"):
        assert payload[FULL_HEADER_BYTES + 3] == 2
    for payload in ways_of("predicted"):
        body = payload[FULL_HEADER_BYTES:]
        gains, body = body[: len(SMALL)], body[len(SMALL) :]
        assert any(gains) and body[3] == 2 and len(SMALL) in (body[4], body[6])


@EVERY_CODEC
def test_hostile_messages_are_refused_or_are_updates_and_cost_little(name, outcomes):
    attack(name, FAST_PER_CODEC, outcomes)
    assert {found for _, found in outcomes.counts} >= {"CorruptPayload", "an update"}


@pytest.mark.slow
@EVERY_CODEC
def test_a_hundred_thousand_hostile_messages_are_refused_or_are_updates(name, outcomes):
    attack(name, SLOW_PER_CODEC, outcomes)
    assert len(CODECS) * SLOW_PER_CODEC > 100_000
    assert {found for _, found in outcomes.counts} == {"CorruptPayload", "VersionMismatch", "an update"}


@EVERY_CODEC
def test_what_was_not_meant_for_this_end_now_is_refused_as_such(name):
    target, another = victim(name), "top" if name != "top" else "uniform"
    strangers = [victim(another), victim(name, run=8), victim(name, rounds=0), victim(name, rounds=2)]
    for act, memory, payload in target.ways:
        before = state(memory)
        for stranger in [payload for one in strangers for payload in (one.up, one.down, *one.short)]:
            with pytest.raises(dp.VersionMismatch):
                act(stranger)
        frame, body = PAYLOAD.unseal(payload)
        for changed in (
            {"client": 2} if payload == target.up else {"client": 1},  # its link has another count; no broadcast
            {"client": dp.SERVER} if payload == target.up else {"client": 3},
            {"version": frame.version + 1},
            {"shared": bytes(8)},
            {"pipeline": bytes(8)},
        ):
            with pytest.raises(dp.VersionMismatch):
                act(PAYLOAD.seal(replace(frame, **changed), body))
        with pytest.raises(dp.VersionMismatch):
            act(target.down if payload == target.up else target.up)
        assert state(memory) == before


@EVERY_CODEC
def test_what_either_end_waits_for_is_read_after_all_that(name):
    for (act, memory, payload), short in zip(victim(name).ways, victim(name).short, strict=True):
        assert act(payload).shape == (memory.layout.size,)
        assert act(short).tobytes() == act(payload).tobytes()


def large_attack(name, count, outcomes):
    rng, target = np.random.default_rng(1), victim(name, large=True)
    act, memory, payload = target.ways[0]
    outcomes.read(act, payload, memory, "honest")
    for _ in range(count):
        kind, body = hostile_body(rng, payload[FULL_HEADER_BYTES:], [target.down])
        outcomes.read(act, forged(payload, body), memory, kind)


@pytest.mark.parametrize("name", LARGE_AND_FAST)
def test_reading_a_million_coordinates_takes_four_times_their_bytes_at_most(name, outcomes):
    large_attack(name, 3, outcomes)


@pytest.mark.slow
@EVERY_CODEC
def test_reading_a_million_hostile_coordinates_takes_four_times_their_bytes_at_most(name, outcomes):
    large_attack(name, 100, outcomes)


@pytest.mark.parametrize("number", [2**31, 2**34, 2**35 - 1, 2**35, 2**40, 2**63])
def test_a_number_that_declares_more_than_there_is_costs_nothing_wherever_it_stands(number, outcomes):
    act, memory, payload = victim("top", large=True).ways[0]
    body = payload[FULL_HEADER_BYTES:]
    for at in range(5, 45):
        outcomes.read(act, forged(payload, body[:at] + leb128(number) + body[at + 1 :]), memory, "numbers")
        outcomes.read(act, forged(payload, body[:at] + leb128(number)), memory, "numbers")
    assert outcomes.counts["numbers", "CorruptPayload"] > 40


def test_a_support_of_all_that_a_header_can_declare_costs_nothing(outcomes):
    for name in ("top", "top packed", "random"):
        act, memory, payload = victim(name, large=True).ways[0]
        for kind in range(4):
            body = bytes([kind]) + leb128(2**32 - 1) + payload[FULL_HEADER_BYTES + 1 :]
            assert outcomes.read(act, forged(payload, body), memory, "supports") == "CorruptPayload"
    assert outcomes.most_bytes < 2 * len(victim("top packed", large=True).up) + SMALL_BYTES


def test_a_cluster_of_positions_and_one_far_away_are_read_in_little_time():
    d = 2**22
    layout, positions = dp.Layout.of(d), np.append(np.arange(d // 2), d - 1)
    codec = dp.Codec(quantize=dp.Sign())
    body, _ = codec.encode(np.ones(len(positions), np.float32), dp.Listed(positions), PublicContext(layout=layout))
    with cpu_loops() as loops:
        _, support = codec.decode(body, PublicContext(layout=layout))
    np.testing.assert_array_equal(support.indices(d), positions)
    assert loops.count < MOST_LOOPS


def test_a_table_for_each_of_a_thousand_layers_is_read_in_little_time():
    layers, each = 1000, 2000
    layout = dp.Layout.of({str(number): (each,) for number in range(layers)})
    side = b"\x80\x3f" * layers + b"\xff" * (layers // 8) + b"\x10\x00\x01\x01" * layers
    body = b"\0" + leb128(len(side)) + side
    with cpu_loops() as loops:
        values, _ = dp.Codec(quantize=dp.Uniform(4)).decode(body, PublicContext(layout=layout))
    assert not values.any() and len(values) == layers * each
    assert loops.count < MOST_LOOPS


def test_many_tiny_layers_with_tables_of_their_own_take_four_times_the_update_at_most():
    layers = 5000
    layout = dp.Layout.of({str(number): (20,) for number in range(layers)})
    side = b"\x80\x3f" * layers + b"\xff" * (layers // 8) + b"\x10\x00\x01\x01" * layers
    body = b"\0" + leb128(len(side)) + side
    codec = dp.Codec(quantize=dp.Uniform(4))
    tracemalloc.start()
    with cpu_loops() as loops, contextlib.suppress(dp.CorruptPayload):
        codec.decode(body, PublicContext(layout=layout))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loops.count < MOST_LOOPS
    assert peak <= DENSE_MULTIPLES * 4 * layout.size + SMALL_BYTES


def test_the_largest_tables_of_a_thousand_layers_of_two_values_are_read_in_little_time():
    layers = 1000
    layout = dp.Layout.of({str(number): (2,) for number in range(layers)})
    # Every bit of a level is its symbol; from -32767 on, 65535 of them, of which the first and the last occur.
    table = leb128(16) + leb128(65533) + leb128(65535) + b"\x01\x00" + leb128(65533) + b"\x01"
    side = b"\x80\x3f" * layers + b"\xff" * (layers // 8) + table * layers
    body = b"\0" + leb128(len(side)) + side
    with cpu_loops() as loops, contextlib.suppress(dp.CorruptPayload):
        dp.Codec(quantize=dp.Uniform(16)).decode(body, PublicContext(layout=layout))
    assert loops.count < MOST_LOOPS


@pytest.mark.parametrize("gain", [127, -128, 64])
def test_a_gain_never_makes_an_estimate_that_is_not_finite(gain):
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a test of the wire"), codec=CODECS["predicted float32"], feedback=False)
    client, server = pipeline.init_client(2, dp.PublicSeed(0), client=1), pipeline.init_server(2, dp.PublicSeed(0))
    large = np.array([3e38, 1.0], np.float32)
    down, server = pipeline.broadcast(large, server)
    client = pipeline.follow(down, client)
    update = with_claim(dp.Update(values=large, layout=client.layout, address=client.address), pipeline.claim)
    payload, _ = pipeline.send(update, client)
    values = (np.sign(gain) * large).astype("<f4").tobytes()
    body = struct.pack("<bB", gain, 0) + b"\x08" + values
    try:
        estimate, _ = pipeline.receive(forged(payload, body), server)
    except dp.CorruptPayload:
        return
    assert np.isfinite(estimate.dense()).all()

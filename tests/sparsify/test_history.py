"""A support from released history is one file: this one stands for any other."""

from dataclasses import dataclass

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.codec.quantize import Bounds
from dpcomp.federated import BroadcastReceived, Participant, ReplyReceived, Server, TimedOut, Trained
from dpcomp.federated.phases import Phase
from dpcomp.sparsify.top_k_indices import top_k_indices
from dpcomp.wire import checkpoint
from dpcomp.wire.bits_by_part import measure_payload
from dpcomp.wire.checkpoint import Checkpoint
from dpcomp.wire.loopback import Loopback

D, SHARE = 200, 0.1
SEED = dp.PublicSeed(4)
NOISE = (dp.Clip(1.0), dp.Gaussian(1.0))


@dataclass(frozen=True)
class HistoryTopK:
    """The coordinates that moved most so far; before any broadcast, the first ones."""

    fraction: float

    def initial_history(self, layout):
        return np.zeros(layout.size, np.float32)

    def update_history(self, history, broadcast, layout):
        return np.float32(0.5) * history + broadcast * broadcast

    def public_support(self, context):
        return dp.Listed(top_k_indices(context.history, round(self.fraction * context.layout.size)))

    def claim(self, before, where):
        return before

    def apply(self, value, context):
        return value.restrict(self.public_support(context))

    def select(self, vector, candidates, context):
        return self.public_support(context)


def in_mechanism(**terms):
    stages = (HistoryTopK(SHARE), dp.Clip(1.0), dp.Gaussian(1.0))
    return dp.Pipeline(mechanism=stages, codec=dp.Codec(quantize=dp.Uniform(4)), downlink=dp.Codec(), **terms)


def in_codec():
    codec = dp.Codec(sparsify=HistoryTopK(SHARE), quantize=dp.Uniform(4))
    return dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=codec, downlink=dp.Codec())


def moved(number):
    """A step that is large on other coordinates every round."""
    vector = np.full(D, 0.01, np.float32)
    vector[number * 20 : number * 20 + 20] = 1.0
    return vector


@pytest.mark.parametrize("make", [in_mechanism, in_codec])
def test_both_ends_compute_the_support_and_its_positions_cost_nothing(make):
    pipeline = make()
    assert pipeline.guarantee(3, 1e-5) == dp.Pipeline(mechanism=pipeline.stages[-2:]).guarantee(3, 1e-5)
    client = pipeline.init_client(D, SEED, client=1)
    ends, ledger = Loopback(pipeline.channel, pipeline.init_server(D, SEED), {1: client}), dp.Ledger()
    for number in range(4):
        memory = ends.clients[1]
        permit = ledger.charge(pipeline.cost, memory.address)
        update = pipeline.release([np.ones((2, D), np.float32)], memory, dp.SecretSeed(1), permit)
        delivery = ends.send(update)
        _, bits = measure_payload(pipeline.channel, delivery.payload, delivery.server_before)
        assert bits.index == 0
        start = 0 if number == 0 else 20 * (number - 1)
        np.testing.assert_array_equal(delivery.received.support.indices(D), np.arange(start, start + 20))
        assert delivery.received.values.shape == (20,)
        ends.broadcast(moved(number))
    assert ends.clients[1].shared.history.tobytes() == ends.server.shared.history.tobytes()


def test_history_is_made_of_broadcasts_alone():
    pipeline = in_mechanism()
    histories = []
    for data in (np.ones((2, D), np.float32), np.full((5, D), -3.0, np.float32)):
        client = pipeline.init_client(D, SEED, client=1)
        ends = Loopback(pipeline.channel, pipeline.init_server(D, SEED), {1: client})
        permit = dp.Ledger().charge(pipeline.cost, client.address)
        ends.send(pipeline.release([data], client, dp.SecretSeed(1), permit))
        ends.broadcast(moved(2))
        histories.append(ends.clients[1].shared.history.tobytes())
    assert histories[0] == histories[1]


def test_history_stands_in_checkpoints_and_snapshots(tmp_path):
    pipeline = in_mechanism()
    server = Server(pipeline.channel, pipeline.init_server(D, SEED), np.zeros(D, np.float32))
    client = Participant(pipeline.channel, pipeline.init_client(D, SEED, 1), np.zeros(D, np.float32), dp.Ledger())
    for _ in range(3):
        server.close_round()
    (hello,) = client.handle(TimedOut())
    client.handle(ReplyReceived(server.handle(hello, sender=1)))
    assert client.state.phase is Phase.SYNCED
    for number in range(2):
        memory = client.state.memory
        permit = client.ledger.charge(pipeline.cost, memory.address)
        update = pipeline.release([np.ones((2, D), np.float32)], memory, dp.SecretSeed(number), permit)
        (payload,) = client.handle(Trained(update))
        client.handle(ReplyReceived(server.handle(payload, sender=1)))
        client.handle(BroadcastReceived(server.close_round()))
    assert client.state.memory.shared.history.any()
    checkpoint.save(tmp_path, Checkpoint(client.state.memory))
    again = checkpoint.load(tmp_path, pipeline.channel).memory
    history = client.state.memory.shared.history.tobytes()
    assert again.shared.history.tobytes() == history == server.memory.shared.history.tobytes()
    away = Participant(pipeline.channel, pipeline.init_client(D, SEED, 2), np.zeros(D, np.float32), dp.Ledger())
    server._state.broadcasts.clear()  # the broadcasts are gone, so that a snapshot must do
    (hello,) = away.handle(TimedOut())
    away.handle(ReplyReceived(server.handle(hello, sender=2)))
    assert away.state.phase is Phase.SYNCED
    assert away.state.memory.shared.history.tobytes() == history


def test_one_pipeline_keeps_one_history():
    with pytest.raises(ValueError, match="public support"):
        dp.Pipeline(
            mechanism=(HistoryTopK(0.1), dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(sparsify=HistoryTopK(0.2))
        )


@dataclass(frozen=True)
class SpreadSign:
    """A quantiser whose scale, at both ends, is the largest magnitude of the broadcasts so far."""

    unbiased = False

    def initial_history(self, layout):
        return np.ones(1, np.float32)

    def update_history(self, history, broadcast, layout):
        return np.maximum(history, np.abs(broadcast).max())

    def side_bytes(self, counts, context):
        return 0

    def bounds(self, side, context):
        zeros = np.zeros(len(context.layout.shapes), np.int32)
        return Bounds(zeros, zeros + 1)

    def levels(self, values, counts, context):
        return (values >= 0).astype(np.int32), b""

    def values(self, levels, side, counts, context):
        return context.history[0] * (2 * levels - 1).astype(np.float32)


@pytest.mark.parametrize("link", ["uplink", "downlink", "both"])
def test_a_quantiser_reads_its_history_at_both_ends(link):
    own = dp.Codec(quantize=SpreadSign())
    codecs = {"uplink": (own, dp.Codec()), "downlink": (dp.Codec(), own), "both": (own, None)}[link]
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=codecs[0], downlink=codecs[1])
    ends = Loopback(pipeline.channel, pipeline.init_server(D, SEED), {1: pipeline.init_client(D, SEED, client=1)})
    ledger = dp.Ledger()
    ends.broadcast(3 * moved(1))
    memory = ends.clients[1]
    permit = ledger.charge(pipeline.cost, memory.address)
    received = ends.send(pipeline.release([np.ones((2, D), np.float32)], memory, dp.SecretSeed(1), permit)).received
    scale = 1.0 if link == "both" else 3.0
    assert ends.server.shared.history[0] == ends.clients[1].shared.history[0] == (1.0 if link != "uplink" else 3.0)
    if link == "uplink":
        assert set(np.abs(received.values)) == {np.float32(scale)}


@dataclass(frozen=True)
class Forgetful(dp.Nearest):
    """A rounding rule that would like a history, which no rounding rule is given."""

    def initial_history(self, layout):
        return np.zeros(1, np.float32)

    def update_history(self, history, broadcast, layout):
        return history


@dataclass(frozen=True)
class Recalling(Forgetful, dp.FixedWidth):
    """An entropy coder that would like one."""


def test_a_history_that_nobody_is_given_is_refused_by_name():
    for codec, place in (
        (dp.Codec(quantize=dp.Uniform(4, rounding=Forgetful())), "quantize.rounding"),
        (dp.Codec(entropy=Recalling()), "entropy"),
    ):
        for codecs in ({"codec": codec}, {"downlink": codec}):
            with pytest.raises(ValueError, match=rf"\(codec.{place}\) has a history, but .* reads history"):
                dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), **codecs)


def test_a_quantiser_and_a_sparsifier_do_not_both_keep_a_history():
    codec = dp.Codec(sparsify=HistoryTopK(0.1), quantize=SpreadSign())
    with pytest.raises(ValueError, match="both read history"):
        dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=codec, downlink=dp.Codec())


@dataclass(frozen=True)
class Odd(HistoryTopK):
    """A part whose history is not what ends can keep."""

    fault: str = ""

    def initial_history(self, layout):
        good = np.zeros(layout.size, np.float32)
        faults = {
            "none": None,
            "flat": good[None],
            "float64": good.astype(np.float64),
            "infinite": good + np.float32("inf"),
        }
        return faults.get(self.fault, good)

    def update_history(self, history, broadcast, layout):
        after = super().update_history(history, broadcast, layout)
        return {"wider": after.astype(np.float64), "shorter": after[:5], "NaN": after * np.float32("nan")}.get(
            self.fault, after
        )


@pytest.mark.parametrize("fault", ["none", "flat", "float64", "infinite", "wider", "shorter", "NaN"])
def test_a_history_that_a_snapshot_would_change_is_refused(fault):
    pipeline = dp.Pipeline(
        mechanism=NOISE, codec=dp.Codec(sparsify=Odd(SHARE, fault=fault)), downlink=dp.Codec(), feedback=False
    )

    def first_round():
        pipeline.broadcast(moved(0), pipeline.init_server(D, dp.PublicSeed(0)))

    with pytest.raises(ValueError, match=r"Odd.*_history gave .*(, not float32 of shape|not finite)"):
        first_round()


@pytest.mark.parametrize("method", ["initial_history", "update_history"])
@pytest.mark.parametrize("place", ["stage", "sparsifier"])
def test_a_part_with_half_a_history_is_refused(method, place):
    methods = {name: vars(HistoryTopK)[name] for name in ("public_support", "select", "claim", "apply", method)}
    half = dataclass(frozen=True)(type("Half", (), methods))()
    parts = (
        {"mechanism": (half, *NOISE)} if place == "stage" else {"mechanism": NOISE, "codec": dp.Codec(sparsify=half)}
    )
    with pytest.raises(ValueError, match=f"Half.* has {method}, but not"):
        dp.Pipeline(**parts)


@dataclass(frozen=True)
class Elsewhere(HistoryTopK):
    """A sparsifier that sends another support than it says."""

    def select(self, vector, candidates, context):
        return dp.Listed(np.arange(3))


def test_a_sparsifier_that_does_not_send_its_public_support_is_refused():
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a test", dp.Clip(1.0)), codec=dp.Codec(sparsify=Elsewhere(SHARE)))
    memory, ledger = pipeline.init_client(D, dp.PublicSeed(0), client=1), dp.Ledger()
    update = pipeline.release([], memory, dp.SecretSeed(), ledger.charge(pipeline.cost, memory.address))
    with pytest.raises(ValueError, match="another support than its public_support"):
        pipeline.send(update, memory)


LAST_BITS = [0]


@dataclass(frozen=True)
class Rounded(HistoryTopK):
    """A part whose history differs in the last bit between two machines."""

    def update_history(self, history, broadcast, layout):
        return np.nextafter(super().update_history(history, broadcast, layout), np.float32(LAST_BITS[0]))


def test_ends_whose_histories_differ_in_one_bit_do_not_understand_each_other(monkeypatch):
    pipeline = dp.Pipeline(mechanism=NOISE, codec=dp.Codec(sparsify=Rounded(SHARE)), downlink=dp.Codec())
    client, server = pipeline.init_client(D, SEED, client=1), pipeline.init_server(D, SEED)
    broadcast, server = pipeline.broadcast(moved(1), server)
    monkeypatch.setattr(f"{__name__}.LAST_BITS", [1])
    client = pipeline.follow(broadcast, client)
    permit = dp.Ledger().charge(pipeline.cost, client.address)
    payload, _ = pipeline.send(pipeline.release([], client, dp.SecretSeed(), permit), client)
    with pytest.raises(dp.VersionMismatch) as refusal:
        pipeline.receive(payload, server)
    assert refusal.value.reason == "version"


def test_a_client_whose_history_differs_gets_the_servers():
    pipeline = dp.Pipeline(mechanism=NOISE, codec=dp.Codec(sparsify=Rounded(SHARE)), downlink=dp.Codec())
    first = np.zeros(D, np.float32)
    server = Server(pipeline.channel, pipeline.init_server(D, SEED), first)
    client = Participant(pipeline.channel, pipeline.init_client(D, SEED, client=1), first, dp.Ledger())

    def resync():
        for hello in client.handle(TimedOut()):
            client.handle(ReplyReceived(server.handle(hello, sender=1)))

    resync()
    broadcast = server.close_round()
    LAST_BITS[0] = 1
    try:
        client.handle(BroadcastReceived(broadcast))
    finally:
        LAST_BITS[0] = 0
    resync()
    assert client.state.phase is Phase.SYNCED
    assert client.state.memory.shared.history.tobytes() == server.memory.shared.history.tobytes()


@dataclass(frozen=True)
class InPlace(HistoryTopK):
    """A part that adds to the history that it was given, or writes into it as it reads."""

    reads: bool = False

    def update_history(self, history, broadcast, layout):
        if not self.reads:
            history += np.abs(broadcast)
        return history

    def public_support(self, context):
        if self.reads:
            context.history[0] = -1
        return super().public_support(context)


@pytest.mark.parametrize("reads", [False, True])
def test_a_history_that_memories_share_cannot_be_changed(reads):
    codec = dp.Codec(sparsify=InPlace(SHARE, reads=reads))
    pipeline = dp.Pipeline(mechanism=NOISE, codec=codec, downlink=None if reads else dp.Codec())
    server = pipeline.init_server(D, SEED)
    with pytest.raises(ValueError, match="read-only"):
        pipeline.broadcast(moved(1), server)


@dataclass(frozen=True)
class Strided(HistoryTopK):
    """A part that returns a view of a larger array, which it changes afterwards."""

    def update_history(self, history, broadcast, layout):
        pairs = np.stack([history, history + np.abs(broadcast)], axis=1)
        return pairs[:, 1]


def test_a_strided_history_is_what_a_checkpoint_gives_back(tmp_path):
    pipeline = dp.Pipeline(mechanism=NOISE, codec=dp.Codec(sparsify=Strided(SHARE)), downlink=dp.Codec())
    _, server = pipeline.broadcast(moved(1), pipeline.init_server(D, SEED))
    model = np.arange(2 * D, dtype=np.float32)[::2]
    checkpoint.save(tmp_path, Checkpoint(server, model))
    again = checkpoint.load(tmp_path, pipeline.channel)
    assert again.memory.shared.history.tobytes() == np.abs(moved(1)).tobytes()
    np.testing.assert_array_equal(again.model, model)

"""The four messages of a round: nothing is lost, nothing is merged in silence, nothing unreleased leaves."""

import contextlib
from dataclasses import dataclass, replace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.wire.frame import PAYLOAD
from dpcomp.wire.short_header import SHORT_HEADER_BYTES
from dpcomp.wire.update import with_claim

D = 300
LAYOUT = {"weight": (20, 14), "bias": (20,)}
MECHANISM = (dp.Clip(1.0), dp.Gaussian(1.1))
CODECS = pytest.mark.parametrize(
    "codec",
    [
        dp.Codec(),
        dp.Codec(quantize=dp.Uniform(8), entropy=dp.FixedWidth()),
        dp.Codec(sparsify=dp.TopK(0.05)),
        dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4)),
        dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(3), entropy=dp.FixedWidth()),
        dp.Codec(sparsify=dp.RandomK(0.1), quantize=dp.Uniform(12)),
    ],
    ids=str,
)
LOSSY = dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4))
PLAIN = dp.Pipeline(mechanism=MECHANISM, codec=LOSSY)
TRUSTED = dp.Pipeline(mechanism=MECHANISM, codec=LOSSY, unit="client", trust="server")
MASKED = dp.Pipeline(mechanism=(dp.RandomK(0.1), *MECHANISM))


def mask_key(pipeline, memory):
    return pipeline.channel.context(memory).mask_key


def both_ends(pipeline, layout=LAYOUT, run=5, client=1):
    seed = dp.PublicSeed(run)
    return pipeline.init_client(layout, seed, client), pipeline.init_server(layout, seed)


def random_vector(*place):
    return np.random.default_rng(place).standard_normal(D).astype(np.float32)


def update_of(pipeline, memory, vector):
    """An update of which the pipeline's claim holds."""
    return with_claim(dp.Update(values=vector, layout=memory.layout, address=memory.address), pipeline.claim)


def state(memory):
    """All that a memory holds, as values."""
    shared, residual = memory.shared, memory.residual
    step = None if memory.step is None else memory.step.dense().tobytes()
    links = memory.link if isinstance(memory, dp.ClientMemory) else dict(memory.links)
    return shared.version, shared.digest, step, links, None if residual is None else residual.tobytes()


def refused(act, payload, memory, match):
    before = state(memory)
    with pytest.raises(dp.VersionMismatch, match=match):
        act(payload, memory)
    assert state(memory) == before


@CODECS
def test_what_is_decoded_and_what_remains_is_what_went_in_round_after_round(codec):
    pipeline = dp.Pipeline(mechanism=MECHANISM, codec=codec)
    memory, server = both_ends(pipeline)
    went_in, came_out = np.zeros(D), np.zeros(D)
    for round_number in range(15):
        vector, before = random_vector(round_number), memory.residual
        payload, memory = pipeline.send(update_of(pipeline, memory, vector), memory)
        estimate, server = pipeline.receive(payload, server)
        np.testing.assert_allclose(estimate.dense() + memory.residual, before + vector, atol=1e-5)
        went_in += vector
        came_out += estimate.dense()
        down, server = pipeline.broadcast(estimate, server)
        memory = pipeline.follow(down, memory)
    np.testing.assert_allclose(came_out, went_in - memory.residual, atol=1e-4)
    assert memory.address.round == 15


@CODECS
def test_both_ends_know_the_same_after_every_message(codec):
    pipeline = dp.Pipeline(mechanism=MECHANISM, codec=codec)
    one, server = both_ends(pipeline, client=1)
    other, _ = both_ends(pipeline, client=2)
    for round_number in range(4):
        for memory in (one, other):
            vector = random_vector(round_number, memory.client)
            payload, after = pipeline.send(update_of(pipeline, memory, vector), memory)
            estimate, server = pipeline.receive(payload, server)
            assert server.link(memory.client) == after.link
            assert estimate.claim == pipeline.claim
            assert estimate.address == memory.address
            one, other = (after, other) if memory is one else (one, after)
        down, server = pipeline.broadcast(random_vector(round_number, 99), server)
        one, other = pipeline.follow(down, one), pipeline.follow(down, other)
        for memory in (one, other):
            assert (memory.shared.version, memory.shared.digest) == (server.shared.version, server.shared.digest)
            assert memory.step.dense().tobytes() == server.step.dense().tobytes()
            assert mask_key(pipeline, memory) == mask_key(pipeline, server)
    assert one.link.count == other.link.count == 4
    assert one.link.digest != other.link.digest


@CODECS
def test_broadcasts_carry_their_residual_too(codec):
    pipeline = dp.Pipeline(mechanism=MECHANISM, codec=dp.Codec(), downlink=codec)
    memory, server = both_ends(pipeline)
    went_in, came_out = np.zeros(D), np.zeros(D)
    for round_number in range(10):
        vector = random_vector(round_number)
        down, server = pipeline.broadcast(vector, server)
        memory = pipeline.follow(down, memory)
        went_in += vector
        came_out += memory.step.dense()
    np.testing.assert_allclose(came_out, went_in - server.residual, atol=1e-4)
    assert not memory.residual.any()


def test_without_feedback_nothing_is_remembered():
    pipeline = dp.Pipeline(mechanism=MECHANISM, codec=LOSSY, feedback=False)
    memory, server = both_ends(pipeline)
    payload, after = pipeline.send(update_of(pipeline, memory, random_vector(0)), memory)
    assert after.residual is None
    estimate, _ = pipeline.receive(payload, server)
    assert np.count_nonzero(estimate.dense()) <= D // 10


def test_sending_and_following_leave_the_old_memory_as_it_was():
    memory, server = both_ends(PLAIN)
    vector = random_vector(0)
    update, before, server_before = update_of(PLAIN, memory, vector), state(memory), state(server)
    payload, after = PLAIN.send(update, memory)
    PLAIN.receive(payload, server)
    down, _ = PLAIN.broadcast(vector, server)
    PLAIN.follow(down, memory)
    assert state(memory) == before
    assert state(server) == server_before
    np.testing.assert_array_equal(update.values, vector)
    assert PLAIN.send(update, memory)[0] == payload  # a retry from the old memory is the same bytes
    with pytest.raises(ValueError, match="read-only"):
        after.residual[0] = 1


def test_a_repeat_is_refused():
    memory, server = both_ends(PLAIN)
    payload, _ = PLAIN.send(update_of(PLAIN, memory, random_vector(0)), memory)
    _, server = PLAIN.receive(payload, server)
    refused(PLAIN.receive, payload, server, "a repeat")
    down, after = PLAIN.broadcast(random_vector(1), server)
    refused(PLAIN.follow, down, PLAIN.follow(down, memory), "is at version 1")
    refused(PLAIN.receive, payload, after, "is at version 1")


def test_a_lost_message_is_noticed():
    memory, server = both_ends(PLAIN)
    _, memory = PLAIN.send(update_of(PLAIN, memory, random_vector(0)), memory)
    payload, _ = PLAIN.send(update_of(PLAIN, memory, random_vector(1)), memory)
    refused(PLAIN.receive, payload, server, "a payload is missing")
    _, server = PLAIN.broadcast(random_vector(2), server)
    down, _ = PLAIN.broadcast(random_vector(3), server)
    refused(PLAIN.follow, down, memory, "version 1 .* is at version 0")


def test_another_version_is_refused_even_of_the_same_number():
    memory, server = both_ends(PLAIN)
    down, _ = PLAIN.broadcast(random_vector(0), server)
    _, other_history = PLAIN.broadcast(random_vector(1), server)
    payload, _ = PLAIN.send(update_of(PLAIN, memory, random_vector(2)), PLAIN.follow(down, memory))
    refused(PLAIN.receive, payload, other_history, "resync")
    refused(PLAIN.receive, payload, server, "version 1 .* is at version 0")


@pytest.mark.parametrize(
    "other",
    [
        replace(PLAIN, codec=dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(5))),
        replace(PLAIN, codec=dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4), entropy=dp.FixedWidth())),
        replace(PLAIN, mechanism=(dp.Clip(2.0), dp.Gaussian(1.1))),
        replace(PLAIN, sampling=dp.Poisson(0.5)),
        replace(PLAIN, feedback=False),
        replace(PLAIN, downlink=dp.Codec()),
    ],
    ids=str,
)
def test_another_pipeline_is_refused(other):
    (memory, server), (other_memory, other_server) = both_ends(PLAIN), both_ends(other)
    payload, _ = PLAIN.send(update_of(PLAIN, memory, random_vector(0)), memory)
    refused(other.receive, payload, other_server, "of pipeline and layout")
    down, _ = PLAIN.broadcast(random_vector(1), server)
    refused(other.follow, down, other_memory, "of pipeline and layout")


def test_another_layout_is_refused():
    memory, _ = both_ends(PLAIN)
    payload, _ = PLAIN.send(update_of(PLAIN, memory, random_vector(0)), memory)
    for layout in (D, {"weight": (14, 20), "bias": (20,)}, {"w": (20, 14), "bias": (20,)}):
        _, server = both_ends(PLAIN, layout=layout)
        refused(PLAIN.receive, payload, server, "of pipeline and layout")


def test_another_run_is_refused():
    memory, server = both_ends(PLAIN, run=5)
    other_memory, other_server = both_ends(PLAIN, run=6)
    payload, after = PLAIN.send(update_of(PLAIN, memory, random_vector(0)), memory)
    refused(PLAIN.receive, payload, other_server, "run 5, this end is of run 6: build both ends with one PublicSeed")
    down, _ = PLAIN.broadcast(random_vector(1), server)
    refused(PLAIN.follow, down, other_memory, "run 5, this end is of run 6: build both ends with one PublicSeed")
    strayed = dp.Update(values=random_vector(2), layout=after.layout, address=dp.Address(6, 1, 0))
    strayed = with_claim(strayed, PLAIN.claim)
    with pytest.raises(ValueError, match="the memory of client 1 in run 5"):
        PLAIN.send(strayed, after)
    with pytest.raises(ValueError, match="the aggregate is of run 6, the memory of run 5"):
        PLAIN.broadcast(strayed, server)


def test_another_client_is_refused():
    memory, server = both_ends(PLAIN, client=1)
    other, _ = both_ends(PLAIN, client=2)
    update = update_of(PLAIN, memory, random_vector(0))
    with pytest.raises(ValueError, match="client 2"):
        PLAIN.send(update, other)
    payload, _ = PLAIN.send(update, memory)
    refused(PLAIN.follow, payload, other, "update of client 1")
    down, _ = PLAIN.broadcast(random_vector(1), server)
    refused(PLAIN.receive, down, server, "broadcast")


def test_each_end_has_its_own_memory():
    memory, server = both_ends(PLAIN)
    with pytest.raises(TypeError, match="ClientMemory"):
        PLAIN.send(update_of(PLAIN, server, random_vector(0)), server)
    with pytest.raises(TypeError, match="ServerMemory"):
        PLAIN.broadcast(random_vector(0), memory)


@pytest.mark.parametrize("wild", [np.nan, np.inf])
def test_values_that_are_not_finite_are_not_sent(wild):
    memory, server = both_ends(PLAIN)
    vector, before = random_vector(0), (state(memory), state(server))
    vector[3] = wild
    with pytest.raises(ValueError, match="not finite"):
        PLAIN.send(update_of(PLAIN, memory, vector), memory)
    with pytest.raises(ValueError, match="not finite"):
        PLAIN.broadcast(vector, server)
    assert (state(memory), state(server)) == before


@dataclass(frozen=True)
class Largest:
    """TopK without its way to choose while the residual is added."""

    fraction: float

    def select(self, vector, candidates, context):
        return dp.TopK(self.fraction).select(vector, candidates, context)


def test_a_sum_that_is_ranked_while_it_is_made_sends_the_same_bytes():
    d, bodies = 2**17 + 9, []
    for sparsify in (dp.TopK(0.01), Largest(0.01)):
        codec = dp.Codec(sparsify=sparsify, quantize=dp.Uniform(4))
        pipeline = dp.Pipeline(mechanism=MECHANISM, codec=codec)
        memory, _ = both_ends(pipeline, d)
        for number in range(3):
            vector = np.random.default_rng(number).laplace(size=d).astype(np.float32)
            payload, memory = pipeline.send(update_of(pipeline, memory, vector), memory)
            header = PAYLOAD.header_bytes if PAYLOAD.begins(payload) else SHORT_HEADER_BYTES
            bodies.append((payload[header:], memory.residual.tobytes()))
    assert bodies[:3] == bodies[3:]


def test_an_update_of_another_model_is_not_sent():
    memory, _ = both_ends(PLAIN)
    other, _ = both_ends(PLAIN, layout=D)
    with pytest.raises(ValueError, match="layout"):
        PLAIN.send(update_of(PLAIN, other, random_vector(0)), memory)


@pytest.mark.parametrize("claim", [None, dp.Bounded(l2=1.0), dp.Unbounded(because="it is raw", remedy="Clip it")])
def test_what_was_not_released_leaves_neither_end(claim):
    memory, server = both_ends(PLAIN)
    made = dp.Update(values=random_vector(0), layout=memory.layout, address=memory.address)
    if claim is not None:
        made = replace(made, claim=claim)
    for hand_made in (made, made.derive(random_vector(1))):
        with pytest.raises(dp.NotPrivate, match="may not leave"):
            PLAIN.send(hand_made, memory)
        with pytest.raises(dp.NotPrivate, match="may not leave"):
            PLAIN.broadcast(hand_made, server)


def test_a_release_may_leave_and_so_may_what_is_derived_from_it():
    memory, server = both_ends(PLAIN)
    block = np.random.default_rng(0).standard_normal((4, D)).astype(np.float32)
    update = PLAIN.release([block], memory, dp.SecretSeed(), dp.Ledger().charge(PLAIN.cost, memory.address))
    for leaving in (update, update.derive(update.dense() * 2)):
        payload, _ = PLAIN.send(leaving, memory)
        estimate, _ = PLAIN.receive(payload, server)
        down, _ = PLAIN.broadcast(estimate, server)
        assert PLAIN.follow(down, memory).shared.version == 1


def test_a_trusted_server_may_not_broadcast_what_it_decoded():
    memory, server = both_ends(TRUSTED)
    clean = dp.Update(values=random_vector(0), layout=memory.layout, address=memory.address)
    payload, _ = TRUSTED.send(clean, memory)
    estimate, server = TRUSTED.receive(payload, server)
    for aggregate in (estimate, estimate.derive(estimate.dense() / 2), estimate.dense()):
        with pytest.raises(dp.NotPrivate, match="never released"):
            TRUSTED.broadcast(aggregate, server)


def test_a_trusted_server_broadcasts_its_release():
    memory, server = both_ends(TRUSTED)
    clean = dp.Update(values=random_vector(0), layout=memory.layout, address=memory.address)
    payload, memory = TRUSTED.send(clean, memory)
    estimate, server = TRUSTED.receive(payload, server)
    permit = dp.Ledger().charge(TRUSTED.cost, server.address)
    released = TRUSTED.release([estimate.dense()[None, :]], server, dp.SecretSeed(), permit)
    down, server = TRUSTED.broadcast(released, server)
    assert TRUSTED.follow(down, memory).shared.digest == server.shared.digest


def test_a_trusted_server_takes_one_update_of_a_client_and_version():
    memory, server = both_ends(TRUSTED)
    other, _ = both_ends(TRUSTED, client=2)
    first, memory = TRUSTED.send(update_of(TRUSTED, memory, random_vector(0)), memory)
    second, ahead = TRUSTED.send(update_of(TRUSTED, memory, random_vector(1)), memory)
    _, server = TRUSTED.receive(first, server)
    refused(TRUSTED.receive, second, server, "twice")
    _, server = TRUSTED.receive(TRUSTED.send(update_of(TRUSTED, other, random_vector(2)), other)[0], server)
    permit = dp.Ledger().charge(TRUSTED.cost, server.address)
    down, server = TRUSTED.broadcast(TRUSTED.release([], server, dp.SecretSeed(), permit), server)
    memory = TRUSTED.follow(down, memory)
    third, _ = TRUSTED.send(update_of(TRUSTED, memory, random_vector(3)), memory)
    assert TRUSTED.receive(third, server)[1].link(1).count == 2
    assert ahead.link.count == 2


def test_a_masked_update_arrives_where_it_stood():
    memory, server = both_ends(MASKED)
    update = MASKED.release([], memory, dp.SecretSeed(), dp.Ledger().charge(MASKED.cost, memory.address))
    payload, _ = MASKED.send(update, memory)
    estimate, _ = MASKED.receive(payload, server)
    assert estimate.support == update.support
    np.testing.assert_array_equal(estimate.dense(), update.dense())


def test_an_update_on_an_older_mask_is_refused_or_arrives_where_it_stood():
    memory, server = both_ends(MASKED)
    update = MASKED.release([], memory, dp.SecretSeed(), dp.Ledger().charge(MASKED.cost, memory.address))
    down, server = MASKED.broadcast(random_vector(0), server)
    memory = MASKED.follow(down, memory)
    assert mask_key(MASKED, memory) != update.support.seed
    with contextlib.suppress(ValueError, dp.VersionMismatch):
        payload, _ = MASKED.send(update, memory)
        estimate, _ = MASKED.receive(payload, server)
        np.testing.assert_array_equal(estimate.dense(), update.dense())
    with contextlib.suppress(ValueError, dp.VersionMismatch):
        down, server = MASKED.broadcast(update, server)
        step = MASKED.follow(down, memory).step
        np.testing.assert_allclose(step.dense() + server.residual, update.dense(), atol=1e-6)


@pytest.mark.parametrize("given", [b"payload", [1.0], None])
def test_a_broadcast_of_what_is_no_vector_is_refused(given):
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
    with pytest.raises(TypeError, match=r"give an Update or a \(d,\) array"):
        pipeline.broadcast(given, pipeline.init_server(4, dp.PublicSeed(0)))


def test_a_server_does_not_follow():
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
    payload, server = pipeline.broadcast(np.zeros(4), pipeline.init_server(4, dp.PublicSeed(0)))
    with pytest.raises(TypeError, match="follows, with a ClientMemory, not a ServerMemory"):
        pipeline.follow(payload, server)

"""Prediction from the last broadcast: both ends expect the same, it pays where rounds are alike, and never misleads."""

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.wire.update import with_claim

LAYOUT = dp.Layout.of({"steady": (30_000,), "empty": (0,), "fresh": (10_000,), "one": (1,)})
SPARSE = dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(4))


def rounds(correlation, count, seed=0):
    """Vectors whose steady layer has this lag-one correlation; the others have none."""
    rng, d = np.random.default_rng(seed), LAYOUT.size
    steady = rng.standard_normal(d)
    for _ in range(count):
        new = rng.standard_normal(d)
        steady = correlation * steady + np.sqrt(1 - correlation**2) * new
        yield np.where(np.arange(d) < 30_000, steady, new).astype(np.float32)


def session(codec, correlation, *, feedback=False, count=6, downlink=None):
    """One client's rounds; yields payload, update, estimate, and both memories after the round."""
    downlink = dp.Codec() if downlink is None else downlink
    unsafe = dp.unsafe("a test of the wire")
    pipeline = dp.Pipeline(mechanism=unsafe, codec=codec, downlink=downlink, feedback=feedback)
    memory, server = (
        pipeline.init_client(LAYOUT, dp.PublicSeed(0), client=1),
        pipeline.init_server(LAYOUT, dp.PublicSeed(0)),
    )
    for vector in rounds(correlation, count):
        before = memory
        update = with_claim(dp.Update(values=vector, layout=LAYOUT, address=memory.address), pipeline.claim)
        payload, memory = pipeline.send(update, memory)
        estimate, server = pipeline.receive(payload, server)
        if before.residual is not None and memory.residual is not None:  # residual + update = estimate + new residual
            np.testing.assert_allclose(
                before.residual + vector, estimate.dense() + memory.residual, atol=2e-5 * np.abs(vector).max()
            )
        down, server = pipeline.broadcast(
            dp.Update.derive(estimate, vector) if not codec.sparsify else estimate, server
        )
        memory = pipeline.follow(down, memory)
        assert memory.shared.digest == server.shared.digest
        yield payload, vector, estimate, memory


def predicting(**slots):
    return dp.Codec(predict=dp.LastBroadcast(), **slots)


@pytest.mark.parametrize("correlation", [0.5, 0.9, 0.99])
def test_at_a_fixed_step_a_steady_layer_costs_what_is_new_in_it(correlation):
    step = {"quantize": dp.Uniform(dp.FixedStep(0.02))}
    direct, delta = (
        [found[0] for found in session(codec, correlation)] for codec in (dp.Codec(**step), predicting(**step))
    )
    assert abs(len(delta[0]) - len(direct[0])) <= 0  # before any broadcast there is nothing to expect
    saved = 8 * np.mean([len(one) - len(other) for one, other in zip(direct[1:], delta[1:], strict=True)])
    assert saved / 30_000 == pytest.approx(-np.log2(1 - correlation**2) / 2, rel=0.05)


def test_where_nothing_is_alike_it_costs_a_byte_a_layer():
    step = {"quantize": dp.Uniform(dp.FixedStep(0.02))}
    direct, delta = ([found[0] for found in session(codec, 0.0)] for codec in (dp.Codec(**step), predicting(**step)))
    for one, other in zip(direct[1:], delta[1:], strict=True):
        assert len(other) <= len(one) + len(LAYOUT.sizes) + 40


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize(
    "slots",
    [
        {"quantize": dp.Uniform(4)},
        {"quantize": dp.Uniform(4), "entropy": dp.FixedWidth()},
        {"sparsify": dp.TopK(0.05), "quantize": dp.Uniform(4)},
        {"sparsify": dp.RandomK(0.05)},
        {"quantize": dp.Uniform(3, rounding=dp.Dithered())},
    ],
    ids=str,
)
def test_both_ends_expect_the_same(slots, feedback):
    for payload, _, estimate, memory in session(predicting(**slots), 0.9, feedback=feedback):
        assert len(payload) < 4 * LAYOUT.size
        assert np.isfinite(estimate.dense()).all()
        assert memory.shared.reference is not None


def test_a_predicted_sparse_update_is_nearer_to_the_truth():
    sparse = {"sparsify": dp.TopK(0.05), "quantize": dp.Uniform(4)}
    errors = [
        np.mean([np.sum((vector - estimate.dense()) ** 2) for _, vector, estimate, _ in session(codec, 0.95)][1:])
        for codec in (dp.Codec(**sparse), predicting(**sparse))
    ]
    assert errors[1] < 0.8 * errors[0]


def test_a_body_without_room_for_the_gains_is_corrupt():

    from dpcomp.wire.frame import PAYLOAD

    codec = predicting(quantize=dp.Uniform(4))
    pipeline = dp.Pipeline(mechanism=dp.unsafe("a test of the wire"), codec=codec, feedback=False)
    memory, server = (
        pipeline.init_client(LAYOUT, dp.PublicSeed(0), client=1),
        pipeline.init_server(LAYOUT, dp.PublicSeed(0)),
    )
    down, server = pipeline.broadcast(np.ones(LAYOUT.size, np.float32), server)
    memory = pipeline.follow(down, memory)
    update = with_claim(
        dp.Update(values=np.ones(LAYOUT.size, np.float32), layout=LAYOUT, address=memory.address), pipeline.claim
    )
    frame, body = PAYLOAD.unseal(pipeline.send(update, memory)[0])
    pipeline.receive(PAYLOAD.seal(frame, body), server)
    for short in (b"", body[:3], body[:6]):
        with pytest.raises(dp.CorruptPayload):
            pipeline.receive(PAYLOAD.seal(frame, short), server)


def test_a_random_support_before_the_noise_is_not_predicted():
    mechanism = (dp.RandomK(0.1), dp.Clip(1.0), dp.Gaussian(1.0))
    with pytest.raises(ValueError, match="predict="):
        dp.Pipeline(mechanism=mechanism, codec=predicting())

"""Feedback: what is sent and what is kept follow the formulas of the papers, at any rate, through any codec."""

import pickle
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.training import Cosine
from dpcomp.wire import checkpoint
from dpcomp.wire.checkpoint import Checkpoint
from dpcomp.wire.feedback import Kept
from dpcomp.wire.memory import Pending
from dpcomp.wire.update import with_claim, with_learning_rate

LAYOUT = dp.Layout.of({"weight": (20, 14), "bias": (20,)})
D, ROUNDS = LAYOUT.size, 20
MECHANISM = (dp.Clip(1.0), dp.Gaussian(1.1))
TOP = dp.Codec(sparsify=dp.TopK(0.05))
TOP_4_BITS = dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4))
MOMENTA = [
    dp.MomentumCorrection(momentum=0.8),
    dp.MomentumCorrection(momentum=0.8, masking=False),
    dp.EF21(weight=0.3),
]
SCHEDULE = Cosine(peak=0.7, rounds=ROUNDS, warm_up=4)
SETTINGS = pytest.mark.parametrize(
    ("codec", "schedule"),
    [(TOP, None), (TOP_4_BITS, None), (TOP_4_BITS, SCHEDULE)],
    ids=["top-k", "top-k in 4 bits", "top-k in 4 bits, schedule"],
)


def pipeline_of(feedback, codec=TOP):
    return dp.Pipeline(mechanism=MECHANISM, codec=codec, downlink=dp.Codec(), feedback=feedback)


def gradient(number):
    return np.random.default_rng([7, number]).standard_normal(D).astype(np.float32)


def update_of(pipeline, memory, values, rate=1.0):
    made = dp.Update(values=values, layout=LAYOUT, address=memory.address)
    return with_learning_rate(with_claim(made, pipeline.claim), rate)


@lru_cache  # two tests look at each
def session(pipeline, schedule=None):
    """Each round: the gradient, its rate, what the server decodes, and the client's memory after it."""
    seed, played = dp.PublicSeed(5), []
    memory, server = pipeline.init_client(LAYOUT, seed, 1), pipeline.init_server(LAYOUT, seed)
    for number in range(ROUNDS):
        rate = 1.0 if schedule is None else schedule.rate(number)
        g = gradient(number)
        payload, memory = pipeline.send(update_of(pipeline, memory, np.float32(rate) * g, rate), memory)
        decoded, server = pipeline.receive(payload, server)
        played.append((g, rate, decoded.dense(), memory))
    return played


def through(codec, vector):
    """What a receiver decodes of a vector: NumPy's choice of the largest, quantised by the codec."""
    k = round(codec.sparsify.fraction * D)
    chosen = np.sort(np.argsort(-np.abs(vector), kind="stable")[:k])
    support, context = dp.Listed(chosen), dp.PublicContext(layout=LAYOUT)
    decoded = np.zeros(D, np.float32)
    decoded[chosen] = codec.encode(vector[chosen], support, context)[1]
    return decoded


def reference(feedback, codec, gradients, rates):
    """What is sent, by the formulas of DGC (1712.01887, section 3) and EF21-SGDM (2305.15155, Algorithm 1)."""
    u, v, g, sent = np.zeros(D, np.float32), np.zeros(D, np.float32), np.zeros(D, np.float32), []
    for x, rate in zip(gradients, rates, strict=True):
        if isinstance(feedback, dp.EF21):
            v = np.float32(1 - feedback.weight) * v + np.float32(feedback.weight) * x
            c = through(codec, np.float32(rate) * v - g)
            g = g + c
        else:
            u = np.float32(feedback.momentum) * u + x
            v = v + np.float32(rate) * u
            c = through(codec, v)
            v = v - c
            if feedback.masking:
                u[c != 0] = 0
        sent.append(c)
    return sent


@SETTINGS
@pytest.mark.parametrize("feedback", MOMENTA, ids=str)
def test_what_is_sent_is_what_the_papers_send(feedback, codec, schedule):
    pipeline = pipeline_of(feedback, codec)
    gradients, rates, sent, _ = zip(*session(pipeline, schedule), strict=True)
    expected = reference(feedback, codec, gradients, rates)
    np.testing.assert_allclose(np.stack(sent), np.stack(expected), atol=2e-5)


@SETTINGS
@pytest.mark.parametrize("feedback", [True, *MOMENTA], ids=str)
def test_nothing_is_lost_but_the_momentum_that_was_masked(feedback, codec, schedule):
    given, sent, momentum = np.zeros(D), np.zeros(D), np.zeros(D)
    for g, rate, decoded, memory in session(pipeline_of(feedback, codec), schedule):
        sent += decoded
        if feedback is True:
            given += rate * g
        elif isinstance(feedback, dp.EF21):
            momentum = (1 - feedback.weight) * momentum + feedback.weight * g
        else:
            momentum = feedback.momentum * momentum + g
            given += rate * momentum
            if feedback.masking:
                momentum[decoded != 0] = 0
        if isinstance(feedback, dp.EF21):
            np.testing.assert_allclose(memory.kept.sent, sent, atol=1e-4)  # the server's sum is the client's
        else:
            np.testing.assert_allclose(sent + memory.residual, given, atol=2e-4)
        if feedback is not True:
            np.testing.assert_allclose(memory.kept.momentum, momentum, atol=2e-4)
    assert np.abs(sent).max() > 0


def test_with_all_weight_on_the_newest_update_it_is_ef21():
    known = np.zeros(D, np.float32)
    for g, _, decoded, _ in session(pipeline_of(dp.EF21(weight=1.0))):
        np.testing.assert_allclose(decoded, through(TOP, g - known), atol=1e-5)
        known = known + decoded


def test_masked_momentum_is_zero_where_something_was_sent_and_only_there():
    for _, _, decoded, memory in session(pipeline_of(dp.MomentumCorrection(momentum=0.8), TOP_4_BITS)):
        np.testing.assert_array_equal(memory.kept.momentum == 0, decoded != 0)


def test_of_a_coordinate_that_is_decoded_to_zero_nothing_was_sent_and_its_momentum_stays():
    codec = dp.Codec(sparsify=dp.TopK(0.9), quantize=dp.Ternary())
    payloads = session(pipeline_of(dp.MomentumCorrection(momentum=0.8), codec))
    assert all(0 < np.count_nonzero(decoded) < 0.8 * D for _, _, decoded, _ in payloads)
    for _, _, decoded, memory in payloads:
        np.testing.assert_array_equal(memory.kept.momentum == 0, decoded != 0)


def test_without_loss_and_masking_it_is_the_momentum_of_a_server():
    velocity = np.zeros(D, np.float32)
    pipeline = pipeline_of(dp.MomentumCorrection(momentum=0.8, masking=False), dp.Codec())
    for g, _, decoded, memory in session(pipeline):
        velocity = np.float32(0.8) * velocity + g
        np.testing.assert_allclose(decoded, velocity, atol=1e-5)
        assert not memory.residual.any()


def test_a_residual_of_updates_is_the_rescaled_residual_of_gradients():
    """Zheng et al. 2019 (1905.10936), Algorithm 1: p = g + (η_{t−1}/η_t)·e, x ← x − η·C(p), e ← p − C(p)."""
    error, before = np.zeros(D, np.float32), 0.0
    for g, rate, decoded, _ in session(pipeline_of(True), SCHEDULE):
        p = g + np.float32(before / rate) * error
        c = through(TOP, p)
        np.testing.assert_allclose(decoded, np.float32(rate) * c, atol=1e-5)
        error, before = p - c, rate


@pytest.mark.parametrize("rate", [0.0, 1e-50])
@pytest.mark.parametrize("feedback", MOMENTA, ids=str)
def test_a_rate_that_is_zero_as_a_float32_sends_no_momentum_and_keeps_it(feedback, rate):
    pipeline = pipeline_of(feedback)
    memory = pipeline.init_client(LAYOUT, dp.PublicSeed(5), 1)
    _, memory = pipeline.send(update_of(pipeline, memory, 0.5 * gradient(0), 0.5), memory)
    _, after = pipeline.send(update_of(pipeline, memory, np.zeros(D, np.float32), rate), memory)
    assert all(np.isfinite(vector).all() for vector in after.kept.vectors.values())
    assert np.abs(after.kept.momentum).max() > 0


def test_an_update_keeps_its_rate():
    pipeline = pipeline_of(True)
    update = update_of(pipeline, pipeline.init_client(LAYOUT, dp.PublicSeed(5), 1), gradient(0), 0.5)
    for same in (pickle.loads(pickle.dumps(update)), update.derive(update.dense()), with_claim(update, update.claim)):
        assert same.learning_rate == 0.5
        assert same.claim == pipeline.claim
        assert same.dense().tobytes() == update.dense().tobytes()


@pytest.mark.parametrize("rate", [-0.1, np.inf, np.nan])
def test_a_learning_rate_is_finite_and_not_negative(rate):
    pipeline = pipeline_of(True)
    memory = pipeline.init_client(LAYOUT, dp.PublicSeed(5), 1)
    with pytest.raises(ValueError, match="finite number from 0 on"):
        update_of(pipeline, memory, gradient(0), rate)


@pytest.mark.parametrize("feedback", MOMENTA, ids=str)
def test_the_public_support_of_a_mechanism_is_all_that_is_sent(feedback):
    pipeline = dp.Pipeline(mechanism=(dp.RandomK(0.1), *MECHANISM), feedback=feedback)
    seed, secret = dp.PublicSeed(5), dp.SecretSeed(0)
    memory, server = pipeline.init_client(LAYOUT, seed, 1), pipeline.init_server(LAYOUT, seed)
    ledger = dp.Ledger()
    for number in range(4):
        permit = ledger.charge(pipeline.cost, memory.address)
        update = pipeline.release([gradient(number)[None, :]], memory, secret, permit)
        payload, memory = pipeline.send(update, memory)
        decoded, server = pipeline.receive(payload, server)
        chosen = update.support.indices(D)
        assert decoded.support.indices(D).tolist() == chosen.tolist()
        assert decoded.values.any()
        down, server = pipeline.broadcast(decoded, server)
        memory = pipeline.follow(down, memory)


@pytest.mark.parametrize("feedback", [True, *MOMENTA], ids=str)
def test_other_data_with_the_same_releases_change_no_byte(feedback):
    """All that a client keeps and sends is post-processing of its releases: nothing else of the data enters."""
    payloads, kept = [], []
    pipeline = dp.Pipeline(mechanism=(dp.RandomK(0.5), *MECHANISM), codec=TOP_4_BITS, feedback=feedback)
    for other in (0.0, 1.0):  # the data differ in all coordinates that are not released in their round
        memory, ledger, sent = pipeline.init_client(LAYOUT, dp.PublicSeed(5), 1), dp.Ledger(), []
        server = pipeline.init_server(LAYOUT, dp.PublicSeed(5))
        for number in range(6):
            permit = ledger.charge(pipeline.cost, memory.address)
            data = np.stack([gradient(number), gradient(number + 100)])
            hidden = np.ones(D, bool)
            hidden[pipeline.public_positions(memory)] = False
            data[:, hidden] += other
            released = pipeline.release([data], memory, dp.SecretSeed(3), permit)
            payload, memory = pipeline.send(released, memory)
            decoded, server = pipeline.receive(payload, server)
            down, server = pipeline.broadcast(decoded, server)
            memory = pipeline.follow(down, memory)
            sent.append(payload)
        payloads.append(sent)
        kept.append({name: vector.tobytes() for name, vector in memory.kept.vectors.items()})
    assert payloads[0] == payloads[1]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("feedback", MOMENTA, ids=str)
def test_a_clean_update_is_not_sent_to_an_untrusted_server(feedback):
    pipeline = pipeline_of(feedback)
    memory = pipeline.init_client(LAYOUT, dp.PublicSeed(5), 1)
    with pytest.raises(dp.NotPrivate):
        pipeline.send(dp.Update(values=gradient(0), layout=LAYOUT, address=memory.address), memory)


def test_a_trusted_server_clips_what_momentum_made_of_an_update():
    pipeline = dp.Pipeline(
        mechanism=MECHANISM, codec=TOP, feedback=dp.MomentumCorrection(), unit="client", trust="server"
    )
    memory, server = pipeline.init_client(LAYOUT, dp.PublicSeed(5), 1), pipeline.init_server(LAYOUT, dp.PublicSeed(5))
    update = dp.Update(values=100 * gradient(0), layout=LAYOUT, address=memory.address)
    payload, _ = pipeline.send(update, memory)
    decoded, _ = pipeline.receive(payload, server)
    assert not isinstance(decoded.claim, dp.Released)
    clipped = pipeline.clip(decoded.dense()[None, :], server)
    assert np.linalg.norm(decoded.dense()) > 100
    assert np.linalg.norm(np.concatenate([np.ravel(layer) for layer in clipped.layers])) <= 1.0001


@pytest.mark.parametrize("feedback", [True, *MOMENTA], ids=str)
def test_a_checkpoint_holds_all_that_is_kept(feedback, tmp_path):
    pipeline = pipeline_of(feedback)
    *_, (_, _, _, memory) = session(pipeline)
    update = update_of(pipeline, memory, gradient(50), 0.25)
    payload, after = pipeline.send(update, memory)
    checkpoint.save(tmp_path, Checkpoint(memory, None, Pending.of(payload, update, after)))
    loaded = checkpoint.load(tmp_path, pipeline.channel)
    for one, other in ((loaded.memory.kept, memory.kept), (loaded.pending.kept, after.kept)):
        assert one.vectors.keys() == other.vectors.keys()
        assert all(one.vectors[name].tobytes() == vector.tobytes() for name, vector in other.vectors.items())
        assert not any(vector.flags.writeable for vector in one.vectors.values())
    assert loaded.pending.learning_rate == 0.25
    assert loaded.pending.update.tobytes() == update.dense().tobytes()
    again, _ = pipeline.send(update, loaded.memory)
    assert again == payload


def test_what_is_kept_does_not_change():
    kept = Kept(residual=np.zeros(3, np.float32), momentum=np.zeros(3, np.float32))
    for vector in kept.vectors.values():
        with pytest.raises(ValueError, match="read-only"):
            vector[0] = 1
    assert list(replace(kept, sent=np.ones(3, np.float32)).vectors) == ["residual", "momentum", "sent"]


class TestDeclaration:
    @pytest.mark.parametrize("feedback", [True, False, *MOMENTA], ids=str)
    def test_a_file_names_it(self, feedback):
        pipeline = pipeline_of(feedback)
        again = dp.Pipeline.from_toml(pipeline.to_toml())
        assert again == pipeline
        assert again.channel.identity == pipeline.channel.identity

    def test_each_is_another_pipeline(self):
        identities = {pipeline_of(feedback).channel.identity for feedback in (True, False, *MOMENTA)}
        assert len(identities) == 2 + len(MOMENTA)

    @pytest.mark.parametrize("feedback", [1, None, "no", dp.EF21, dp.MomentumCorrection])
    def test_anything_else_is_refused(self, feedback):
        with pytest.raises(TypeError, match=r"give True or False, dp\.MomentumCorrection"):
            pipeline_of(feedback)

    def test_a_subclass_is_refused(self):
        class Own(dp.EF21):
            pass

        with pytest.raises(TypeError, match="give True or False"):
            pipeline_of(Own())

    @pytest.mark.parametrize("momentum", [0.0, 1.0, -0.5, float("nan")])
    def test_a_momentum_lies_between_zero_and_one(self, momentum):
        with pytest.raises(ValueError, match="momentum"):
            dp.MomentumCorrection(momentum=momentum)

    @pytest.mark.parametrize("weight", [0.0, 1.1, float("nan")])
    def test_a_weight_lies_between_zero_and_one(self, weight):
        with pytest.raises(ValueError, match="weight"):
            dp.EF21(weight=weight)

    def test_a_mask_is_yes_or_no(self):
        with pytest.raises(TypeError, match="give True or False"):
            dp.MomentumCorrection(masking=1)

    @pytest.mark.parametrize(
        "codec",
        [dp.Codec(), dp.Codec(quantize=dp.Uniform(4)), dp.Codec(predict=dp.LastBroadcast(), sparsify=dp.TopK(0.1))],
        ids=str,
    )
    def test_masking_beside_a_codec_that_sends_everything_is_refused(self, codec):
        with pytest.raises(ValueError, match="masking=False"):
            pipeline_of(dp.MomentumCorrection(), codec)
        pipeline_of(dp.MomentumCorrection(masking=False), codec)

    def test_differences_are_not_sent_to_a_trusted_server(self):
        with pytest.raises(ValueError, match="noise of all rounds"):
            dp.Pipeline(mechanism=MECHANISM, codec=TOP, feedback=dp.EF21(), unit="client", trust="server")

    @pytest.mark.parametrize("feedback", MOMENTA, ids=str)
    def test_an_allocator_that_uses_the_noise_refuses_it(self, feedback):
        codec = dp.Codec(quantize=dp.Uniform(dp.Waterfill(4, clients=3)))
        with pytest.raises(ValueError, match="would change"):
            pipeline_of(feedback, codec)

    @pytest.mark.parametrize("feedback", MOMENTA, ids=str)
    def test_the_server_keeps_a_residual_of_the_downlink_alone(self, feedback):
        server = pipeline_of(feedback).init_server(LAYOUT, dp.PublicSeed(5))
        assert list(server.kept.vectors) == ["residual"]

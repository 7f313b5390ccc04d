"""Errors of clients' codecs as the noise of a trusted server: what is released, who may know what, what is refused."""

import copy
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import dpcomp as dp
from dpcomp.federated import Participant, ReplyReceived, Server, TimedOut, Trained, TrustedRelease
from dpcomp.federated.server.cohort import Cohort, refuse_likely_redraw
from dpcomp.privacy.claim import ROUNDING
from dpcomp.wire import checkpoint
from dpcomp.wire.checkpoint import Checkpoint
from dpcomp.wire.update import with_learning_rate

ALPHA = 1e-6
RUN, RUN_ID = dp.PublicSeed(3), b"the ends"
KEYS = dp.DitherKeys(bytes(range(32)))
COHORT = 5


def pipeline_of(cohort=COHORT, clip=1.0, noise=1.0, sampling=None, colluding=1, **changed):
    arguments = {
        "unit": "client",
        "trust": "server",
        "mechanism": (dp.Clip(clip), dp.Gaussian(noise)),
        "codec": dp.Codec(quantize=dp.ExactGaussian(cohort=cohort, colluding=colluding)),
        "downlink": dp.Codec(),
        "feedback": False,
        "sampling": sampling,
    }
    return dp.Pipeline(**(arguments | changed))


PIPELINE = pipeline_of()


def server_of(pipeline, d, clients=COHORT, keys=KEYS, run_id=RUN_ID, folder=None, ledger=None, secret=None):
    release = TrustedRelease(
        pipeline=pipeline, secret=secret or dp.SecretSeed(), ledger=ledger or dp.Ledger(), divisor=1.0
    )
    memory = pipeline.init_server(d, RUN, run_id=run_id, dither_keys=keys)
    model = np.zeros(d, np.float32)
    return Server(pipeline.channel, memory, model, trusted_release=release, clients=clients, folder=folder)


def client_of(pipeline, d, client, keys=KEYS, run_id=RUN_ID):
    first = np.zeros(d, np.float32)
    return pipeline.init_client(d, RUN, client, first_model=first, run_id=run_id, dither_key=keys.of(client))


def update_of(memory, vector):
    return dp.Update(values=vector, layout=memory.layout, address=memory.address)


def clipped(vector, norm=1.0):
    (total,) = dp.Clip(norm).sum((vector[None, :],))
    return total.astype(np.float32).astype(np.float64)


def one_round(pipeline, vectors, d, run_id=RUN_ID):
    """Return the released sum, and the error that each client knows that it made, of a round of a new federation."""
    server, errors = server_of(pipeline, d, run_id=run_id), []
    for client, vector in enumerate(vectors):
        memory = client_of(pipeline, d, client, run_id=run_id)
        payload, _ = pipeline.send(update_of(memory, vector), memory)
        decoded, _ = pipeline.receive(payload, server.memory)
        errors.append(decoded.dense() - clipped(vector, pipeline.stages[0].norm))
        assert server.handle(payload, client) is not None
    assert len(server.accepted) == len(vectors)
    server.close_round()
    return server.model.astype(np.float64), errors


# What is released.


@pytest.mark.parametrize("came", [0, 1, COHORT])
@pytest.mark.parametrize(("clip", "noise"), [(1.0, 1.0), (0.01, 4.0)])
def test_the_release_is_the_clipped_sum_and_noise_of_one_law_whoever_came(came, clip, noise):
    d, rng, pipeline = 20_000, np.random.default_rng(came), pipeline_of(clip=clip, noise=noise)
    vectors = [rng.standard_t(3, d).astype(np.float32) for _ in range(came)]
    released, errors = one_round(pipeline, vectors, d, run_id=bytes([came]) * 8)
    noise_of_release = (released - sum((clipped(vector, clip) for vector in vectors), np.zeros(d))) / (clip * noise)
    assert stats.kstest(noise_of_release, "norm").pvalue > ALPHA
    assert abs(np.mean(noise_of_release**2) - 1) < 5 * math.sqrt(2 / d)
    for error in errors:
        own = error * math.sqrt(COHORT) / (clip * noise)
        assert stats.kstest(own, "norm").pvalue > ALPHA
        assert abs(np.mean(own**2) - 1) < 5 * math.sqrt(2 / d)


def test_clients_that_pool_their_errors_leave_the_noise_that_the_event_counts():
    d, rng, pipeline = 30_000, np.random.default_rng(1), pipeline_of(colluding=2)
    vectors = [rng.standard_normal(d).astype(np.float32) for _ in range(COHORT)]
    released, errors = one_round(pipeline, vectors, d)
    known = errors[0] + errors[3]
    left = released - sum(clipped(vector) for vector in vectors) - known
    hidden = 1 - 2 / COHORT
    assert stats.kstest(left / math.sqrt(hidden), "norm").pvalue > ALPHA
    assert abs(np.corrcoef(left, known)[0, 1]) < 5 / math.sqrt(d)
    assert pipeline.cost.event.noise_multiplier == pytest.approx(math.sqrt(hidden) / (1 + ROUNDING), rel=1e-12)


def test_who_knows_all_keys_learns_the_sum():
    """With a public dither there is no guarantee: this is what an observer of a full cohort would compute."""
    d, vectors = 1000, [np.full(1000, value, np.float32) for value in (0.01, 0.02, 0.003, -0.01, 0.005)]
    released, errors = one_round(PIPELINE, vectors, d)
    left = released - sum(errors)
    assert np.abs(left - sum(map(clipped, vectors))).max() < 1e-3


def test_the_noise_does_not_tell_how_many_came():
    """The sum of squares of the noise would tell a round of four clients from one of five, had it another variance."""
    d = 100_000
    squares = [np.mean(one_round(PIPELINE, [np.zeros(d, np.float32)] * came, d)[0] ** 2) for came in (COHORT, 1)]
    assert abs(squares[0] - squares[1]) < 5 * math.sqrt(4 / d)


@pytest.mark.slow
def test_two_neighbours_differ_by_one_clip_norm_along_the_canary_and_in_nothing_else():
    d, rounds, canary = 50, 400, np.zeros(50, np.float32)
    canary[7] = 100.0
    others = [np.full(d, 0.1, np.float32)] * (COHORT - 1)
    known = sum(map(clipped, others))
    seen = {}
    for present in (True, False):
        vectors = [*others, canary] if present else others
        ids = [bytes([1 + present, k % 200, k // 200, 1]) * 2 for k in range(rounds)]
        seen[present] = np.array([one_round(PIPELINE, vectors, d, run_id=each)[0] - known for each in ids])
    assert stats.kstest(seen[True][:, 7] - 1, "norm").pvalue > 1e-4
    assert stats.kstest(seen[False][:, 7], "norm").pvalue > 1e-4
    for present in (True, False):
        assert stats.kstest(np.delete(seen[present], 7, axis=1).reshape(-1), "norm").pvalue > 1e-4


def test_a_release_lies_on_a_public_grid():
    released, _ = one_round(PIPELINE, [np.ones(500, np.float32)], 500)
    places = released / 2.0**-20
    assert (places == np.rint(places)).all()


def test_a_client_that_is_not_clipped_is_clipped_by_what_sends_it():
    d = 100
    long = np.full(d, 1e9, np.float32)
    released, (error,) = one_round(pipeline_of(noise=1e-3), [long], d)
    assert np.linalg.norm(released - error) == pytest.approx(1.0, abs=0.01)
    broken = np.full(d, np.inf, np.float32)
    memory = client_of(PIPELINE, d, 1)
    payload, _ = PIPELINE.send(update_of(memory, broken), memory)
    received, _ = PIPELINE.receive(payload, server_of(PIPELINE, d).memory)
    assert np.abs(received.dense()).max() < 10  # zeros with their share of the noise


# The account.


def test_the_guarantee_counts_the_colluding_clients_and_names_whom_it_holds_against():
    plain = pipeline_of(codec=dp.Codec(), downlink=None)
    epsilons = [plain.guarantee(10, 1e-5).epsilon]
    epsilons += [pipeline_of(colluding=c).guarantee(10, 1e-5).epsilon for c in (1, 2, 4)]
    assert epsilons == sorted(epsilons)
    assert len(set(epsilons)) == 4
    text = str(pipeline_of(colluding=2).guarantee(10, 1e-5))
    for clause in ("readers of the released model who know the dither of at most 2 clients", "honest code"):
        assert clause in text


def test_the_ledger_keeps_what_the_guarantee_assumes(tmp_path):
    with dp.Ledger.create(tmp_path / "ledger.db") as ledger:
        ledger.charge(PIPELINE.cost, dp.Address(run=0, client=dp.SERVER, round=0))
    with dp.Ledger(tmp_path / "ledger.db") as ledger:
        ledger.charge(PIPELINE.cost, dp.Address(run=0, client=dp.SERVER, round=1))
        assert ledger.guarantee(1e-5) == PIPELINE.guarantee(2, 1e-5)
    assert dp.Ledger.read(tmp_path / "ledger.db").entries[1].cost == PIPELINE.cost


def test_seeded_keys_are_named_like_seeded_noise():
    keys = dp.DitherKeys.drawn(dp.SecretSeed(4))
    assert keys.seeded
    assert keys.of(3).seeded
    assert not dp.DitherKeys.drawn(dp.SecretSeed()).seeded
    ledger = dp.Ledger()
    server_of(PIPELINE, 10, keys=keys, ledger=ledger).close_round()
    assert "SEEDED" in str(ledger.guarantee(1e-5))
    ledger = dp.Ledger()
    server_of(PIPELINE, 10, ledger=ledger).close_round()
    assert "SEEDED" not in str(ledger.guarantee(1e-5))


# The cohort.


def test_a_server_refuses_more_clients_than_the_noise_is_planned_for():
    server_of(PIPELINE, 10, clients=COHORT)
    with pytest.raises(ValueError, match="cohort of 6"):
        server_of(PIPELINE, 10, clients=COHORT + 1)
    with pytest.raises(ValueError, match="cohort"):
        server_of(pipeline_of(sampling=dp.Poisson(0.5)), 10, clients=20)


@pytest.mark.parametrize(("rate", "clients"), [(0.1, 100), (0.01, 10_000), (0.5, 300), (0.9, 50)])
def test_the_least_cohort_that_serves_is_exceeded_once_in_two_to_the_64(rate, clients):
    with pytest.raises(ValueError, match="Give a cohort of") as refused:
        refuse_likely_redraw(rate, clients, math.ceil(rate * clients))
    least = int(str(refused.value).split("cohort of ")[1].split(" or")[0])
    refuse_likely_redraw(rate, clients, least)
    with pytest.raises(ValueError, match=f"cohort of {least} or"):
        refuse_likely_redraw(rate, clients, least - 1)
    assert stats.binom.sf(least, clients, rate) <= 2.0**-64
    assert least == clients or stats.binom.sf(least - 6, clients, rate) > 2.0**-64


def test_a_draw_of_too_many_is_drawn_again():
    memory = server_of(PIPELINE, 10).memory
    for number in range(50):
        cohort = Cohort(sampling=dp.Poisson(0.5), secret=dp.SecretSeed(number), most=4)
        assert len(cohort.draw(10, memory)) <= 4
    free = [len(Cohort(sampling=dp.Poisson(0.5), secret=dp.SecretSeed(k)).draw(10, memory)) for k in range(50)]
    assert max(free) > 4


def test_no_sum_of_more_updates_than_the_cohort_is_released():
    pipeline, d = pipeline_of(cohort=2), 10
    server = pipeline.init_server(d, RUN, run_id=RUN_ID, dither_keys=KEYS)
    total = pipeline.empty_total(server)
    for client in range(3):
        memory = pipeline.init_client(d, RUN, client, run_id=RUN_ID, dither_key=KEYS.of(client))
        payload, _ = pipeline.send(update_of(memory, np.ones(d)), memory)
        received, server = pipeline.receive(payload, server)
        total = total + pipeline.total_of(received, server)
    permit = dp.Ledger().charge(pipeline.cost, server.address)
    with pytest.raises(dp.NotPrivate, match="3 clients"):
        pipeline.noise(total, server, dp.SecretSeed(), permit)
    assert permit.used == 0


# Which pipelines are refused.


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trust": "nobody"}, "hides a client"),
        ({"unit": "example", "trust": "nobody"}, "not an example"),
        ({"feedback": True}, "residual"),
        ({"mechanism": (dp.RandomK(0.5), dp.Clip(1.0), dp.Gaussian(1.0))}, "each coordinate"),
        ({"mechanism": (dp.TopK(0.5), dp.Clip(1.0), dp.Gaussian(1.0))}, "each coordinate"),
        ({"mechanism": dp.unsafe("a study", dp.Clip(1.0), dp.Gaussian(1.0))}, "each coordinate"),
        ({"mechanism": (dp.Clip(1.0),)}, "each coordinate"),
        ({"mechanism": (dp.Clip(1.0), dp.Gaussian(1e-5))}, "too small"),
        ({"downlink": dp.Codec(quantize=dp.ExactGaussian(cohort=5))}, "broadcast"),
        ({"codec": dp.Codec(), "downlink": dp.Codec(quantize=dp.ExactGaussian(cohort=5))}, "broadcast"),
    ],
    ids=str,
)
def test_a_pipeline_in_which_the_error_would_not_hide_a_client_is_refused(changed, message):
    with pytest.raises(dp.NotPrivate, match=message):
        pipeline_of(**changed)


def test_a_pipeline_without_a_codec_for_broadcasts_is_refused():
    with pytest.raises(ValueError, match=r"downlink=dp\.Codec"):
        pipeline_of(downlink=None)


def test_a_subclass_is_refused():
    class Loud(dp.ExactGaussian):
        pass

    with pytest.raises(TypeError, match="subclass"):
        pipeline_of(codec=dp.Codec(quantize=Loud(cohort=5)))


def test_only_what_was_decoded_of_a_message_counts_as_a_share():
    d, server = 10, server_of(PIPELINE, 10).memory
    memory = client_of(PIPELINE, d, 1)
    payload, _ = PIPELINE.send(update_of(memory, np.ones(d)), memory)
    received, _ = PIPELINE.receive(payload, server)
    PIPELINE.total_of(received, server)
    for other in (update_of(memory, np.ones(d)), received.derive(received.dense() * 0)):
        with pytest.raises(dp.NotPrivate, match="share"):
            PIPELINE.total_of(other, server)
    with pytest.raises(dp.NotPrivate, match="by hand"):
        replace(received, values=np.ones(d))
    for quieter in (pipeline_of(cohort=50), pipeline_of(clip=0.5, noise=2.0)):
        with pytest.raises(dp.NotPrivate, match="share"):
            quieter.total_of(received, server)
    with pytest.raises(dp.NotPrivate, match="clip"):
        PIPELINE.clip(np.ones((1, d)), server)
    with pytest.raises(dp.NotPrivate, match="share of the noise"):
        PIPELINE.broadcast(received, server)


def test_an_update_is_in_one_release_and_in_it_once():
    """Its error hides it once: in a second release, or twice in one, it would be no noise of its own."""
    d, server = 10, server_of(PIPELINE, 10).memory
    memory = client_of(PIPELINE, d, 1)
    payload, _ = PIPELINE.send(update_of(memory, np.ones(d)), memory)
    received, _ = PIPELINE.receive(payload, server)
    with pytest.raises(dp.NotPrivate, match="share a micro-batch"):
        PIPELINE.total_of(received, server) + PIPELINE.total_of(received, server)
    ledger = dp.Ledger()
    permit = ledger.charge(PIPELINE.cost, server.address, steps=2)
    PIPELINE.noise(PIPELINE.empty_total(server) + PIPELINE.total_of(received, server), server, dp.SecretSeed(), permit)
    with pytest.raises(dp.NotPrivate, match="released before"):
        PIPELINE.noise(PIPELINE.total_of(received, server), server, dp.SecretSeed(), permit)
    assert permit.used == 1


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda update: pickle.loads(pickle.dumps(update)),
        lambda update: with_learning_rate(update, 1.0),
    ],
)
@pytest.mark.parametrize("when", ["before its total", "after it"])
def test_a_copy_of_an_update_has_no_share_of_the_noise(copied, when):
    """Its error would hide the client twice, once in each copy's total."""
    d, server = 10, server_of(PIPELINE, 10).memory
    memory = client_of(PIPELINE, d, 1)
    received, _ = PIPELINE.receive(PIPELINE.send(update_of(memory, np.ones(d)), memory)[0], server)
    if when == "after it":
        PIPELINE.total_of(received, server)
    other = copied(received)
    np.testing.assert_array_equal(other.values, received.values)
    with pytest.raises(dp.NotPrivate, match="share of the noise"):
        PIPELINE.total_of(other, server)
    assert PIPELINE.total_of(received, server).units == 1


def test_a_total_of_clean_units_is_not_released_as_if_it_had_noise():
    plain = pipeline_of(codec=dp.Codec(), downlink=None)
    total = plain.clip(np.ones((3, 10)), plain.init_server(10, RUN))
    server = server_of(PIPELINE, 10).memory
    with pytest.raises(dp.NotPrivate, match="not made by this pipeline"):
        PIPELINE.noise(total, server, dp.SecretSeed(), dp.Ledger().charge(PIPELINE.cost, server.address))


def test_no_compiled_program_draws_the_noise():
    server = server_of(PIPELINE, 10).memory
    with pytest.raises(dp.NotPrivate, match="messages"):
        PIPELINE.draw_noise(server, dp.SecretSeed(), dp.Ledger().charge(PIPELINE.cost, server.address), 1)


# The secret.


def test_ends_without_the_secret_are_refused():
    for key in (None, KEYS, b"1" * 32):
        with pytest.raises(ValueError, match="secret"):
            PIPELINE.init_client(10, RUN, 1, dither_key=key)
    for keys in (None, KEYS.of(1)):
        with pytest.raises(ValueError, match="secret"):
            PIPELINE.init_server(10, RUN, dither_keys=keys)
    plain = pipeline_of(codec=dp.Codec(), downlink=None)
    with pytest.raises(ValueError, match="leave it out"):
        plain.init_server(10, RUN, dither_keys=KEYS)
    with pytest.raises(dp.NotPrivate, match="secret"):
        PIPELINE.send(
            update_of(client_of(PIPELINE, 10, 1), np.ones(10)), replace(client_of(PIPELINE, 10, 1), dither_key=None)
        )


@pytest.mark.parametrize("make", [dp.DitherKey, dp.DitherKeys])
def test_a_key_is_not_shown_and_does_not_leave_its_process(make):
    key = make(b"0123456789abcdef0123456789abcdef")
    assert "0123" not in repr(key)
    with pytest.raises(TypeError, match="process"):
        pickle.dumps(key)
    with pytest.raises(ValueError, match="32"):
        make(b"short")
    with pytest.raises(TypeError, match="bytes"):
        make("0123456789abcdef0123456789abcdef")


def test_keys_of_clients_differ_and_tell_nothing_of_each_other():
    keys = [KEYS.of(client).to_bytes() for client in range(100)]
    assert len(set(keys)) == 100
    assert dp.DitherKey(keys[7]).of_message(1, 2) == KEYS.of(7).of_message(1, 2) != KEYS.of(7).of_message(2, 1)


def secrets_in(data):
    return any(KEYS.of(client).to_bytes() in data for client in range(COHORT)) or bytes(range(32)) in data


def test_a_secret_stands_in_no_checkpoint_and_no_message(tmp_path):
    server = server_of(PIPELINE, 10, folder=tmp_path / "server")
    memory = client_of(PIPELINE, 10, 1, run_id=server.memory.genesis.run_id)
    payload, after = PIPELINE.send(update_of(memory, np.ones(10)), memory)
    reply, broadcast = server.handle(payload, 1), server.close_round()
    path = checkpoint.save(tmp_path / "client", Checkpoint(after, np.zeros(10, np.float32)))
    files = [path, *(each for each in (tmp_path / "server").rglob("*") if each.is_file())]
    assert len(files) >= 3
    for data in (payload, reply, broadcast, *(each.read_bytes() for each in files)):
        assert not secrets_in(data)
    restored = checkpoint.load(tmp_path / "client", PIPELINE.channel).memory
    assert restored.dither_key is None


def test_no_two_messages_have_one_dither():
    """Neither of two rounds, nor of two clients, nor of two federations that begin alike, nor after another history."""
    seen, d = [], 6
    for run_id in (b"first   ", b"second  "):
        server = server_of(PIPELINE, d, run_id=run_id)
        memories = {client: client_of(PIPELINE, d, client, run_id=run_id) for client in range(2)}
        for _ in range(3):
            for client, memory in memories.items():
                channel = PIPELINE.channel
                seen.append(channel.message_context(channel.uplink, memory).noise_share.dither_key)
                at_server = channel.message_context(channel.uplink, server.memory, client, server.memory.link(client))
                assert at_server.noise_share.dither_key == seen[-1]
            payload, memories[0] = PIPELINE.send(update_of(memories[0], np.ones(d)), memories[0])
            server.handle(payload, 0)
            broadcast = server.close_round()
            memories = {client: PIPELINE.follow(broadcast, memory) for client, memory in memories.items()}
    assert len(set(seen)) == len(seen) == 12
    public = PIPELINE.channel.context(client_of(PIPELINE, d, 0))
    assert public.noise_share is None
    assert public.dither_key not in seen


def test_ends_that_name_no_federation_have_no_dither():
    """With the same keys and seed, another federation would have the same, and the difference of releases no noise."""
    d = 10
    memory = PIPELINE.init_client(d, RUN, 1, dither_key=KEYS.of(1))
    with pytest.raises(dp.NotPrivate, match=r"run_id=os\.urandom\(8\)"):
        PIPELINE.send(update_of(memory, np.ones(d)), memory)
    payload, _ = PIPELINE.send(update_of(memory, np.ones(d)), client_of(PIPELINE, d, 1))
    with pytest.raises(dp.VersionMismatch):  # of other shared memory, whose digest begins with the run id
        PIPELINE.receive(payload, PIPELINE.init_server(d, RUN, dither_keys=KEYS))


def test_both_ends_go_on_after_a_restart_with_their_secrets_given_anew(tmp_path):
    d, ledger = 40, dp.Ledger()

    def open_server():
        return server_of(PIPELINE, d, folder=tmp_path / "server", ledger=ledger, run_id=None)

    def open_client():
        memory = PIPELINE.init_client(d, RUN, 2, dither_key=KEYS.of(2))
        return Participant(PIPELINE.channel, memory, np.zeros(d, np.float32), dp.Ledger(), folder=tmp_path / "client")

    server, client = open_server(), open_client()

    def ask():
        for message in client.handle(TimedOut()):
            reply = server.handle(message, sender=2)
            assert client.handle(ReplyReceived(reply)) == []

    for _ in range(2):
        ask()
        assert client.may_train
        (payload,) = client.handle(Trained(update_of(client.state.memory, np.ones(d))))
        client = open_client()
        assert server.handle(payload, sender=2) is not None
        assert len(server.accepted) == 1
        server.close()
        server = open_server()
        assert len(server.accepted) == 1
        server.close_round()
    server.close()
    assert server.memory.link(2).count == 2

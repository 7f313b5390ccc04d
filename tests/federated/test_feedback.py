"""Momentum at the clients: what they keep survives refusals, kills and absence, and the server adds up what it must."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.federated.absence import Decay, Drop, Keep
from dpcomp.federated.client import ClientState, transition
from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import BroadcastReceived, Phase, ReplyReceived, Restarted, TimedOut, Trained
from dpcomp.federated.server import Server
from dpcomp.federated.server.late import Weigh
from dpcomp.federated.server.optimizers import ServerOptimizer
from dpcomp.wire.headers import read
from dpcomp.wire.update import with_claim, with_learning_rate

LAYOUT = dp.Layout.of({"a": (40, 10), "b": (13,)})
RUN, D = dp.PublicSeed(3), 413
NOISE = (dp.Clip(1.0), dp.Gaussian(0.5))
TOP = dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4))
MOMENTA = [dp.MomentumCorrection(momentum=0.8), dp.MomentumCorrection(momentum=0.8, masking=False), dp.EF21(weight=0.3)]
MOMENTUM = pytest.mark.parametrize("feedback", MOMENTA, ids=str)
CLIENT, CLIENTS = 4, 5


def zeros():
    return np.zeros(D, np.float32)


def pipeline_of(feedback, codec=TOP):
    return dp.Pipeline(mechanism=NOISE, codec=codec, downlink=dp.Codec(), feedback=feedback)


def server_of(pipeline, **given):
    memory = pipeline.init_server(LAYOUT, RUN, run_id=b"momentum")
    return Server(pipeline.channel, memory, zeros(), **({"clients": CLIENTS} | given))


def update_of(pipeline, memory, seed, rate=1.0):
    values = np.random.default_rng([seed, memory.client]).standard_normal(D).astype(np.float32)
    made = with_claim(dp.Update(values=values, layout=LAYOUT, address=memory.address), pipeline.claim)
    return with_learning_rate(made, rate)


def synced(pipeline, server):
    state = ClientState(memory=pipeline.init_client(LAYOUT, RUN, CLIENT), model=zeros())
    asking, (_, question) = transition(pipeline.channel, state, TimedOut())
    state, _ = transition(pipeline.channel, asking, ReplyReceived(server.handle(question.message, CLIENT)))
    assert state.phase is Phase.SYNCED
    return state


def accepted(pipeline, server, rounds=3):
    """A client after so many accepted updates, of which the last round is closed."""
    state = synced(pipeline, server)
    for number in range(rounds):
        update = update_of(pipeline, state.memory, number)
        state, (_, send) = transition(pipeline.channel, state, Trained(update))
        state, _ = transition(pipeline.channel, state, ReplyReceived(server.handle(send.message, CLIENT)))
        state, _ = transition(pipeline.channel, state, BroadcastReceived(server.close_round()))
    return state


def bytes_of(kept):
    return {name: vector.tobytes() for name, vector in kept.vectors.items()}


@MOMENTUM
def test_while_a_payload_is_pending_nothing_that_is_kept_has_changed(feedback):
    pipeline = pipeline_of(feedback)
    server = server_of(pipeline)
    state = accepted(pipeline, server)
    sending, (_, send) = transition(pipeline.channel, state, Trained(update_of(pipeline, state.memory, 9)))
    assert bytes_of(sending.memory.kept) == bytes_of(state.memory.kept)
    after, _ = transition(pipeline.channel, sending, ReplyReceived(server.handle(send.message, CLIENT)))
    assert bytes_of(after.memory.kept) == bytes_of(sending.pending.kept) != bytes_of(state.memory.kept)


@MOMENTUM
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_a_refused_payload_counts_as_if_nothing_had_been_sent(feedback, rate):
    pipeline = pipeline_of(feedback)
    server = server_of(pipeline)
    state = accepted(pipeline, server)
    update, kept = update_of(pipeline, state.memory, 9, rate), state.memory.kept
    sending, (_, send) = transition(pipeline.channel, state, Trained(update))
    server.close_round()
    late = read(send.message, state.memory).in_full()
    after, (_, question) = transition(pipeline.channel, sending, ReplyReceived(server.handle(late, CLIENT)))
    after, _ = transition(pipeline.channel, after, ReplyReceived(server.handle(question.message, CLIENT)))
    assert after.pending is None and after.phase is Phase.SYNCED
    x, now = update.dense(), after.memory.kept
    if isinstance(feedback, dp.EF21):
        np.testing.assert_allclose(now.momentum, 0.7 * kept.momentum + 0.3 * x / rate, atol=1e-5)
        assert now.sent.tobytes() == kept.sent.tobytes()
    else:
        momentum = 0.8 * kept.momentum + x / rate
        np.testing.assert_allclose(now.momentum, momentum, atol=1e-5)
        np.testing.assert_allclose(now.residual, kept.residual + rate * momentum, atol=1e-5)


@MOMENTUM
@pytest.mark.parametrize(("policy", "left"), [(Keep(), 1.0), (Decay(half_life=4), 0.25), (Drop(), 0.0)])
def test_after_eight_missed_rounds_the_policy_ages_all_but_what_the_server_has(feedback, policy, left):
    pipeline = pipeline_of(feedback)
    server = server_of(pipeline)
    state = accepted(pipeline, server)
    for _ in range(8):
        server.close_round()
    stale, _ = transition(pipeline.channel, state, Restarted())
    asking, (_, question) = transition(pipeline.channel, stale, TimedOut())
    reply = ReplyReceived(server.handle(question.message, CLIENT))
    after, _ = transition(pipeline.channel, asking, reply, policy)
    for name, before in state.memory.kept.vectors.items():
        expected = before if name == "sent" else left * before
        np.testing.assert_allclose(after.memory.kept.vectors[name], expected, atol=1e-7)
        assert np.abs(before).max() > 0


@MOMENTUM
def test_what_is_kept_after_a_payload_that_is_still_pending_ages_too(feedback):
    pipeline = pipeline_of(feedback)
    server = server_of(pipeline, late_policy=Weigh(max_age=4, exponent=0.0))
    state = accepted(pipeline, server)
    sending, _ = transition(pipeline.channel, state, Trained(update_of(pipeline, state.memory, 9)))
    for _ in range(3):
        server.close_round()
    stale, _ = transition(pipeline.channel, sending, Restarted())
    asking, (_, question) = transition(pipeline.channel, stale, TimedOut())
    reply = ReplyReceived(server.handle(question.message, CLIENT))
    after, _ = transition(pipeline.channel, asking, reply, Drop())
    for name, before in sending.pending.kept.vectors.items():
        now = after.pending.kept.vectors[name]
        assert now.tobytes() == before.tobytes() if name == "sent" else not now.any()
        assert np.abs(before).max() > 0


def participant_of(pipeline, folder=None, ledger=None):
    memory = pipeline.init_client(LAYOUT, RUN, CLIENT)
    return Participant(pipeline.channel, memory, zeros(), ledger or dp.Ledger(), folder)


def opened_again(pipeline, folder, ledger, server):
    """A new process of the client, once it knows where the server stands, and what it sends again."""
    client = participant_of(pipeline, folder, ledger)
    (hello,) = client.handle(TimedOut())
    return client, client.handle(ReplyReceived(server.handle(hello, CLIENT)))


@MOMENTUM
def test_a_client_and_a_server_that_are_killed_after_every_message_send_the_same_bytes(feedback, tmp_path):
    pipeline = pipeline_of(feedback)
    runs = []
    for killed in (False, True):
        folders = (tmp_path / "client", tmp_path / "server") if killed else (None, None)
        ledger, server = dp.Ledger(), server_of(pipeline, folder=folders[1])
        client, payloads = participant_of(pipeline, folders[0], ledger), []

        for hello in client.handle(TimedOut()):
            client.handle(ReplyReceived(server.handle(hello, CLIENT)))
        for number in range(6):
            memory = client.state.memory
            ledger.charge(pipeline.cost, memory.address)
            rate = 1 / (1 + number)
            messages = client.handle(Trained(update_of(pipeline, memory, number, rate)))
            if killed:
                client, messages = opened_again(pipeline, folders[0], ledger, server)
            (message,) = messages
            payloads.append(bytes(read(message, server.memory).body))
            reply = server.handle(message, CLIENT)
            if killed:
                server.close()
                server = server_of(pipeline, folder=folders[1])
                client, _ = opened_again(pipeline, folders[0], ledger, server)
            else:
                client.handle(ReplyReceived(reply))
            broadcast = server.close_round()
            if killed:
                server.close()
                server = server_of(pipeline, folder=folders[1])
            client.handle(BroadcastReceived(broadcast))
        runs.append((payloads, bytes_of(client.state.memory.kept), server.model.tobytes()))
        server.close()
    assert runs[0] == runs[1]


class TestServerMomentum:
    @pytest.mark.parametrize("feedback", [True, *MOMENTA], ids=str)
    def test_behind_feedback_it_is_refused_unless_asked_for(self, feedback):
        pipeline = pipeline_of(feedback)
        with pytest.raises(ValueError, match=r"applied 10 times over.*behind_feedback=True"):
            server_of(pipeline, optimizer=ServerOptimizer(momentum=0.9))
        server_of(pipeline, optimizer=ServerOptimizer(momentum=0.9, behind_feedback=True))
        server_of(pipeline, optimizer=ServerOptimizer(learning_rate=0.5))

    @pytest.mark.parametrize("codec", [dp.Codec(), dp.Codec(quantize=dp.Float32())], ids=str)
    def test_nothing_waits_behind_a_codec_that_drops_nothing(self, codec):
        server_of(pipeline_of(True, codec), optimizer=ServerOptimizer(momentum=0.9))
        pipeline = pipeline_of(dp.MomentumCorrection(masking=False), codec)
        with pytest.raises(ValueError, match="behind feedback"):
            server_of(pipeline, optimizer=ServerOptimizer(momentum=0.9))

    @pytest.mark.parametrize("codec", [TOP, dp.Codec(quantize=dp.Uniform(8)), dp.Codec(quantize=dp.Float16())], ids=str)
    def test_without_feedback_it_is_allowed(self, codec):
        server_of(pipeline_of(False, codec), optimizer=ServerOptimizer(momentum=0.9))
        with pytest.raises(ValueError, match="behind feedback"):
            server_of(pipeline_of(True, codec), optimizer=ServerOptimizer(momentum=0.9))

    def test_the_permission_is_yes_or_no(self):
        with pytest.raises(TypeError, match="give True or False"):
            ServerOptimizer(behind_feedback=1)


class TestDifferences:
    PIPELINE = pipeline_of(dp.EF21(weight=0.3))

    def test_the_steps_of_the_server_are_the_mean_of_what_all_clients_have_sent_in_total(self):
        pipeline, rng = self.PIPELINE, np.random.default_rng(0)
        server = server_of(pipeline)
        clients = [
            Participant(pipeline.channel, pipeline.init_client(LAYOUT, RUN, number), zeros(), dp.Ledger())
            for number in range(CLIENTS)
        ]
        for number, client in enumerate(clients):
            for hello in client.handle(TimedOut()):
                client.handle(ReplyReceived(server.handle(hello, number)))
        for round_number in range(12):
            for number in rng.choice(CLIENTS, 2 if round_number % 4 else 0, replace=False):
                client = clients[number]
                client.ledger.charge(pipeline.cost, client.state.memory.address)
                (message,) = client.handle(Trained(update_of(pipeline, client.state.memory, round_number)))
                client.handle(ReplyReceived(server.handle(message, number)))
            before = server.model
            broadcast = server.close_round()
            for client in clients:
                client.handle(BroadcastReceived(broadcast))
            mean = sum(client.state.memory.kept.sent for client in clients) / CLIENTS
            np.testing.assert_allclose(server.model - before, mean, atol=1e-5)
        assert np.abs(mean).max() > 0

    @pytest.mark.parametrize("who", ["server", "client"])
    def test_an_end_that_was_set_back_is_refused_where_nobody_knows_what_the_server_has(self, who, tmp_path):
        """Else the server's estimate keeps, or lacks, a part of what the client has sent, for good."""
        pipeline, folder = self.PIPELINE, tmp_path / "server"
        server = server_of(pipeline, folder=folder)
        state, states = synced(pipeline, server), []
        for number in range(4):
            states.append(state)
            if number == 2:
                shutil.copytree(folder, tmp_path / "backup")
            state, (_, send) = transition(pipeline.channel, state, Trained(update_of(pipeline, state.memory, number)))
            state, _ = transition(pipeline.channel, state, ReplyReceived(server.handle(send.message, CLIENT)))
            state, _ = transition(pipeline.channel, state, BroadcastReceived(server.close_round()))
        if who == "server":
            server.close()
            server = server_of(pipeline, folder=tmp_path / "backup")
        else:
            state = states[2]
        stale, _ = transition(pipeline.channel, state, Restarted())
        asking, (_, question) = transition(pipeline.channel, stale, TimedOut())
        reply = ReplyReceived(server.handle(question.message, CLIENT))
        with pytest.raises(dp.VersionMismatch, match="one of the two was set back"):
            transition(pipeline.channel, asking, reply)
        server.close()

    def test_a_server_that_has_nothing_of_a_client_is_sent_all(self, tmp_path):
        pipeline = self.PIPELINE
        server = server_of(pipeline, folder=tmp_path / "server")
        shutil.copytree(tmp_path / "server", tmp_path / "backup")
        state = accepted(pipeline, server)
        server.close()
        server = server_of(pipeline, folder=tmp_path / "backup")
        asking, (_, question) = transition(pipeline.channel, state, TimedOut())
        after, _ = transition(pipeline.channel, asking, ReplyReceived(server.handle(question.message, CLIENT)))
        assert after.phase is Phase.SYNCED
        assert not after.memory.kept.sent.any()
        assert after.memory.kept.momentum.tobytes() == state.memory.kept.momentum.tobytes()
        server.close()

    def test_the_number_of_clients_is_needed(self):
        pipeline = self.PIPELINE
        with pytest.raises(ValueError, match=r"give Server\(clients=\.\.\.\)"):
            Server(pipeline.channel, pipeline.init_server(LAYOUT, RUN), zeros())

    def test_a_late_difference_counts_in_full_or_not_at_all(self):
        with pytest.raises(ValueError, match="apart from the client's for good"):
            server_of(self.PIPELINE, late_policy=Weigh(max_age=2))
        server_of(self.PIPELINE, late_policy=Weigh(max_age=2, exponent=0.0))
        server_of(pipeline_of(True), late_policy=Weigh(max_age=2))

    def test_the_estimate_has_the_claim_of_the_releases(self):
        server = server_of(self.PIPELINE)
        step, _ = server._optimizer.step(server._mean(forfeits=False), {})
        assert step.claim == self.PIPELINE.claim
        server.close_round()
        assert server.memory.step.claim == self.PIPELINE.claim


def test_what_a_memory_keeps_is_its_own():
    pipeline = pipeline_of(dp.EF21())
    memory = pipeline.init_client(LAYOUT, RUN, CLIENT)
    assert replace(memory, client=2).kept is memory.kept
    assert memory.residual is None

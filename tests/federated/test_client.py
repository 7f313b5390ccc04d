"""The client's state machine, case by case: its word on what it sent is the server's alone."""

from dataclasses import replace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.federated.absence import Decay, Drop, Keep
from dpcomp.federated.client import ClientState, transition
from dpcomp.federated.messages import HELLO, REPLY
from dpcomp.federated.phases import (
    BroadcastReceived,
    Phase,
    ReplyReceived,
    Restarted,
    Save,
    Send,
    TimedOut,
    Trained,
)
from dpcomp.federated.server import Server
from dpcomp.federated.server.late import Weigh
from dpcomp.wire.headers import read
from dpcomp.wire.update import with_claim

LAYOUT = dp.Layout.of({"a": (40, 10), "b": (13,)})
RUN = dp.PublicSeed(3)
PIPELINE = dp.Pipeline(
    mechanism=(dp.Clip(1.0), dp.Gaussian(0.5)), codec=dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4))
)


def zeros():
    return np.zeros(LAYOUT.size, np.float32)


def ends(pipeline=PIPELINE):
    """A client that is synced, and its server."""
    server = Server(pipeline.channel, pipeline.init_server(LAYOUT, RUN), zeros())
    state = ClientState(memory=pipeline.init_client(LAYOUT, RUN, client=4), model=zeros())
    asking, (_, question) = transition(pipeline.channel, state, TimedOut())
    synced, _ = transition(pipeline.channel, asking, ReplyReceived(server.handle(question.message, 4)))
    assert synced.phase is Phase.SYNCED
    return synced, server


def update_of(state, seed=0, pipeline=PIPELINE):
    values = np.random.default_rng(seed).standard_normal(LAYOUT.size).astype(np.float32)
    return with_claim(
        dp.Update(values=values, layout=LAYOUT, address=state.memory.address, noise_stddev=0.5), pipeline.claim
    )


def waiting(state, seed=0, pipeline=PIPELINE):
    """After an update was sent, and its payload."""
    after, (save, send) = transition(pipeline.channel, state, Trained(update_of(state, seed, pipeline)))
    assert save == Save() and isinstance(send, Send)  # kept before it leaves
    return after, send.message


def in_full(payload, state):
    """The payload with a full header, as it is sent again."""
    return read(payload, state.memory).in_full()


def sent(actions):
    return [action.message for action in actions if isinstance(action, Send)]


def test_a_payload_is_pending_until_the_server_says_that_it_is_accepted():
    state, server = ends()
    sending, payload = waiting(state)
    assert sending.memory.link == state.memory.link
    assert sending.memory.residual.tobytes() == state.memory.residual.tobytes()
    before = server.memory
    after, actions = transition(PIPELINE.channel, sending, ReplyReceived(server.handle(payload, 4)))
    assert (after.phase, after.pending, actions) == (Phase.SYNCED, None, (Save(),))
    assert after.memory.link == server.memory.link(4)
    left = update_of(state).dense() - PIPELINE.receive(payload, before)[0].dense()
    np.testing.assert_allclose(after.memory.residual, left, atol=1e-6)


def test_however_long_an_answer_takes_the_same_update_is_sent_in_full_and_nothing_is_decided():
    state, _ = ends()
    sending, payload = waiting(state)
    for _ in range(3):
        sending, actions = transition(PIPELINE.channel, sending, TimedOut())
        assert sending.phase is Phase.WAITING and actions == (Send(in_full(payload, state)),)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("seen", [False, True])
def test_what_comes_too_late_goes_into_the_residual_on_the_servers_word(seen, full):
    state, server = ends()
    sending, payload = waiting(state)
    broadcast = server.close_round()
    if seen:
        sending, _ = transition(PIPELINE.channel, sending, BroadcastReceived(broadcast))
        assert sending.phase is Phase.WAITING and sending.pending is not None
    late = in_full(payload, state) if full else payload
    after, actions = transition(PIPELINE.channel, sending, ReplyReceived(server.handle(late, 4)))
    assert server.refusals == {"version": 1} and not server.accepted
    assert (after.pending is None) == full  # a short header that was not read decides nothing
    if not (seen and full):
        (question,) = sent(actions)
        after, _ = transition(PIPELINE.channel, after, ReplyReceived(server.handle(question, 4)))
    assert after.pending is None
    assert after.memory.link == state.memory.link
    np.testing.assert_array_equal(after.memory.residual, state.memory.residual + update_of(state).dense())
    assert after.phase is Phase.SYNCED and after.memory.shared.digest == server.memory.shared.digest


def test_without_feedback_it_is_lost():
    pipeline = dp.Pipeline(mechanism=PIPELINE.mechanism, codec=PIPELINE.codec, feedback=False)
    state, server = ends(pipeline)
    sending, payload = waiting(state, pipeline=pipeline)
    server.close_round()
    after, _ = transition(pipeline.channel, sending, ReplyReceived(server.handle(in_full(payload, state), 4)))
    assert after.pending is None and after.memory.residual is None


@pytest.mark.parametrize("arrived", [False, True])
def test_after_a_crash_the_server_tells_what_became_of_a_payload(arrived):
    state, server = ends()
    sending, payload = waiting(state)
    if arrived:
        server.handle(payload, 4)
    stale, actions = transition(PIPELINE.channel, sending, Restarted())
    assert stale.phase is Phase.STALE and actions == ()
    asking, actions = transition(PIPELINE.channel, stale, TimedOut())
    after, actions = transition(PIPELINE.channel, asking, ReplyReceived(server.handle(sent(actions)[0], 4)))
    if arrived:
        assert after.phase is Phase.SYNCED and after.memory.link == server.memory.link(4)
    else:
        assert after.phase is Phase.WAITING and sent(actions) == [in_full(payload, state)]


def test_an_answer_to_what_was_said_before_decides_nothing():
    state, server = ends()
    _, (_, question) = transition(PIPELINE.channel, *[transition(PIPELINE.channel, state, Restarted())[0], TimedOut()])
    word = server.handle(question.message, 4)
    sending, _ = waiting(state)
    after, actions = transition(PIPELINE.channel, sending, ReplyReceived(word))
    assert after is sending and actions == ()


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.SYNCED])
def test_only_a_synced_client_trains(phase):
    state, _ = ends()
    with pytest.raises(ValueError, match=f"{phase.value} does not train"):
        transition(
            PIPELINE, ClientState(memory=state.memory, model=state.model, phase=phase), Trained(update_of(state))
        )


def test_a_client_sends_one_update_a_round():
    state, server = ends()
    sending, payload = waiting(state)
    after, _ = transition(PIPELINE.channel, sending, ReplyReceived(server.handle(payload, 4)))
    with pytest.raises(ValueError, match="one update a round"):
        transition(PIPELINE.channel, after, Trained(update_of(after, seed=1)))


def test_damaged_and_foreign_messages_change_nothing():
    state, server = ends()
    sending, payload = waiting(state)
    word, broadcast = server.handle(payload, 4), server.close_round()
    other = ClientState(memory=PIPELINE.init_client(LAYOUT, RUN, client=5), model=zeros())
    for message in (word, broadcast):
        for place in (0, 5, len(message) - 1):
            damaged = bytearray(message)
            damaged[place] ^= 4
            event = ReplyReceived(bytes(damaged)) if message is word else BroadcastReceived(bytes(damaged))
            with pytest.raises(dp.CorruptPayload):
                transition(PIPELINE.channel, sending, event)
    with pytest.raises(dp.VersionMismatch, match="for client 4; this is client 5"):
        transition(PIPELINE.channel, other, ReplyReceived(word))
    elsewhere = dp.Pipeline(mechanism=PIPELINE.mechanism)
    foreign = Server(elsewhere.channel, elsewhere.init_server(LAYOUT, RUN), zeros()).close_round()
    with pytest.raises(dp.VersionMismatch, match="one configuration"):
        transition(PIPELINE.channel, sending, BroadcastReceived(foreign))


def test_a_client_of_another_run_is_told_so_instead_of_asking_to_be_resynced():
    state, _ = ends()
    elsewhere = Server(PIPELINE.channel, PIPELINE.init_server(LAYOUT, dp.PublicSeed(4)), zeros())
    with pytest.raises(dp.VersionMismatch, match="build both ends with one PublicSeed") as refusal:
        transition(PIPELINE.channel, state, BroadcastReceived(elsewhere.close_round()))
    assert refusal.value.reason == "run"


def test_a_word_that_lies_about_what_it_brings_is_refused():
    state, server = ends()
    server.close_round()
    asking, (_, question) = transition(
        PIPELINE.channel, transition(PIPELINE.channel, state, Restarted())[0], TimedOut()
    )
    word, body = REPLY.unseal(server.handle(question.message, 4))
    for lie in ({"version": 7}, {"shared": b"nonsense"}, {"link_count": 3}):
        with pytest.raises(dp.VersionMismatch):
            transition(PIPELINE.channel, asking, ReplyReceived(REPLY.seal(replace(word, **lie), body)))


@pytest.mark.parametrize(("policy", "left"), [(Keep(), 1.0), (Decay(half_life=4), 0.25), (Drop(), 0.0)])
def test_a_residual_after_eight_missed_rounds(policy, left):
    state, server = ends()
    sending, payload = waiting(state)
    state, _ = transition(PIPELINE.channel, sending, ReplyReceived(server.handle(payload, 4)))
    for _ in range(8):
        server.close_round()
    asking, (_, question) = transition(
        PIPELINE.channel, transition(PIPELINE.channel, state, Restarted())[0], TimedOut()
    )
    after, _ = transition(PIPELINE.channel, asking, ReplyReceived(server.handle(question.message, 4)), policy)
    np.testing.assert_allclose(after.memory.residual, left * state.memory.residual)
    assert np.abs(state.memory.residual).max() > 0


def test_a_half_life_is_above_zero():
    with pytest.raises(ValueError, match="half-life"):
        Decay(half_life=0)


def test_questions_and_words_are_small():
    assert HELLO.header_bytes <= 104
    assert REPLY.header_bytes <= 72


def test_policies_refuse_what_is_no_number_by_name():
    with pytest.raises(TypeError, match=r"Decay\(half_life\) is '3': give a number of rounds above 0"):
        Decay("3")
    with pytest.raises(TypeError, match=r"Weigh\(max_age\).* is 1.5: give a whole number from 1 to 4,294,967,295"):
        Weigh(max_age=1.5)
    with pytest.raises(TypeError, match=r"Weigh\(exponent\) is '1': give a number from 0 on"):
        Weigh(max_age=1, exponent="1")

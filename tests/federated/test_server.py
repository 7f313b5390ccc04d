"""The server: what it takes, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.core.exact_sum import ExactSum
from dpcomp.federated.client import ClientState, transition
from dpcomp.federated.phases import BroadcastReceived, Phase, Restarted, TimedOut, Trained
from dpcomp.federated.server import Server
from dpcomp.federated.server.late import Reject, Weigh
from dpcomp.federated.server.optimizers import ServerOptimizer
from dpcomp.wire.frame import PAYLOAD
from dpcomp.wire.headers import read, unsealed
from tests.federated.ends import (
    LAYOUT,
    NOISE,
    PIPELINE,
    RUN,
    TOP,
    TRUSTED,
    participant_of,
    server_of,
    talk,
    together,
    trained,
    update_of,
    zeros,
)


def payload_of(pipeline, **changes):
    """A payload that would be accepted, but for the changes."""
    participant = participant_of(pipeline, **changes)
    return pipeline.send(update_of(pipeline, participant.state.memory), participant.state.memory)[0]


def forged(payload, **fields):
    frame, body = PAYLOAD.unseal(payload)
    return PAYLOAD.seal(replace(frame, **fields), body)


def claimed(message):
    """Who a message says that it is of."""
    try:
        return unsealed(message).client
    except dp.CorruptPayload:
        return 1


@pytest.mark.parametrize("trusted", [False, True])
def test_what_belongs_elsewhere_changes_nothing_and_is_counted(trusted):
    pipeline = TRUSTED if trusted else PIPELINE
    server, participant = together(pipeline, 2)
    memory = participant.state.memory
    short, _ = pipeline.send(update_of(pipeline, memory, 5), memory)
    good = read(short, memory).in_full()
    other = replace(pipeline, codec=dp.Codec(sparsify=dp.TopK(0.02), quantize=dp.Uniform(4)))
    bad = {
        "pipeline": [payload_of(other), payload_of(pipeline, layout=dp.Layout.of({"a": (48, 100), "b": (200,)}))],
        "run": [payload_of(pipeline, run=dp.PublicSeed(4)), forged(good, run=9)],
        "version": [payload_of(pipeline), forged(good, version=1), forged(good, shared=b"12345678")],
        "link": [forged(good, client=3), forged(good, link=b"12345678"), forged(good, link_count=7)],
        "repeat": [forged(good, link_count=1)],
        "direction": [server_of(pipeline).close_round(), forged(good, client=dp.SERVER)],
        "corrupt": [good[:-1], good[:20], b"", b"nonsense" * 20, forged(good, link=bytes(8))[:-1] + b"x", good + b"x"],
    }
    before, model = server.memory, server.model.tobytes()
    for reason, messages in bad.items():
        for message in messages:
            counted = server.refusals.copy()
            server.handle(message, claimed(message))
            assert server.memory is before and not server.accepted and server.model.tobytes() == model
            assert server.refusals - counted == {reason: 1}
    assert server.handle(good, 1) is not None and len(server.accepted) == 1  # none of it spoilt anything
    server.handle(good, 1)
    assert len(server.accepted) == 1 and server.refusals["repeat"] == 2


def test_values_that_are_not_finite_are_refused():
    pipeline = dp.Pipeline(mechanism=NOISE, codec=dp.Codec())
    server, participant = together(pipeline, 0)
    payload, _ = pipeline.send(update_of(pipeline, participant.state.memory), participant.state.memory)
    frame, body = PAYLOAD.unseal(read(payload, participant.state.memory).in_full())
    for value in (np.nan, np.inf, -np.inf):
        word = server.handle(PAYLOAD.seal(frame, body[:-4] + np.float32(value).tobytes()), 1)
        assert word is not None and not server.accepted
    assert server.refusals == {"corrupt": 3}


def test_a_trusted_server_clips_what_it_hears():
    ledger = dp.Ledger()
    loud, server = participant_of(TRUSTED), server_of(TRUSTED, ledger=ledger)
    talk(loud, server, TimedOut())
    memory = loud.state.memory
    update = dp.Update(values=np.full(LAYOUT.size, 1e3, np.float32), layout=LAYOUT, address=memory.address)
    talk(loud, server, Trained(update))
    server.close_round()
    silent = server_of(TRUSTED)
    silent.close_round()
    assert np.linalg.norm((server.model - silent.model).astype(np.float64)) < 2  # the noise is the same


def test_a_late_update_counts_less_where_that_is_declared():
    server, participant = server_of(late_policy=Weigh(max_age=2, exponent=1.0)), participant_of()
    talk(participant, server, TimedOut())
    (payload,) = participant.handle(trained(participant))
    server.close_round()
    server.close_round()
    taken, _ = PIPELINE.receive(payload, server.memory)
    server.handle(payload, 1)
    ((client, weight, payload_bytes),) = server.accepted
    assert (client, weight, payload_bytes) == (1, pytest.approx(1 / 3), len(payload))
    before = server.model
    server.close_round()
    moved = server.model + server.memory.residual - before
    np.testing.assert_allclose(moved, taken.dense() / 3, atol=1e-6)
    tardy = participant_of(client=8)
    talk(tardy, server_of(), TimedOut())
    (payload,) = tardy.handle(trained(tardy))
    server.handle(payload, 8)
    assert server.refusals == {"version": 1}  # three rounds late


def test_late_updates_are_not_weighed_under_a_trusted_server():
    with pytest.raises(dp.NotPrivate, match="twice the sensitivity"):
        server_of(TRUSTED, late_policy=Weigh(max_age=1))


def test_a_state_machine_runs_without_a_participant():
    state = ClientState(memory=PIPELINE.init_client(LAYOUT, RUN, 1), model=zeros())
    assert transition(PIPELINE.channel, state, Restarted())[0].phase is Phase.STALE


def test_a_payload_of_another_run_is_refused_with_the_remedy_that_helps():
    with pytest.raises(dp.VersionMismatch, match="build both ends with one PublicSeed") as refusal:
        PIPELINE.receive(payload_of(PIPELINE, run=dp.PublicSeed(4)), server_of().memory)
    assert refusal.value.reason == "run"


def test_nobody_speaks_for_another():
    server, participant = together(TRUSTED, 1)
    spy = participant_of(TRUSTED, client=6)
    (question,) = participant.handle(TimedOut())
    payload, _ = TRUSTED.send(update_of(TRUSTED, participant.state.memory, 3), participant.state.memory)
    for message in (question, payload):
        assert server.handle(message, spy.state.memory.client) is None
    assert server.refusals == {"direction": 2} and not server.accepted
    small = Server(PIPELINE.channel, PIPELINE.init_server(LAYOUT, RUN), zeros(), clients=1)
    assert small.handle(participant_of(client=1).handle(TimedOut())[0], 1) is None
    assert small.handle(participant_of(client=0).handle(TimedOut())[0], 0) is not None


@pytest.mark.parametrize("down", [dp.Codec(), TOP, dp.Codec(predict=dp.LastBroadcast(), quantize=dp.Sign())])
def test_values_that_no_sum_can_bear_are_refused(down):
    pipeline = dp.Pipeline(mechanism=NOISE, codec=dp.Codec(), downlink=down)
    server, participant = together(pipeline, 0)
    for value in (3e38, -1e30):
        update = update_of(pipeline, participant.state.memory)
        talk(participant, server, Trained(update.derive(np.full(LAYOUT.size, value, np.float32))))
        talk(participant, server, BroadcastReceived(server.close_round()))
    assert server.refusals == {"corrupt": 2} and not server.model.any()


@pytest.mark.parametrize(
    "terms", [{"momentum": "0.9"}, {"momentum": 1.0}, {"momentum": float("nan")}, {"learning_rate": None}]
)
def test_an_optimiser_that_would_make_no_step_is_refused(terms):
    with pytest.raises((TypeError, ValueError), match=r"learning.rate|momentum"):
        ServerOptimizer(**terms)


def test_a_model_of_another_size_is_refused():
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
    with pytest.raises(ValueError, match=r"the model has shape \(1,\), the memory's layout 10 coordinates"):
        Server(pipeline.channel, pipeline.init_server(10, dp.PublicSeed(0)), np.zeros(1, np.float32))


def test_an_update_that_the_ledger_was_not_charged_for_never_leaves():
    participant = participant_of()
    talk(participant, server_of(), TimedOut())
    update = update_of(PIPELINE, participant.state.memory)
    dp.Ledger().charge(PIPELINE.cost, update.address)  # another ledger, by mistake
    with pytest.raises(dp.DpcompError, match=r"which Ledger\(\) never charged: it would report too small an ε"):
        participant.handle(Trained(update))
    assert participant.may_train
    participant.ledger.charge(PIPELINE.cost, update.address)
    assert len(participant.handle(Trained(update))) == 1


@pytest.mark.parametrize("kept", [False, True])
def test_a_server_that_was_interrupted_while_it_counts_goes_no_further(monkeypatch, tmp_path, kept):
    server, participant = server_of(folder=tmp_path if kept else None), participant_of()
    talk(participant, server, TimedOut())
    (payload,) = participant.handle(trained(participant))
    add = ExactSum.add

    def interrupted(*arguments):
        add(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(ExactSum, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.handle(payload, 1)
    monkeypatch.undo()
    for go_on in (lambda: server.handle(payload, 1), server.close_round):
        with pytest.raises(dp.DpcompError, match="interrupted while it counted an update"):
            go_on()
    if kept:
        server.restart()
        assert [one.client for one in server.accepted] == [1]
        server.handle(payload, 1)
        server.close_round()
        once, other = server_of(), participant_of()
        talk(other, once, TimedOut())
        once.handle(other.handle(trained(other))[0], 1)
        once.close_round()
        np.testing.assert_array_equal(server.model, once.model)
        server.close()


@pytest.mark.parametrize("given", [{"late_policy": Reject}, {"optimizer": ServerOptimizer}])
def test_a_class_in_the_place_of_its_instance_is_refused_at_once(given):
    with pytest.raises(TypeError, match=r"is a class: give an instance of it, such as \w+\(\.\.\.\)"):
        server_of(**given)


@pytest.mark.parametrize(("client", "reason"), [(-1, "budget"), (dp.SERVER, "budget"), (1, "round"), (1, "bored")])
def test_a_transport_withdraws_known_clients_for_known_reasons_alone(client, reason):
    server = server_of()
    with pytest.raises(ValueError, match="withdraw"):
        server.withdraw(client, reason)
    assert not server.withdrawn
    server.withdraw(1, "budget")
    assert server.withdrawn == {1: "budget"}


def test_a_client_of_another_library_s_integers_withdraws_too(tmp_path):
    server = server_of(folder=tmp_path)
    server.withdraw(np.int64(1), "budget")
    server.close()
    server = server_of(folder=tmp_path)
    assert server.withdrawn == {1: "budget"}
    server.close()

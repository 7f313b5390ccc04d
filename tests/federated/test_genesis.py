"""Two ends of different federations never sync, and are told why; a client may live from question to reply only."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.federated import BroadcastReceived, Participant, ReplyReceived, Server, TimedOut, Trained
from dpcomp.federated.messages import HELLO, NO_DIGEST, REPLY
from dpcomp.federated.phases import Phase
from dpcomp.wire.headers import read, unsealed
from tests.federated.ends import LAYOUT, PIPELINE, RUN, stands_with, talk, trained, update_of, zeros

ONES = np.ones(LAYOUT.size, np.float32)


def server_of(model=None, folder=None, pipeline=PIPELINE, layout=LAYOUT, run=RUN, run_id=None):
    memory = pipeline.init_server(layout, run, run_id=run_id)
    return Server(pipeline.channel, memory, zeros(layout) if model is None else model, folder=folder)


def client_of(model=None, folder=None, pipeline=PIPELINE, layout=LAYOUT, run=RUN, ledger=None, number=7):
    memory = pipeline.init_client(layout, run, number)
    first = zeros(layout) if model is None else model
    return Participant(pipeline.channel, memory, first, ledger or dp.Ledger(), folder=folder)


OTHERS = {
    "pipeline": {"pipeline": replace(PIPELINE, codec=dp.Codec(quantize=dp.Uniform(3)))},
    "run": {"run": dp.PublicSeed(99)},
    "model": {"model": ONES},
}


@pytest.mark.parametrize("reason", [*OTHERS, "layout"])
def test_a_client_of_another_federation_is_told_what_differs(reason):
    other = {"layout": dp.Layout.of({"a": (48, 100), "b": (200,)})} if reason == "layout" else OTHERS[reason]
    server, client = server_of(), client_of(**other)
    (hello,) = client.handle(TimedOut())
    reply, before = server.handle(hello, 7), client.state
    assert reply is not None
    with pytest.raises(dp.VersionMismatch, match=r"the server refuses this client: .*both ends") as caught:
        client.handle(ReplyReceived(reply))
    assert caught.value.reason == ("pipeline" if reason == "layout" else reason)
    assert client.state is before and not client.may_train
    assert server.refusals == {caught.value.reason: 1}


def test_a_payload_of_another_pipeline_is_answered_too():
    other = OTHERS["pipeline"]["pipeline"]
    home, client = server_of(pipeline=other), client_of(pipeline=other)
    talk(client, home, TimedOut())
    (payload,) = client.handle(trained(client, other))
    before = client.state
    in_full, elsewhere = read(payload, before.memory).in_full(), server_of()
    for message, reason in ((payload, "run"), (in_full, "pipeline")):  # a short header does not say of which it is
        with pytest.raises(dp.VersionMismatch) as caught:
            client.handle(ReplyReceived(elsewhere.handle(message, 7)))
        assert caught.value.reason == reason
        assert client.state is before
    assert elsewhere.refusals == {"link": 1, "pipeline": 1}


def test_servers_of_one_configuration_have_run_ids_of_their_own_and_take_no_payload_of_each_other():
    one, other, client = server_of(), server_of(), client_of()
    assert one.memory.genesis.run_id != other.memory.genesis.run_id
    assert client.state.memory.genesis.run_id == NO_DIGEST
    talk(client, one, TimedOut())
    stands_with(client, one)
    assert client.state.memory.genesis == one.memory.genesis
    (payload,) = client.handle(trained(client))
    reply, before = other.handle(payload, 7), client.state
    assert not other.accepted and other.refusals == {"link": 1}
    with pytest.raises(dp.VersionMismatch, match="another federation of the same seed") as caught:
        client.handle(ReplyReceived(reply))
    assert caught.value.reason == "run" and client.state is before  # the payload is still pending
    client.restart()
    (hello,) = client.handle(TimedOut())
    with pytest.raises(dp.VersionMismatch, match="another federation") as caught:
        client.handle(ReplyReceived(other.handle(hello, 7)))
    assert caught.value.reason == "run"
    talk(client, one, TimedOut())
    assert len(one.accepted) == 1 and client.state.phase is Phase.SYNCED


@pytest.mark.parametrize("behind", [0, 1, 300])
def test_a_new_client_learns_the_run_id_at_any_version(behind):
    server = server_of()
    for _ in range(behind):
        server.close_round()
    client = client_of()
    talk(client, server, TimedOut())
    stands_with(client, server)
    talk(client, server, Trained(update_of(PIPELINE, client.state.memory)))
    assert len(server.accepted) == 1
    talk(client, server, BroadcastReceived(server.close_round()))
    stands_with(client, server)


def test_a_run_id_changes_headers_alone():
    bodies = []
    for run_id in (b"one run.", b"another."):
        server, client = server_of(run_id=run_id), client_of()
        talk(client, server, TimedOut())
        (payload,) = client.handle(trained(client))
        server.handle(payload, 7)
        bodies.append((unsealed(payload).body, unsealed(server.close_round()).body, server.model.tobytes()))
    assert bodies[0] == bodies[1]


def test_the_verbs_alone_need_neither_model_nor_run_id():
    client, server = PIPELINE.init_client(LAYOUT, RUN, 7), PIPELINE.init_server(LAYOUT, RUN)
    payload, _ = PIPELINE.send(update_of(PIPELINE, client), client)
    assert PIPELINE.receive(payload, server)[1].link(7).count == 1
    for named in ({"first_model": ONES}, {"run_id": b"12345678"}):
        with pytest.raises(dp.VersionMismatch):
            PIPELINE.receive(payload, PIPELINE.init_server(LAYOUT, RUN, **named))
    with pytest.raises(ValueError, match="8 bytes"):
        PIPELINE.init_server(LAYOUT, RUN, run_id=b"short")


def test_a_memory_that_was_made_for_another_first_model_is_refused():
    with pytest.raises(ValueError, match="names the first model"):
        Server(PIPELINE.channel, PIPELINE.init_server(LAYOUT, RUN, first_model=ONES), zeros())
    with pytest.raises(ValueError, match="shape"):
        Server(PIPELINE.channel, PIPELINE.init_server(LAYOUT, RUN), ONES[1:])


@pytest.mark.parametrize("end", [server_of, client_of])
def test_a_folder_of_another_first_model_is_refused(end, tmp_path):
    first = end(folder=tmp_path)
    if end is server_of:
        first.close()
    else:
        first.handle(TimedOut())
    with pytest.raises(dp.DpcompError, match="first model"):
        end(ONES, folder=tmp_path)


def test_a_run_id_outlives_the_process_and_is_drawn_once(tmp_path):
    server = server_of(folder=tmp_path)
    run_id = server.memory.genesis.run_id
    server.close()
    shutil.rmtree(tmp_path / "checkpoints")  # as if it had been killed before it saved the first one
    for _ in range(2):
        server = server_of(folder=tmp_path)
        assert server.memory.genesis.run_id == run_id
        server.close()
    with pytest.raises(dp.DpcompError, match="run id"):
        server_of(folder=tmp_path, run_id=b"another.")


def test_a_client_whose_process_ends_after_each_question_syncs_and_takes_part(tmp_path):
    server, ledger = server_of(), dp.Ledger()

    def process():
        return client_of(folder=tmp_path, ledger=ledger)

    for day in range(4):
        (hello,) = process().handle(TimedOut())
        reply = server.handle(hello, 7)
        client = process()
        assert client.state.phase is Phase.RESYNCING
        client.handle(ReplyReceived(reply))
        assert client.may_train
        (payload,) = client.handle(trained(client, PIPELINE, day))
        receipt = server.handle(payload, 7)
        client = process()
        client.handle(ReplyReceived(receipt))
        assert client.state.pending is None and client.state.memory.link == server.memory.link(7)
        server.close_round()
    assert server.memory.link(7).count == 4 and not server.refusals


def test_a_later_process_sends_the_open_question_again_and_no_older_reply_answers_the_next_one(tmp_path):
    server = server_of()
    (first,) = client_of(folder=tmp_path).handle(TimedOut())
    (again,) = client_of(folder=tmp_path).handle(TimedOut())
    assert first == again
    old = server.handle(first, 7)
    client_of(folder=tmp_path).handle(ReplyReceived(old))
    client = client_of(folder=tmp_path)
    (second,) = client.handle(TimedOut())
    assert second != first
    client.handle(ReplyReceived(old))
    assert client.state.phase is Phase.RESYNCING


def test_a_reply_without_a_question_is_ignored(tmp_path):
    server, client = server_of(), client_of(folder=tmp_path)
    (hello,) = client.handle(TimedOut())
    reply = server.handle(hello, 7)
    client.handle(ReplyReceived(reply))
    assert client.handle(ReplyReceived(reply)) == [] and client.state.phase is Phase.SYNCED
    assert HELLO.unseal(hello)[0].run_id == NO_DIGEST != REPLY.unseal(reply)[0].run_id

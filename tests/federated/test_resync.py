"""Whoever was away, or was set back, stands with the server again, at the least cost."""

import shutil
from dataclasses import replace

import pytest

import dpcomp as dp
from dpcomp.federated.messages import REPLY
from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import BroadcastReceived, Phase, ReplyReceived, TimedOut, Trained
from dpcomp.wire.headers import shortened
from dpcomp.wire.links import Link
from tests.federated.ends import (
    DOWN,
    LAYOUT,
    PIPELINE,
    TRUSTED,
    participant_of,
    server_of,
    stands_with,
    talk,
    together,
    update_of,
    zeros,
)


@pytest.mark.parametrize("down", DOWN)
@pytest.mark.parametrize("absence", [1, 10, 100])
def test_coming_back_costs_the_cheaper_of_broadcasts_and_snapshot(down, absence):
    pipeline = DOWN[down]
    server, active = together(pipeline, 3)
    away = participant_of(pipeline, client=2)
    talk(away, server, TimedOut())
    stands_with(away, server)
    missed = []
    for number in range(absence):
        talk(active, server, Trained(update_of(pipeline, active.state.memory, 10 + number)))
        missed.append(server.close_round())
        talk(active, server, BroadcastReceived(missed[-1]))
    away.restart()
    (question,) = away.handle(TimedOut())
    word = server.handle(question, 2)
    chain = sum(4 + len(broadcast) for broadcast in missed)
    snapshot = 4 * LAYOUT.size * (2 if down == "predicted" else 1)
    assert len(word) - REPLY.header_bytes <= 1.01 * min(chain, snapshot)
    away.handle(ReplyReceived(word))
    stands_with(away, server)
    talk(away, server, Trained(update_of(pipeline, away.state.memory, 999)))  # and it is as good as any other
    assert len(server.accepted) == 1
    stands_with(away, server)


def test_the_broadcasts_that_are_kept_are_never_more_than_a_snapshot():
    server, participant = together(PIPELINE, 0)
    most = 0
    for number in range(250):
        talk(participant, server, Trained(update_of(PIPELINE, participant.state.memory, number)))
        talk(participant, server, BroadcastReceived(server.close_round()))
        most = max(most, sum(len(shortened(broadcast)) for broadcast in server._state.broadcasts))
    assert most <= 4 * LAYOUT.size
    assert len(server._state.broadcasts) < 250


@pytest.mark.filterwarnings("ignore:.*closed without a release")  # the rounds that a trusted server plays again
@pytest.mark.parametrize("pipeline", [PIPELINE, TRUSTED], ids=["nobody", "server"])
@pytest.mark.parametrize("heard_before", [False, True])
def test_clients_notice_a_server_that_was_set_back_and_resync(tmp_path, pipeline, heard_before):
    ledger = dp.Ledger()
    live, backup = tmp_path / "live", tmp_path / "backup"
    server, participant = together(pipeline, 3, server_of(pipeline, live, ledger))
    other = participant_of(pipeline, client=2)
    talk(other, server, TimedOut())
    server.close()
    shutil.copytree(live, backup)
    server = server_of(pipeline, live, ledger)
    together(pipeline, 4, server, participant)
    server.close()
    set_back = server_of(pipeline, backup, ledger)
    assert set_back.memory.shared.version == 3 < participant.state.memory.shared.version == 7
    if heard_before:
        for _ in range(4):  # it comes to the client's version on another way
            set_back.close_round()
        assert set_back.memory.shared.digest != participant.state.memory.shared.digest
    for one in (participant, other):
        talk(one, set_back, TimedOut())
    broadcast = set_back.close_round()
    for one in (participant, other):
        talk(one, set_back, BroadcastReceived(broadcast))
        stands_with(one, set_back)
    while not participant.may_train:  # its addresses of the lost rounds are spent, and not spent again
        broadcast = set_back.close_round()
        for one in (participant, other):
            talk(one, set_back, BroadcastReceived(broadcast))
    talk(participant, set_back, Trained(update_of(pipeline, participant.state.memory, 77)))
    assert [one.client for one in set_back.accepted] == [1]
    stands_with(participant, set_back)
    set_back.close()


def test_a_client_that_was_set_back_takes_the_servers_link(tmp_path):
    server, participant = together(PIPELINE, 2)
    old = participant.state
    together(PIPELINE, 2, server, participant)
    restored = Participant(PIPELINE.channel, old.memory, old.model, participant.ledger)
    restored.restart()
    talk(restored, server, TimedOut())
    stands_with(restored, server)
    talk(restored, server, Trained(update_of(PIPELINE, restored.state.memory, 78)))
    assert len(server.accepted) == 1
    stands_with(restored, server)


def test_a_client_without_its_ledger_does_not_go_on():
    server, _ = together(PIPELINE, 1)
    forgetful = participant_of()
    with pytest.raises(dp.DpcompError, match="newest ledger"):
        talk(forgetful, server, TimedOut())
    assert forgetful.state.memory.link.count == 0


def test_a_broadcast_alone_syncs_nobody_who_was_away():
    server, participant = together(PIPELINE, 1)
    anew = Participant(PIPELINE.channel, participant.state.memory, zeros(), participant.ledger)
    anew.state = replace(anew.state, memory=replace(anew.state.memory, link=Link()))
    messages = anew.handle(BroadcastReceived(server.close_round()))
    assert anew.state.phase is Phase.RESYNCING and len(messages) == 1


def test_a_synced_client_may_ask():
    server, participant = together(PIPELINE, 1)
    server.close_round()  # nobody hears it
    talk(participant, server, TimedOut())
    stands_with(participant, server)


def test_a_duplicate_of_an_old_answer_answers_no_later_question():
    server, participant = server_of(TRUSTED), participant_of(TRUSTED)
    (first,) = participant.handle(TimedOut())
    old = server.handle(first, 1)
    participant.handle(ReplyReceived(old))
    (payload,) = participant.handle(Trained(update_of(TRUSTED, participant.state.memory)))
    server.close_round()
    (second,) = participant.handle(ReplyReceived(server.handle(payload, 1)))
    assert second != first
    participant.handle(ReplyReceived(old))
    assert participant.state.phase is Phase.RESYNCING and not participant.may_train

"""What travels on an open connection is short, and what a short header cannot show decides nothing."""

from dataclasses import replace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.federated.messages import HELLO, RECEIPT, REFUSALS, REPLY, UNREAD, is_receipt, is_reply
from dpcomp.federated.phases import BroadcastReceived, Phase, ReplyReceived, TimedOut, Trained
from dpcomp.wire.headers import ShortPayload, is_payload, read, tag_of, unsealed
from dpcomp.wire.links import Links
from dpcomp.wire.short_header import SHORT_HEADER_BYTES
from tests.federated.ends import (
    DOWN,
    PIPELINE,
    TRUSTED,
    participant_of,
    server_of,
    stands_with,
    talk,
    together,
    trained,
    update_of,
)


def waiting(server, participant, seed=9):
    """The payload that the participant has sent, as it travels."""
    (payload,) = participant.handle(trained(participant, seed=seed))
    assert isinstance(unsealed(payload), ShortPayload) and participant.state.phase is Phase.WAITING
    return payload


@pytest.mark.parametrize("pipeline", [*DOWN.values(), TRUSTED], ids=[*DOWN, "trusted"])
def test_a_round_of_a_synced_client_costs_sixteen_bytes_a_message_beside_its_bodies(pipeline):
    server, participant = server_of(pipeline), participant_of(pipeline)
    talk(participant, server, TimedOut())
    for number in range(5):
        memory = participant.state.memory
        (payload,) = participant.handle(trained(participant, pipeline, number))
        assert len(payload) - len(read(payload, memory).body) == SHORT_HEADER_BYTES == 16
        receipt = server.handle(payload, 1)
        assert len(receipt) == 16 and is_receipt(receipt) and is_reply(receipt) and not is_payload(receipt)
        participant.handle(ReplyReceived(receipt))
        assert participant.state.phase is Phase.SYNCED
        broadcast = server.close_round()
        assert len(read(broadcast, memory).header) == (16 if number else 64)
        assert participant.handle(BroadcastReceived(broadcast)) == []
        stands_with(participant, server)
    assert server.memory.link(1).count == 5 and not server.refusals


def test_a_short_header_that_is_not_read_decides_nothing():
    server, participant = together(PIPELINE, 2)
    payload, before = waiting(server, participant), participant.state
    elsewhere = server_of()  # of the same run id, but without the client's payloads
    elsewhere.memory = replace(server.memory, links=Links())
    reply = elsewhere.handle(payload, 1)
    assert elsewhere.refusals == {"link": 1} and REPLY.unseal(reply)[0].refusal == UNREAD
    # Even if that server claims to have what the client has: as if the message had been damaged on its way.
    link = before.memory.link
    lie = REPLY.seal(replace(REPLY.unseal(reply)[0], link_count=link.count, link=link.digest))
    (question,) = participant.handle(ReplyReceived(lie))
    assert HELLO.begins(question) and participant.state.phase is Phase.RESYNCING
    assert participant.state.pending is before.pending
    server.handle(payload, 1)  # a duplicate of it is accepted in the meantime
    participant.handle(ReplyReceived(server.handle(question, 1)))
    assert participant.state.pending is None and len(server.accepted) == 1
    np.testing.assert_array_equal(participant.state.memory.residual, before.pending.kept.residual)
    stands_with(participant, server)


def test_what_was_not_read_is_sent_again_in_full_and_counts_once():
    server, participant = together(PIPELINE, 2)
    payload, before = waiting(server, participant), participant.state
    unread = REPLY.unseal(replied(server, participant, payload))[0]
    (question,) = participant.handle(ReplyReceived(REPLY.seal(unread)))
    (again,) = participant.handle(ReplyReceived(server.handle(question, 1)))
    assert again == read(payload, before.memory).in_full() and tag_of(again) == tag_of(payload)
    assert participant.handle(ReplyReceived(server.handle(again, 1))) == []
    server.handle(payload, 1)
    assert len(server.accepted) == 1 and server.refusals["repeat"] == 1
    stands_with(participant, server)


def replied(server, participant, payload):
    """The reply of a server that stands where the client does, and still could not read the payload."""
    link, shared = server.memory.link(1), server.memory.shared
    told = REPLY.unseal(server_of().handle(participant_of().handle(TimedOut())[0], 1))[0]
    return REPLY.seal(
        replace(
            told,
            answers=tag_of(payload),
            version=shared.version,
            shared=shared.digest,
            link_count=link.count,
            link=link.digest,
            refusal=REFUSALS.index("unread"),
        )
    )


def test_a_lost_receipt_is_made_up_for_by_the_reply_to_the_resend():
    server, participant = together(PIPELINE, 2)
    payload = waiting(server, participant)
    server.handle(payload, 1)
    (again,) = participant.handle(TimedOut())
    assert participant.handle(ReplyReceived(server.handle(again, 1))) == []
    assert server.refusals == {"repeat": 1} and len(server.accepted) == 1
    stands_with(participant, server)


def test_a_duplicate_with_a_short_header_is_a_repeat_and_its_reply_tells_that_it_was_accepted():
    server, participant = together(PIPELINE, 2)
    payload = waiting(server, participant)
    server.handle(payload, 1)
    assert participant.handle(ReplyReceived(server.handle(payload, 1))) == []
    assert server.refusals == {"repeat": 1} and len(server.accepted) == 1
    stands_with(participant, server)


def test_a_receipt_counts_for_the_pending_payload_alone():
    server, participant = together(PIPELINE, 1)
    receipts = []
    for number in (4, 5):
        payload = waiting(server, participant, number)
        receipts.append(server.handle(payload, 1))
        if number == 4:
            participant.handle(ReplyReceived(receipts[0]))
            assert participant.handle(ReplyReceived(receipts[0])) == []  # nothing is pending
            participant.handle(BroadcastReceived(server.close_round()))
    before = participant.state
    assert participant.handle(ReplyReceived(receipts[0])) == [] and participant.state is before
    stranger = participant_of(client=2)
    with pytest.raises(dp.VersionMismatch, match="for client 1; this is client 2") as caught:
        stranger.handle(ReplyReceived(receipts[1]))
    assert caught.value.reason == "direction"
    for bit in range(8 * SHORT_HEADER_BYTES):
        damaged = bytearray(receipts[1])
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(dp.CorruptPayload):
            participant.handle(ReplyReceived(bytes(damaged)))
    for message in (receipts[1][:-1], receipts[1] + b"\0", bytes([RECEIPT])):
        with pytest.raises(dp.CorruptPayload):
            participant.handle(ReplyReceived(message))
    assert participant.state is before
    participant.handle(ReplyReceived(receipts[1]))
    stands_with(participant, server)


def test_a_receipt_of_another_federation_is_not_believed():
    server, participant = together(PIPELINE, 2)
    payload = waiting(server, participant)
    elsewhere = server_of()
    elsewhere.memory = server.memory
    receipt = elsewhere.handle(payload, 1)
    run_id = replace(participant.state.memory.genesis, run_id=b"another.")
    participant.state = replace(participant.state, memory=participant.state.memory.with_genesis(run_id))
    assert participant.handle(ReplyReceived(receipt)) == []
    assert participant.state.phase is Phase.WAITING


def test_a_journal_of_short_headers_is_read_again(tmp_path):
    server = server_of(folder=tmp_path)
    _, participant = together(PIPELINE, 2, server)
    payload = waiting(server, participant)
    server.handle(payload, 1)
    accepted = list(server.accepted)
    server.close()
    again = server_of(folder=tmp_path)
    assert list(again.accepted) == accepted and accepted[0].payload_bytes == len(payload)
    assert not again.refusals
    participant.handle(BroadcastReceived(again.close_round()))
    again.close()


def test_an_update_that_is_late_gets_a_whole_reply():
    from dpcomp.federated.server.late import Weigh

    server, participant = server_of(late_policy=Weigh(max_age=2)), participant_of()
    talk(participant, server, TimedOut())
    payload = waiting(server, participant)
    server.close_round()
    reply = server.handle(payload, 1)
    assert len(server.accepted) == 1 and REPLY.unseal(reply)[0].version == 1
    (question,) = participant.handle(ReplyReceived(reply))
    participant.handle(ReplyReceived(server.handle(question, 1)))
    stands_with(participant, server)
    talk(participant, server, Trained(update_of(PIPELINE, participant.state.memory, 3)))
    assert len(server.accepted) == 2

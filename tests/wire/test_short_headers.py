"""Short headers: 16 bytes on an open connection, which are read as the full header or refused with a reason."""

from dataclasses import replace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.federated.server.late import Weigh
from dpcomp.wire.exchange import send
from dpcomp.wire.frame import FULL_HEADER_BYTES, PAYLOAD
from dpcomp.wire.headers import Payload, ShortPayload, is_payload, read, shortened, tag_of, unsealed
from dpcomp.wire.links import Links
from dpcomp.wire.memory import Genesis
from dpcomp.wire.short_header import SHORT_HEADER_BYTES, ShortHeader
from dpcomp.wire.update import with_claim

LAYOUT, SEED = dp.Layout.of({"a": (20, 6), "b": (11,)}), dp.PublicSeed(3)
NOISE = (dp.Clip(1.0), dp.Gaussian(1.0))
TOP = dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4))
PIPELINE = dp.Pipeline(mechanism=NOISE, codec=TOP)


def values(number):
    return np.random.default_rng(number).standard_normal(LAYOUT.size).astype(np.float32)


def update_of(memory, number=0, pipeline=PIPELINE, **changed):
    address = replace(memory.address, **changed)
    return with_claim(dp.Update(values=values(number), layout=memory.layout, address=address), pipeline.claim)


def after(rounds, *, pipeline=PIPELINE, seed=SEED, layout=LAYOUT, client=1, first=0, **begun):
    """Both ends after so many rounds, in which the client took part."""
    memory = pipeline.init_client(layout, seed, client, **begun)
    server = pipeline.init_server(layout, seed, **begun)
    for number in range(first, first + rounds):
        update = with_claim(
            dp.Update(
                values=np.resize(values(number), memory.layout.size), layout=memory.layout, address=memory.address
            ),
            pipeline.claim,
        )
        payload, memory = pipeline.send(update, memory)
        _, server = pipeline.receive(payload, server)
        broadcast, server = pipeline.broadcast(np.resize(values(1000 + number), memory.layout.size), server)
        memory = pipeline.follow(broadcast, memory)
    return memory, server


def test_the_first_payload_each_way_has_a_full_header_and_all_others_a_short_one():
    memory, server = after(0)
    for number in range(4):
        before = memory
        payload, memory = PIPELINE.send(update_of(memory, number), memory)
        in_full = read(payload, before).in_full()
        assert isinstance(unsealed(payload), ShortPayload if number else Payload)
        assert len(in_full) - len(payload) == (FULL_HEADER_BYTES - SHORT_HEADER_BYTES if number else 0)
        assert read(payload, server).in_full() == in_full  # both ends know the same
        received, accepted = PIPELINE.receive(payload, server)
        whole, also_accepted = PIPELINE.receive(in_full, server)
        assert received.dense().tobytes() == whole.dense().tobytes()
        assert (received.address, accepted.link(1)) == (before.address, also_accepted.link(1))
        assert accepted.link(1).digest == tag_of(payload) == tag_of(in_full)
        broadcast, server = PIPELINE.broadcast(received, accepted)
        assert len(read(broadcast, memory).header) == (SHORT_HEADER_BYTES if number else FULL_HEADER_BYTES)
        memory = PIPELINE.follow(broadcast, memory)
        assert memory.shared.digest == server.shared.digest == tag_of(broadcast)
    assert SHORT_HEADER_BYTES == 16


def test_a_client_that_knows_the_run_id_begins_with_a_short_header():
    memory, server = after(0, run_id=b"this one")
    payload, _ = PIPELINE.send(update_of(memory), memory)
    assert isinstance(unsealed(payload), ShortPayload)
    assert PIPELINE.receive(payload, server)[1].link(1).count == 1


def test_an_update_of_an_earlier_round_has_a_full_header_that_names_it():
    memory, server = after(3)
    payload, _ = PIPELINE.send(update_of(memory, round=2), memory)
    assert PAYLOAD.begins(payload)
    assert PIPELINE.receive(payload, server)[0].address.round == 2


def other(**changed):
    """Another pipeline of the same layout."""
    return replace(PIPELINE, **changed)


def forked(memory, **changed):
    return replace(memory, shared=replace(memory.shared, **changed))


NOISIER, WIDER = other(mechanism=(dp.Clip(1.0), dp.Gaussian(2.0))), dp.Layout.of({"a": (6, 20), "b": (11,)})
# Ends that have three rounds behind them, by what is another there.
ELSEWHERE = {
    "pipeline": lambda: after(3, pipeline=NOISIER),
    "layout": lambda: after(3, layout=WIDER),
    "run": lambda: after(3, seed=dp.PublicSeed(4)),
    "first model": lambda: after(3, first_model=np.ones(LAYOUT.size, np.float32)),
    "run id": lambda: after(3, run_id=b"another."),
    "an earlier version": lambda: after(2),
    "a later version": lambda: after(4),
}
# A client whose memory differs from what the server remembers of it, by what differs.
STRAYED = {
    "client": lambda memory: replace(memory, client=2),
    "the version, by 256": lambda memory: forked(memory, version=259),
    "broadcasts": lambda memory: forked(memory, digest=b"8 others"),
    "a payload more": lambda memory: replace(memory, link=replace(memory.link, count=4)),
    "a payload less": lambda memory: replace(memory, link=replace(memory.link, count=2)),
    "payloads": lambda memory: replace(memory, link=replace(memory.link, digest=b"8 others")),
    "the last payload": lambda memory: replace(memory, link=after(2)[0].link),
}


def pipeline_at(name):
    return NOISIER if name == "pipeline" else PIPELINE


def refused_as(act, message, reader):
    """The reason for which a message with a short header is refused; the reader has not changed."""
    assert isinstance(unsealed(message), ShortPayload)
    links = dict(reader.links) if isinstance(reader, dp.ServerMemory) else reader.link
    before = reader.shared, links
    with pytest.raises(dp.VersionMismatch) as caught:
        act(message, reader)
    assert (reader.shared, dict(reader.links) if isinstance(reader, dp.ServerMemory) else reader.link) == before
    return caught.value.reason


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_comes_from_other_ends_is_refused_both_ways(name):
    memory, server = after(3)
    stranger, other_server = ELSEWHERE[name]()
    pipeline = pipeline_at(name)
    payload, _ = pipeline.send(update_of(stranger, pipeline=pipeline), stranger)
    assert refused_as(PIPELINE.receive, payload, server) == ("version" if "version" in name else "link")
    broadcast, _ = pipeline.broadcast(values(5), other_server)
    assert refused_as(PIPELINE.follow, broadcast, memory) == "version"


@pytest.mark.parametrize("name", STRAYED)
def test_whatever_differs_between_a_client_and_the_server_is_found(name):
    memory, server = after(3)
    for strayed, found in ((memory, None), (STRAYED[name](memory), "link")):
        payload, _ = PIPELINE.send(update_of(strayed), strayed)
        if found is None:
            assert PIPELINE.receive(payload, server)[1].link(1).count == 4
        else:
            assert refused_as(PIPELINE.receive, payload, server) == found


def test_each_end_refuses_what_goes_the_other_way():
    memory, server = after(3)
    payload, broadcast = PIPELINE.send(update_of(memory), memory)[0], PIPELINE.broadcast(values(0), server)[0]
    for act, message, reader in ((PIPELINE.receive, broadcast, server), (PIPELINE.follow, payload, memory)):
        with pytest.raises(dp.VersionMismatch) as caught:
            act(message, reader)
        assert caught.value.reason == "direction"


def test_a_payload_counts_once_with_whatever_header_it_comes_again():
    memory, server = after(3)
    short, _ = PIPELINE.send(update_of(memory), memory)
    full = read(short, memory).in_full()
    for first in (short, full):
        _, accepted = PIPELINE.receive(first, server)
        assert accepted.link(1) == PIPELINE.receive(short, server)[1].link(1)
        for again in (short, full):
            with pytest.raises(dp.VersionMismatch, match="repeat") as caught:
                PIPELINE.receive(again, accepted)
            assert caught.value.reason == "repeat"


def test_every_flipped_bit_and_every_cut_of_a_short_message_is_called_damage():
    memory, server = after(3)
    payload, broadcast = PIPELINE.send(update_of(memory), memory)[0], PIPELINE.broadcast(values(0), server)[0]
    for act, message, reader in ((PIPELINE.receive, payload, server), (PIPELINE.follow, broadcast, memory)):
        act(message, reader)
        for bit in range(8 * len(message)):
            damaged = bytearray(message)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(dp.CorruptPayload):
                act(bytes(damaged), reader)
        for length in range(len(message)):
            with pytest.raises(dp.CorruptPayload):
                act(message[:length], reader)


def test_another_body_under_a_check_that_fits_is_refused_by_the_tag():
    memory, server = after(3)
    payload, _ = PIPELINE.send(update_of(memory), memory)
    opened = read(payload, memory)
    forged = replace(opened, message=opened.message + b"\0")
    with pytest.raises(dp.VersionMismatch):
        PIPELINE.receive(shortened(forged), server)


@pytest.mark.parametrize("begin", [253, 255, 256, 2**16 - 1, 2**32 - 3])
def test_versions_whose_last_byte_begins_anew_are_read_as_all_others(begin):
    memory, server = after(2)
    memory, server = forked(memory, version=begin), forked(server, version=begin)
    for number in range(2):
        payload, memory = PIPELINE.send(update_of(memory, number), memory)
        received, server = PIPELINE.receive(payload, server)
        assert received.address.round == begin + number
        broadcast, server = PIPELINE.broadcast(received, server)
        memory = PIPELINE.follow(broadcast, memory)


@pytest.mark.parametrize("version", [0, 1, 127, 128, 129, 254, 255, 256, 1000, 2**32 - 1])
def test_the_version_is_the_nearest_that_ends_in_the_byte(version):
    for near in range(max(0, version - 127), version + 128):
        header = ShortHeader(first_byte=0, version=version % 256, client=0, tag=b"", check=b"")
        found = header.version_near(near)
        assert found == version
    assert (
        ShortHeader(first_byte=0, version=255, client=0, tag=b"", check=b"").version_near(0) == 255
    )  # none is below 0


def test_a_late_payload_is_read_at_the_version_that_it_was_coded_against():
    memory, server = after(2)
    memory, server = forked(memory, version=255), forked(server, version=255)
    payload, _ = PIPELINE.send(update_of(memory), memory)
    for late in range(1, 4):
        older = (*server.older, server.shared)[-Weigh(max_age=2).max_age :]
        _, server = PIPELINE.broadcast(values(late), server)
        server = replace(server, older=older)
        if late < 3:
            assert PIPELINE.receive(payload, server)[0].address.round == 255
    with pytest.raises(dp.VersionMismatch) as caught:
        PIPELINE.receive(payload, server)
    assert caught.value.reason == "version"


def test_a_short_header_of_a_client_that_is_not_known_is_refused():
    memory, _ = after(3)
    payload, _ = PIPELINE.send(update_of(memory), memory)
    _, server = after(3)
    with pytest.raises(dp.VersionMismatch, match="0 accepted payloads"):
        PIPELINE.receive(payload, replace(server, links=Links()))


def test_a_memory_of_another_pipeline_is_named_before_a_header_is_read():
    memory, server = after(3)
    payload, _ = PIPELINE.send(update_of(memory), memory)
    stranger = other(feedback=False)
    with pytest.raises(dp.VersionMismatch, match="the memory is of pipeline"):
        stranger.receive(payload, server)


@pytest.mark.parametrize("first", [128, 133, 135, 196, 255])
def test_a_short_header_of_another_format_is_refused_by_its_number(first):
    memory, server = after(3)
    payload, _ = PIPELINE.send(update_of(memory), memory)
    with pytest.raises(dp.CorruptPayload, match=f"begins with the byte {first}.*format number 6"):
        PIPELINE.receive(bytes([first]) + payload[1:], server)
    assert is_payload(payload) and not is_payload(bytes([first]) + payload[1:])


def test_what_was_read_once_is_not_read_again():
    memory, server = after(3)
    sent, _ = send(PIPELINE.channel, update_of(memory), memory)
    opened = read(sent.message, server)
    assert read(opened, server) is opened and unsealed(opened) is opened
    assert opened.message == sent.message and opened.in_full() == sent.in_full()


def test_the_run_id_is_what_opens_a_connection():
    memory, _ = after(0)
    named = memory.with_genesis(Genesis(run_id=b"this one"))
    lengths = [len(PIPELINE.send(update_of(memory), memory)[0]) for memory in (memory, named)]
    assert lengths[0] - lengths[1] == FULL_HEADER_BYTES - SHORT_HEADER_BYTES

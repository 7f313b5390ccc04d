"""Format numbers: what another version wrote is refused by its number; and a payload is checksummed once."""

import sqlite3

import numpy as np
import pytest
from safetensors.numpy import save_file

import dpcomp as dp
from dpcomp.federated import Server
from dpcomp.federated.messages import HELLO, REPLY
from dpcomp.wire import checkpoint, frame, headers
from dpcomp.wire.frame import MAGIC, PAYLOAD

PIPELINE = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(quantize=dp.Uniform(4)))
SEED = dp.PublicSeed(1)


def payload_of(memory):
    permit = dp.Ledger().charge(PIPELINE.cost, memory.address)
    return PIPELINE.send(PIPELINE.release([], memory, dp.SecretSeed(1), permit), memory)[0]


@pytest.mark.parametrize("number", [1, 2, MAGIC[-1] + 1])
def test_a_payload_of_another_format_is_refused_by_its_number(number):
    memory, server = PIPELINE.init_client(9, SEED, 0), PIPELINE.init_server(9, SEED)
    payload = payload_of(memory)
    other = payload[: len(MAGIC) - 1] + bytes([number]) + payload[len(MAGIC) :]
    with pytest.raises(dp.CorruptPayload, match=f"format number {number}, and this dpcomp reads number {MAGIC[-1]}"):
        PIPELINE.receive(other, server)


def test_every_message_begins_with_another_mark_and_a_number():
    marks = {PAYLOAD._magic, HELLO._magic, REPLY._magic}
    assert len(marks) == 3
    assert all(len(mark) == 4 and mark[:2] == b"dp" for mark in marks)


def test_a_checkpoint_of_another_format_is_refused_by_its_number(tmp_path):
    save_file(
        {"model": np.zeros(9, np.float32)}, tmp_path / "0000000000.safetensors", {"format": "dpcomp checkpoint 2"}
    )
    with pytest.raises(dp.DpcompError, match=f"the format 'dpcomp checkpoint 2', not '{checkpoint.FORMAT}'"):
        checkpoint.load(tmp_path, PIPELINE.channel)


def test_a_ledger_of_another_format_is_refused_by_its_number(tmp_path):
    path = tmp_path / "ledger.db"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE charges (run TEXT, client INTEGER, round INTEGER)")
        database.execute("PRAGMA user_version = 2")
    database.close()
    before = path.read_bytes()
    for act in (dp.Ledger, dp.Ledger.read):
        with pytest.raises(dp.DpcompError, match="ledger format 2, not 4"):
            act(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_payload_is_checksummed_once_at_each_end(monkeypatch):
    digested = []
    for module, name in ((frame, "digest"), (frame, "body_digest"), (headers, "body_digest")):

        def counting(*parts, digest=getattr(module, name)):
            digested.append(sum(map(len, parts)))
            return digest(*parts)

        monkeypatch.setattr(module, name, counting)
    d = 100_000
    begun = {"first_model": np.zeros(d, np.float32), "run_id": b"this one"}
    memory, server_memory = PIPELINE.init_client(d, SEED, 0, **begun), PIPELINE.init_server(d, SEED, **begun)
    server = Server(PIPELINE.channel, server_memory, begun["first_model"])
    digested.clear()
    payload = payload_of(memory)
    assert sum(size > d / 4 for size in digested) == 1
    digested.clear()
    assert server.handle(payload, sender=0) is not None
    assert server.accepted
    assert sum(size > d / 4 for size in digested) == 1

"""The journal keeps what a server accepted, and nothing of it once no checkpoint needs it."""

import os
import stat

import pytest

import dpcomp as dp
from dpcomp.federated.phases import TimedOut, Trained
from dpcomp.federated.server.journal import Journal
from tests.federated.ends import PIPELINE, RUN_ID, TRUSTED, participant_of, server_of, talk, together, update_of

MARKER = b"the clean update of client 7 "


def raw(folder):
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("length", [100, 3_000, 300_000])
def test_no_byte_of_a_payload_stays_in_a_file_after_it_is_forgotten(tmp_path, length):
    journal, payload = Journal.create(tmp_path / "journal.db", RUN_ID), MARKER * (length // len(MARKER) + 1)
    for version in range(4):
        for _ in range(5):
            journal.append(version, payload, 7, version)
    assert MARKER in raw(tmp_path)
    journal.forget_before(3)
    assert journal.payloads() == [(3, payload)] * 5
    journal.forget_before(4)
    assert MARKER not in raw(tmp_path)
    journal.close()
    assert MARKER not in raw(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["journal.db"]


def test_the_rollback_journal_of_a_deletion_has_the_payloads_so_freed_blocks_may_keep_them(tmp_path):
    journal = Journal.create(tmp_path / "journal.db", RUN_ID)
    journal.append(0, MARKER * 20, 7, 0)
    with journal._database.changing() as connection:
        connection.execute("DELETE FROM accepted")
        assert MARKER in (tmp_path / "journal.db-journal").read_bytes()
    assert MARKER not in raw(tmp_path)
    assert not (tmp_path / "journal.db-journal").read_bytes()
    journal.close()


def test_a_journal_is_its_owners_alone_and_survives(tmp_path):
    path = tmp_path / "journal.db"
    before = os.umask(0)
    try:
        journal = Journal.create(path, RUN_ID)
        journal.append(0, b"payload", 7, 0)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())  # the file alone is complete
    with pytest.raises(dp.DpcompError, match="open in another process"):
        Journal(path)
    journal.close()
    for place in (path, copy):
        journal = Journal(place)
        assert journal.payloads() == [(0, b"payload")]
        journal.close()


def test_a_ledger_is_no_journal(tmp_path):
    dp.Ledger.create(tmp_path / "some.db").close()
    before = (tmp_path / "some.db").read_bytes()
    with pytest.raises(dp.DpcompError, match="is no journal"):
        Journal(tmp_path / "some.db")
    assert (tmp_path / "some.db").read_bytes() == before
    with pytest.raises(dp.DpcompError, match="there is no journal"):
        Journal(tmp_path / "mistyped.db")
    assert not (tmp_path / "mistyped.db").exists()


@pytest.mark.parametrize("pipeline", [TRUSTED, PIPELINE], ids=["trusted", "not trusted"])
def test_a_closed_round_leaves_no_clean_payload_behind(tmp_path, pipeline):
    server, participant = server_of(pipeline, tmp_path), participant_of(pipeline)
    talk(participant, server, TimedOut())
    talk(participant, server, Trained(update_of(pipeline, participant.state.memory, 7)))
    assert server._folder is not None
    ((_, payload),) = server._folder.journal.payloads()
    journal = tmp_path / "journal.db"
    chunks = [payload[place : place + 8] for place in range(0, len(payload) - 8, 8)]
    chunks = [chunk for chunk in chunks if 0 not in chunk]  # a zero may stand anywhere in a file
    assert chunks and all(chunk in journal.read_bytes() for chunk in chunks)
    server.close_round()
    files = b"".join(file.read_bytes() for file in tmp_path.glob("journal*"))
    left = {chunk in files for chunk in chunks}
    # Where nobody is trusted, payloads are released values, and the checkpoint in reserve needs the last round's.
    assert left == {pipeline is not TRUSTED}
    server.close()


def test_a_round_that_the_budget_does_not_release_leaves_no_clean_payload_behind(tmp_path):
    ledger = dp.Ledger(budget=dp.Budget(TRUSTED.guarantee(1, 1e-5).epsilon, 1e-5))
    server, participant = together(TRUSTED, 1, server_of(TRUSTED, tmp_path, ledger))
    talk(participant, server, Trained(update_of(TRUSTED, participant.state.memory, 7)))
    assert server._folder is not None
    ((_, payload),) = server._folder.journal.payloads()
    for _ in range(2):
        with pytest.raises(dp.BudgetExhausted, match="beyond"):
            server.close_round()
        files = b"".join(file.read_bytes() for file in tmp_path.glob("journal*"))
        assert payload[-16:] not in files and server._folder.journal.payloads() == []
        server.restart()
        assert server.memory.shared.version == 1 and not server.accepted
    talk(participant, server, TimedOut())
    assert participant.state.memory.link == server.memory.link(1)
    server.close()


@pytest.mark.parametrize("pipeline", [TRUSTED, PIPELINE], ids=["trusted", "not trusted"])
def test_after_the_last_round_no_update_is_taken_and_no_clean_one_kept(tmp_path, pipeline):
    server = server_of(pipeline, tmp_path)
    before, after = participant_of(pipeline, 7), participant_of(pipeline, 8)
    for participant in (before, after):
        talk(participant, server, TimedOut())
    talk(before, server, Trained(update_of(pipeline, before.state.memory, 7)))
    assert server._folder is not None
    ((_, payload),) = server._folder.journal.payloads()
    server.end_rounds()
    server.end_rounds()
    talk(after, server, Trained(update_of(pipeline, after.state.memory, 8)))
    assert not server.memory.link(8).count and not server.asks(8)
    assert server.refusals == {"uninvited": 1}
    files = b"".join(file.read_bytes() for file in tmp_path.glob("journal*"))
    assert (payload[-16:] in files) == (pipeline is not TRUSTED)
    talk(after, server, TimedOut())  # questions are answered
    server.restart()  # as a new process, which may play more rounds
    assert len(server.accepted) == (pipeline is not TRUSTED)
    assert server.asks(8)
    server.close()


def test_a_crash_between_the_checkpoint_and_the_journal_leaves_no_clean_payload(tmp_path, monkeypatch):
    ledger = dp.Ledger()
    server, participant = server_of(TRUSTED, tmp_path, ledger), participant_of(TRUSTED)
    talk(participant, server, TimedOut())
    talk(participant, server, Trained(update_of(TRUSTED, participant.state.memory, 7)))
    monkeypatch.setattr(Journal, "forget_before", lambda *_: None)
    server.close_round()
    server.close()
    monkeypatch.undo()
    again = server_of(TRUSTED, tmp_path, ledger)
    assert again._folder is not None
    assert again._folder.journal.payloads() == []
    again.close()

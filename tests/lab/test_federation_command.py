"""`dpcomp federation status`: it says where both ends stand while they are in use, and changes nothing."""

import json
import sqlite3
from contextlib import closing

import pytest

import dpcomp as dp
from dpcomp.federated import TimedOut
from dpcomp.federated.server.journal import Journal
from dpcomp.federated.status import ServerStatus
from dpcomp.lab.cli import main
from dpcomp.lab.federation_report import FederationReport
from dpcomp.wire import checkpoint
from tests.federated.ends import RUN, TRUSTED, server_of
from tests.federated.test_long_life import DELTA, FIRST, PIPELINE, Client, D, terms_of


def said(capsys, *arguments):
    status = main(["federation", "status", *map(str, arguments)])
    output = capsys.readouterr()
    return status, output.out, output.err


def state(folder):
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def folder(tmp_path):
    terms = terms_of(rounds=7)
    terms.write(tmp_path / "federation.toml")
    server = terms.server(D, FIRST, folder=tmp_path / "server")
    one, two = (Client(terms, tmp_path / f"client-{number}", number) for number in (1, 2))
    for number in range(3):
        one.take_part(server)
        if number == 0:
            two.take_part(server)
        server.handle(b"noise", sender=1)
        server.close_round()
    server.handle(two.participant.withdrawal("budget"), sender=2)
    one.say(server, TimedOut())
    (payload,) = one.participant.handle(one.release())
    server.handle(payload, sender=1)  # whose reply is lost
    yield tmp_path
    server.close()
    one.close()
    two.close()


def test_it_says_where_both_ends_stand_and_changes_nothing(folder, capsys):
    before = state(folder)
    status, text, _ = said(capsys, folder)
    assert status == 0
    assert state(folder) == before
    assert max(map(len, text.splitlines())) <= 100
    for words in (
        "version 3 of 7",
        "1 updates accepted since",
        "not in it 1 client: 2",
        "client 2 (budget)",
        "corrupt 3",
    ):
        assert words in text, words
    assert "one of round 3, which has no reply yet" in text

    report = json.loads(said(capsys, folder, "--json")[1])
    server, *clients = sorted(report["states"], key=lambda state: state["is"] != "server")
    assert (server["version"], server["updates"], server["current"]) == (3, 1, [1])
    assert server["last_rounds"] == {"1": 2, "2": 0}
    assert server["refusals"] == {"corrupt": 3}
    assert {client["client"]: (client["accepted"], client["pending"]) for client in clients} == {
        1: (3, 3),
        2: (1, None),
    }
    epsilons = {ledger["clients"][0]: ledger["epsilon"] for ledger in report["ledgers"]}
    assert epsilons == {1: PIPELINE.guarantee(8, DELTA).epsilon, 2: PIPELINE.guarantee(2, DELTA).epsilon}


def test_a_clients_folder_alone_says_what_the_client_knows(folder, capsys):
    status, text, _ = said(capsys, folder / "client-2", "--delta", "1e-6")
    assert status == 0
    assert "client 2" in text
    assert "server" not in text.split("client 2")[0]
    assert "δ = 1e-06" in text


def test_a_ledger_that_is_incomplete_is_said_to_be(folder, capsys):
    with dp.Ledger.create(folder / "other.db") as ledger:
        ledger.mark_incomplete("a test")
    assert "ε = ∞" in said(capsys, folder)[1]
    assert None in {ledger["epsilon"] for ledger in json.loads(said(capsys, folder, "--json")[1])["ledgers"]}


def test_rounds_of_a_trusted_server_without_a_release_are_said(tmp_path, capsys):
    with dp.Ledger.create(tmp_path / "ledger.db", research=True) as ledger:
        for number in (0, 1, 2):
            ledger.charge(TRUSTED.cost, dp.Address(RUN.number, dp.SERVER, number))
        ledger.charge(TRUSTED.cost, dp.Address(RUN.number + 1, dp.SERVER, 7))  # of another run
        with pytest.warns(UserWarning, match="3 rounds from 0 to 2"):
            server = server_of(TRUSTED, tmp_path / "server", ledger)
        with pytest.warns(UserWarning, match="round 0 is closed without a release"):
            server.close_round()
        text = said(capsys, tmp_path)[1]
        assert "forfeited  1 round: 0, closed without a release" in text
        assert "was charged already for 2 rounds: 1-2;" in text
        (state,) = json.loads(said(capsys, tmp_path, "--json")[1])["states"]
        assert (state["forfeited"], state["charged_ahead"]) == ([0], [1, 2])
        server.close()


def test_folders_without_a_federation_are_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    refused = {tmp_path: "nothing of a federation", tmp_path / "none": "no folder", tmp_path / "file": "no folder"}
    for place, words in refused.items():
        status, out, err = said(capsys, place)
        assert (status, out) == (1, "")
        assert words in err
    (tmp_path / "journal.db").write_bytes(b"SQLite format 3\0" + bytes(200))
    assert said(capsys, tmp_path)[0] == 1


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_passed_over(tmp_path, monkeypatch):
    terms = terms_of()
    server = terms.server(D, FIRST, folder=tmp_path / "server")
    server.close_round()
    server.close_round()
    read, saves = checkpoint._read, [server.close_round, server.close_round]

    def read_while_it_saves(path):
        content = read(path)
        while saves:  # the two that are kept are others then
            saves.pop()()
        return content

    monkeypatch.setattr(checkpoint, "_read", read_while_it_saves)
    assert ServerStatus.read(tmp_path / "server").version == 4
    server.close()


def test_a_server_without_a_checkpoint_is_a_clear_error(tmp_path):
    Journal.create(tmp_path / "journal.db", bytes(8)).close()
    with pytest.raises(dp.DpcompError, match="no checkpoint"):
        FederationReport.read(tmp_path)
    with closing(sqlite3.connect(tmp_path / "journal.db")) as database, database:
        database.execute("DELETE FROM federation")
    with pytest.raises(dp.DpcompError, match="names no federation"):
        FederationReport.read(tmp_path)

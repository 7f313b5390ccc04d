"""Both ends over HTTP: rounds, replies, what each client is told, what anybody is shown, and an end without loss."""

import json
import logging
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.adapters.http import (
    FederationApp,
    HttpTransport,
    Limits,
    RoundPolicy,
    Senders,
    Tls,
    new_token,
    serve,
    serving,
)
from dpcomp.federated import Cohort, Fixed, TimedOut, Trained, Weigh
from dpcomp.federated.server.journal import Journal
from dpcomp.terms import FederationTerms
from tests.adapters.federation import (
    FIRST,
    PIPELINE,
    SAMPLED,
    Client,
    D,
    certificates,
    connected,
    eventually,
    post,
    server_of,
    tls_of,
    transport,
    trusted_server,
)

ROOT = Path(__file__).parents[2]


def got(url):
    with urllib.request.urlopen(url, timeout=20) as response:
        return response.read().decode()


@contextmanager
def federation(server, policy, clients, limits=Limits()):
    """Serve with tokens, and give the URL, a transport of each client, and the app."""
    tokens = [new_token(number) for number in range(clients)]
    app = FederationApp(server, Senders.of(tokens=tokens), policy, limits=limits)
    with serving(app) as url:
        sends = [transport(url, token=token) for token in tokens]
        yield url, sends, app
        for send in sends:
            send.close()


def together(clients, rounds):
    """Let clients take part at once, each in a thread; an error in one of them is an error here."""
    errors = []

    def run(client):
        try:
            client.take_part(rounds)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


@pytest.mark.parametrize("by", ["token", "certificate"])
def test_a_federation_over_tls_computes_what_one_without_a_network_does(by, tmp_path):
    rounds, server = 3, server_of(clients=2)
    certificates(tmp_path, "client-0", "client-1")
    tokens = [new_token(number) for number in range(2)]
    senders = (
        Senders.of(tokens=tokens)
        if by == "token"
        else Senders.of(certificates={number: tmp_path / f"client-{number}.pem" for number in range(2)})
    )
    app = FederationApp(server, senders, RoundPolicy(updates=2, rounds=rounds))
    with serving(app, tls=tls_of(tmp_path, "client-0", "client-1")) as url:
        given = [
            {"token": tokens[number]}
            if by == "token"
            else {"certificate": (tmp_path / f"client-{number}.pem", tmp_path / f"client-{number}-key.pem")}
            for number in range(2)
        ]
        sends = [transport(url, ca=tmp_path / "server.pem", **each) for each in given]
        clients = [Client(number, send) for number, send in enumerate(sends)]
        for number, client in enumerate(clients):
            client.release = lambda of=client.release, seed=number: of(dp.SecretSeed(seed))
        together(clients, rounds)
        assert [client.memory.link for client in clients] == [server.memory.link(number) for number in range(2)]
        for send in sends:
            send.close()
    assert not app.counts.refused
    assert not server.refusals

    alone = server_of(clients=2)
    others = [Client(number, lambda message, of=number: alone.handle(message, of)) for number in range(2)]
    for number, client in enumerate(others):
        client.release = lambda of=client.release, seed=number: of(dp.SecretSeed(seed))
    for _ in range(rounds):
        for client in others:
            client.train()
        alone.close_round()
    assert alone.model.tobytes() == server.model.tobytes() == clients[0].participant.state.model.tobytes()
    assert server.memory.shared.version == rounds  # and no further round


def test_a_round_is_closed_for_its_age_once_enough_have_sent():
    server = server_of(clients=3)
    with federation(server, RoundPolicy(updates=3, seconds=0.4, least_updates=2), 3) as (_, sends, _):
        clients = [Client(number, send) for number, send in enumerate(sends)]
        clients[0].train()
        threading.Event().wait(1.0)
        assert server.memory.shared.version == 0  # one is not enough, however late
        clients[1].train()
        eventually(lambda: server.memory.shared.version == 1, seconds=5)
        for client in clients:
            client.train()
        eventually(lambda: server.memory.shared.version == 2, seconds=5)
    assert [server.memory.link(number).count for number in range(3)] == [2, 2, 1]


def test_a_round_does_not_wait_for_clients_that_withdrew():
    server = server_of(clients=3)
    with federation(server, RoundPolicy(updates=3, least_updates=2), 3) as (_, sends, _):
        clients = [Client(number, send) for number, send in enumerate(sends)]
        for client in clients[:2]:
            client.train()
        assert server.memory.shared.version == 0
        clients[2].talk(TimedOut())
        sends[2](clients[2].participant.withdrawal("budget"))
        eventually(lambda: server.memory.shared.version == 1, seconds=5)
        sends[1](clients[1].participant.withdrawal("done"))
        clients[0].train()
        threading.Event().wait(0.3)
        assert server.memory.shared.version == 1  # one is not enough
        clients[1].train()
        eventually(lambda: server.memory.shared.version == 2, seconds=5)
    assert [server.memory.link(number).count for number in range(3)] == [2, 2, 0]


def test_a_server_that_was_restored_plays_the_rounds_again_that_its_clients_give_up(tmp_path):
    server = server_of(clients=2, folder=tmp_path / "server")
    clients = [Client(number, None) for number in range(2)]
    for version in range(3):
        for client in clients:
            client.send = lambda message, to=server, number=client.memory.client: to.handle(message, number)
            client.train()
        server.close_round()
        if version == 0:
            server.close()
            shutil.copytree(tmp_path / "server", tmp_path / "backup")
            server = server_of(clients=2, folder=tmp_path / "server")
    server.close()
    server = server_of(clients=2, folder=tmp_path / "backup")
    with federation(server, RoundPolicy(updates=2, seconds=0.3, least_updates=2, rounds=5), 2) as (_, sends, _):
        for client, send in zip(clients, sends, strict=True):
            client.send = send
        clients[0].train()
        assert not clients[0].participant.may_train
        clients[0].send(clients[0].participant.withdrawal("round"))
        time.sleep(0.5)
        assert server.memory.shared.version == 1 and server.awaited == 1  # the other client may send for all it knows
        while server.memory.shared.version < 5:
            for client in clients:
                client.train()
                if client.participant.gives_round_up:
                    client.send(client.participant.withdrawal("round"))
    assert [server.memory.link(number).count for number in range(2)] == [3, 3]  # of the rounds 0, 3 and 4
    assert not server.withdrawn
    server.close()


def test_late_updates_are_treated_as_the_server_says():
    for late_policy, counted in ((Weigh(max_age=1), 1), (None, 0)):
        server = server_of(clients=2, **({} if late_policy is None else {"late_policy": late_policy}))
        with federation(server, RoundPolicy(updates=1), 2) as (_, sends, _):
            late = Client(0, sends[0])
            late.talk(TimedOut())
            late.participant.handle(Trained(late.release()))
            Client(1, sends[1]).train()
            eventually(lambda server=server: server.memory.shared.version == 1)
            late.talk(TimedOut())
            assert server.memory.link(0).count == counted
            assert late.memory.link == server.memory.link(0)


def test_each_client_is_told_whether_it_is_asked_and_nobody_else_is(caplog):
    server = trusted_server(clients=8)
    caplog.set_level(logging.DEBUG, "dpcomp")
    with federation(server, RoundPolicy(seconds=3600.0, least_updates=0), 8) as (url, sends, _):
        drawn = set(server.cohort())
        assert 0 < len(drawn) < 8
        assert {number for number, send in enumerate(sends) if send.asked()} == drawn
        lengths = {len(send._request("GET", send._url.join("asked"), None)) for send in sends}
        assert len(lengths) == 1
        with transport(url, token="3.guessed") as stranger, pytest.raises(dp.DpcompError, match="401"):
            stranger.asked()
        shown = got(f"{url}metrics") + got(f"{url}health") + caplog.text
    assert "asked" not in shown and "cohort" not in shown


def test_what_a_trusted_server_shows_does_not_depend_on_what_clients_send_or_on_who_does():
    texts = []
    for sent in (None, b"y", b"x" * 1000):
        server = trusted_server()
        limits = Limits(requests_per_client=1, grace_seconds=0.1)
        with federation(server, RoundPolicy(seconds=3600.0, least_updates=0), 1, limits) as (url, sends, app):
            if sent is not None:
                sends[0](sent)  # on a connection that stays open
                token = sends[0]._http.headers["authorization"].partition(" ")[2]
                begun = [connected(url) for _ in range(2)]
                for line in begun:  # two messages at once, one of which is refused, and neither ends
                    line.sendall(post(sent, token=token, length=2000))
                eventually(lambda app=app: app.counts.refused["busy"] and app.counts.refused["slow"])
                assert app.counts.connections
                for line in begun:
                    line.close()
                assert server.refusals == {"corrupt": 1}
            texts.append(got(f"{url}metrics"))
    assert texts[0] == texts[1] == texts[2]
    assert not any(word in texts[0] for word in ("bytes", "refusals", "http_connections", "busy", "slow", "cut"))


@pytest.mark.parametrize(
    "policy", [RoundPolicy(updates=3), RoundPolicy(seconds=1.0), RoundPolicy(updates=3, seconds=1.0, least_updates=0)]
)
def test_no_count_of_clean_updates_closes_a_round(policy):
    with pytest.raises(dp.NotPrivate, match="least_updates=0"):
        FederationApp(trusted_server(), Senders(), policy)


def test_a_trusted_server_closes_rounds_by_the_clock_until_its_budget_ends_them(caplog):
    pipeline_epsilon = SAMPLED.guarantee(3, 1e-5).epsilon
    server = trusted_server(budget=dp.Budget(epsilon=pipeline_epsilon * 1.001, delta=1e-5))
    caplog.set_level(logging.INFO, "dpcomp")
    with federation(server, RoundPolicy(seconds=0.05, least_updates=0), 1):
        eventually(lambda: server.memory.shared.version == 3)
        eventually(lambda: "rounds_ended version=3" in caplog.text)
        assert server.rounds_ended
    with pytest.raises(ValueError, match=r"ended at version 3.*open the server anew"):
        FederationApp(server, Senders.of(tokens=[new_token(0)]), RoundPolicy(seconds=1.0, least_updates=0))
    assert "updates=" not in caplog.text
    assert "beyond Budget" in caplog.text


def test_a_client_that_is_not_in_the_cohort_is_not_asked():
    server = server_of(clients=4, cohort=Cohort(sampling=Fixed(1)))
    with federation(server, RoundPolicy(updates=3, rounds=2), 4) as (_, sends, app):
        clients = [Client(number, send) for number, send in enumerate(sends)]
        for version in range(2):
            asked = [number for number, send in enumerate(sends) if send.asked()]
            assert asked == server.cohort()
            clients[asked[0]].train()
            eventually(lambda version=version: server.memory.shared.version == version + 1)  # of all who were asked
        assert not any(send.asked() for send in sends)  # the last round is over
        assert not app.counts.refused


class InTurn:
    """A draw of cohorts that are given."""

    def __init__(self, *cohorts):
        self.cohorts = [np.array(cohort, np.int64) for cohort in cohorts]
        self.drawn = 0

    def draw(self, n, stream):
        self.drawn += 1
        return self.cohorts[(self.drawn - 1) % len(self.cohorts)]


@pytest.mark.parametrize("updates", [3, None])
def test_a_cohort_that_cannot_send_enough_updates_does_not_hold_up_the_others(updates):
    server = server_of(clients=3, cohort=Cohort(sampling=InTurn([], [1], [2], [0, 1])))
    policy = RoundPolicy(updates=updates, seconds=1.0, least_updates=2, rounds=4)  # within which a client trains
    with federation(server, policy, 3) as (_, sends, app):
        clients = [Client(number, send) for number, send in enumerate(sends)]
        clients[2].talk(TimedOut())
        sends[2](clients[2].participant.withdrawal("done"))
        for number in (1, 0, 1):
            eventually(lambda number=number: sends[number].asked())
            clients[number].train()
        eventually(lambda: app._rounds.ended)
    assert server.memory.shared.version == 4
    assert [server.memory.link(number).count for number in range(3)] == [1, 2, 0]
    assert not server.refusals


@pytest.mark.parametrize("updates", [2, None])
def test_a_drawn_client_that_is_away_holds_up_no_others(updates, caplog):
    caplog.set_level(logging.INFO, "dpcomp")
    server = server_of(clients=3, cohort=Cohort(sampling=InTurn([0], [0, 1], [1])))
    policy = RoundPolicy(updates=updates, seconds=0.8, least_updates=2, rounds=3)
    with federation(server, policy, 3) as (_, sends, app):
        client = Client(1, sends[1])
        for version in (1, 2):
            eventually(lambda version=version: server.memory.shared.version == version)
            client.train()
        eventually(lambda: app._rounds.ended)
    assert server.memory.link(1).count == 2 and not server.refusals
    assert [f"cohort_small version={version} asked=1" in caplog.text for version in range(3)] == [True, False, True]
    assert "round_held" not in caplog.text


@pytest.mark.parametrize("updates", [2, None])
def test_a_drawn_client_that_is_away_holds_up_no_others_where_the_rest_of_its_cohort_withdrew(updates):
    server = server_of(clients=5, cohort=Cohort(sampling=InTurn([0, 1, 2], [3, 4])))
    policy = RoundPolicy(updates=updates, seconds=0.3, least_updates=2, rounds=2)
    with federation(server, policy, 5) as (_, sends, app):
        clients = [Client(number, send) for number, send in enumerate(sends)]
        for client in clients[1:3]:
            client.talk(TimedOut())
            client.send(client.participant.withdrawal("done"))
        eventually(lambda: server.memory.shared.version == 1)
        for client in clients[3:]:
            client.train()
        eventually(lambda: app._rounds.ended)
    assert [server.memory.link(number).count for number in range(5)] == [0, 0, 0, 1, 1]


def test_a_cohort_that_may_have_enough_is_waited_for_and_the_log_says_so(caplog):
    server = server_of(clients=4, cohort=Cohort(sampling=InTurn([0, 1, 2])))
    with federation(server, RoundPolicy(seconds=0.2, least_updates=2, rounds=1), 4) as (_, sends, _):
        Client(0, sends[0]).train()
        eventually(lambda: "round_held version=0" in caplog.text)
        assert server.memory.shared.version == 0
        Client(2, sends[2]).train()
        eventually(lambda: server.memory.shared.version == 1)
    assert caplog.text.count("round_held") == 1


def test_clients_that_gave_a_round_up_are_enough_to_close_it_beside_one_that_is_away():
    server = server_of(clients=3)
    with federation(server, RoundPolicy(updates=3, seconds=0.3, least_updates=2, rounds=2), 3) as (_, sends, _):
        clients = [Client(number, send) for number, send in enumerate(sends[:2])]
        for client in clients:
            client.talk(TimedOut())
            client.release()  # and its process is killed before it keeps the update
            client.send(client.participant.withdrawal("round"))
        eventually(lambda: server.memory.shared.version == 1)
        for client in clients:
            client.train()
        eventually(lambda: server.memory.shared.version == 2)
    assert [server.memory.link(number).count for number in range(3)] == [1, 1, 0]


def test_more_updates_than_clients_are_refused():
    with pytest.raises(ValueError, match=r"with 3 clients.*3 or less"):
        FederationApp(server_of(clients=3), Senders(), RoundPolicy(seconds=1.0, least_updates=4))


def test_a_cohort_of_clients_that_withdrew_is_waited_for_where_nobody_else_takes_part():
    server = server_of(clients=2, cohort=Cohort(sampling=InTurn([1], [0])))
    with federation(server, RoundPolicy(updates=2, rounds=4), 2) as (_, sends, _):
        clients = [Client(number, send) for number, send in enumerate(sends)]
        for number in (0, 1):
            clients[number].talk(TimedOut())
            sends[number](clients[number].participant.withdrawal("done"))
        time.sleep(0.2)
        assert server.memory.shared.version == 0  # else all rounds would pass at once, with nobody in them
        clients[1].train()
        eventually(lambda: server.memory.shared.version == 2)  # of the second one the client that is away was drawn
        assert server.memory.link(1).count == 1


def test_a_draw_that_cannot_be_kept_is_made_later_and_told_to_nobody(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("dpcomp.adapters.http.rounds.RETRY_SECONDS", 0.05)
    server = server_of(clients=4, cohort=Cohort(sampling=Fixed(1)), folder=tmp_path / "server")
    keep, said = Journal.keep_cohort, ("round_not_closed version=0", "cohort_not_drawn")

    def failing(*given):
        if not all(each in caplog.text for each in said):
            raise dp.DpcompError("the journal cannot be written")
        keep(*given)

    monkeypatch.setattr(Journal, "keep_cohort", failing)
    with federation(server, RoundPolicy(updates=1, rounds=1), 4) as (_, sends, app):
        asked = [number for number, send in enumerate(sends) if send.asked()]
        assert asked == server.cohort()
        Client(asked[0], sends[asked[0]]).train()
        eventually(lambda: server.memory.shared.version == 1)
        assert not app.counts.refused
    server.close()


def test_metrics_count_what_is_public(caplog):
    caplog.set_level(logging.INFO, "dpcomp")
    server = server_of(clients=1)
    with federation(server, RoundPolicy(updates=1), 1) as (url, sends, _):
        client = Client(0, sends[0])
        client.train()
        eventually(lambda: server.memory.shared.version == 1)
        sends[0](client.sent[-1])
        sends[0](b"noise")
        assert json.loads(got(f"{url}health")) == {"version": 1}
        lines = got(f"{url}metrics").splitlines()
        assert "dpcomp_version 1" in lines
        assert 'dpcomp_refusals_total{reason="corrupt"} 1' in lines
        assert f"dpcomp_received_bytes_total {sum(map(len, client.sent)) + len(client.sent[-1]) + 5}" in lines
        assert 'dpcomp_http_refused_total{reason="sender"} 0' in lines
    assert "round_closed version=0" in caplog.text
    for line in lines:
        assert line.startswith("# ") or len(line.rsplit(" ", 1)) == 2


def test_a_round_that_cannot_be_saved_is_closed_later(monkeypatch, caplog):
    monkeypatch.setattr("dpcomp.adapters.http.rounds.RETRY_SECONDS", 0.05)
    server, failures = server_of(clients=1), iter([OSError("the disk is full"), OSError("still")])
    close_round = server.close_round

    def failing():
        for failure in failures:
            raise failure
        return close_round()

    server.close_round = failing
    with federation(server, RoundPolicy(updates=1), 1) as (_, sends, _):
        Client(0, sends[0]).train()
        eventually(lambda: server.memory.shared.version == 1)
    assert caplog.text.count("round_not_closed version=0") == 2


def test_a_server_that_cannot_take_a_message_says_so_and_the_client_asks_again(monkeypatch, caplog):
    server, failures = server_of(clients=1), iter([dp.DpcompError("the journal cannot be written")])
    handle = server.handle

    def failing(message, sender):
        for failure in failures:
            raise failure
        return handle(message, sender)

    monkeypatch.setattr(server, "handle", failing)
    with federation(server, RoundPolicy(updates=1), 1) as (_, sends, app):
        client = Client(0, sends[0])
        client.train()
        eventually(lambda: server.memory.shared.version == 1)
        assert not app.counts.refused
    assert "message_not_handled" in caplog.text


def test_terms_say_when_a_round_is_closed():
    terms = FederationTerms.agree(PIPELINE, D, FIRST, rounds=4, steps=2, clients=3, least_updates=2, round_seconds=30.0)
    assert RoundPolicy.of(terms) == RoundPolicy(updates=3, seconds=30.0, least_updates=2, rounds=4)
    trusted = FederationTerms.agree(SAMPLED, D, FIRST, rounds=4, steps=1, clients=3, least_updates=0, round_seconds=5.0)
    RoundPolicy.of(trusted).refuse_observable(trusted_server())
    with pytest.raises(dp.NotPrivate) as agreed:
        FederationTerms.agree(SAMPLED, D, FIRST, rounds=4, steps=1, clients=3, round_seconds=5.0)
    with pytest.raises(dp.NotPrivate) as served:
        RoundPolicy(seconds=5.0).refuse_observable(trusted_server())
    assert str(agreed.value) == str(served.value)


def test_a_policy_that_closes_no_round_is_refused():
    for wrong in ({}, {"updates": 0}, {"seconds": 0.0}, {"seconds": float("inf")}, {"updates": 1, "rounds": 0}):
        with pytest.raises(ValueError, match=r"RoundPolicy"):
            RoundPolicy(**wrong)


def test_limits_that_are_none_are_refused():
    for wrong in ({"connections": 0}, {"header_seconds": 0.0}, {"memory": 0}):
        with pytest.raises(ValueError, match="Limits"):
            Limits(**wrong)
    with pytest.raises(ValueError, match="one message of this layout may take"):
        FederationApp(server_of(), Senders(), RoundPolicy(updates=1), limits=Limits(memory=1000))


def test_no_token_goes_over_a_network_in_the_clear():
    app = FederationApp(server_of(), Senders(), RoundPolicy(updates=1))
    with pytest.raises(ValueError, match=r"no TLS at 0\.0\.0\.0"):
        serve(app, host="0.0.0.0", port=0)
    with pytest.raises(ValueError, match="has no TLS"):
        HttpTransport("http://198.51.100.7/", token="1.secret")
    with (
        serving(app, host="0.0.0.0", plain_because="this is a test") as url,
        HttpTransport(url, plain_because="as well") as send,
        pytest.raises(dp.DpcompError, match="401"),
    ):
        send(b"hello")


def test_a_port_that_is_taken_is_an_error_at_once():
    app = FederationApp(server_of(), Senders(), RoundPolicy(updates=1))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        serve(app, port=taken.getsockname()[1])


def test_a_certificate_and_a_key_of_two_pairs_are_refused(tmp_path):
    certificates(tmp_path, "other")
    app = FederationApp(server_of(), Senders(), RoundPolicy(updates=1))
    with pytest.raises(OSError, match=r"(?i)key"):
        serve(app, port=0, tls=Tls(certificate=tmp_path / "server.pem", key=tmp_path / "other-key.pem"))


def test_without_its_extra_the_rest_can_be_imported():
    script = (
        "import sys\nsys.modules['starlette'] = None\nimport dpcomp, dpcomp.adapters, dpcomp.lab.cli\n"
        "try:\n    import dpcomp.adapters.http\nexcept dpcomp.MissingExtra as error:\n    print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout == "http needs starlette: pip install 'dpcomp[http]'\n", ran.stderr


STOPPED = """
import logging, sys, threading
from dpcomp.adapters.http import FederationApp, RoundPolicy, Senders, serve
from tests.adapters.federation import server_of
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
server = server_of(clients=1, folder="server")
accept = server.handle
def slowly(message, sender):
    print("begun", flush=True)
    threading.Event().wait(1.0)
    return accept(message, sender)
server.handle = slowly
serve(FederationApp(server, Senders.read("senders.toml"), RoundPolicy(updates=1, rounds=1)), port=0)
server.close()
print("closed", flush=True)
"""


def test_sigterm_answers_what_was_begun_and_returns(tmp_path):
    token = new_token(0)
    Senders.of(tokens=[token]).write(tmp_path / "senders.toml")
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        url = process.stdout.readline().split("url=")[1].strip()
        with transport(url, token=token) as send:
            client = Client(0, send)
            client.talk(TimedOut())
            assert process.stdout.readline() == "begun\n"
            client.participant.handle(Trained(client.release()))
            payload, replies = client.participant.state.pending.payload, []
            thread = threading.Thread(target=lambda: replies.append(send(payload)))
            thread.start()
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGTERM)
            thread.join()
            assert replies[0] is not None
        rest = process.stdout.read()
    assert process.returncode == 0
    assert rest.splitlines()[-2:] == [f"stopped url={url}", "closed"]
    again = server_of(clients=1, folder=tmp_path / "server")
    try:
        assert again.memory.link(0).count == 1  # in the journal, or in a round that was closed
    finally:
        again.close()

"""Many clients at once: no update is lost or counted twice, and the server's memory does not grow with the rounds."""

import threading

import pytest

from benchmarks.http_federation import measured
from dpcomp.adapters.http import FederationApp, RoundPolicy, Senders, new_token, serving
from tests.adapters.federation import Client, certificates, server_of, tls_of, transport


@pytest.mark.slow
def test_forty_transports_at_once_lose_nothing_and_count_nothing_twice(tmp_path):
    clients, rounds = 40, 10
    certificates(tmp_path)
    server = server_of(clients=clients, folder=tmp_path / "server")
    tokens = [new_token(number) for number in range(clients)]
    app = FederationApp(server, Senders.of(tokens=tokens), RoundPolicy(updates=clients, rounds=rounds))
    with serving(app, tls=tls_of(tmp_path)) as url:
        sends = [transport(url, token=token, ca=tmp_path / "server.pem", seconds=120.0) for token in tokens]
        taking_part = [Client(number, send) for number, send in enumerate(sends)]
        threads = [threading.Thread(target=client.take_part, args=(rounds, 0.2)) for client in taking_part]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for send in sends:
            send.close()
    for number, client in enumerate(taking_part):
        assert client.memory.link == server.memory.link(number)
        assert client.memory.link.count == rounds
    assert not app.counts.refused
    server.close()


@pytest.mark.slow
def test_the_memory_of_a_server_does_not_grow_with_the_rounds(tmp_path):
    figures = measured(tmp_path, clients=30, rounds=40)  # raises where both ends know of other updates
    assert figures["sent_again"] == 0
    memory = figures["resident_mib"]
    assert memory["at the end"] < memory["after a tenth"] + 10

"""Many clients at once: no update is lost or counted twice, and the server's memory does not grow with the rounds."""

import json
import re
import threading
from pathlib import Path

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


def test_the_page_tells_what_was_measured():
    root = Path(__file__).parents[2]
    record = json.loads((root / "docs" / "benchmarks" / "http_federation.json").read_text(encoding="utf-8"))
    page = (root / "docs" / "guides" / "http.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", page[page.index("## Measured") :], re.MULTILINE))
    memory, reply = record["resident_mib"], record["client_ms"]
    updates = record["clients"] * record["rounds"]
    assert told[f"updates lost or counted twice, of {updates:,}"].startswith("0:")  # the script ends with an error else
    assert told["resident memory of the server after 20 rounds, and at the end"] == (
        f"{memory['after a tenth']:.0f} MiB, {memory['at the end']:.0f} MiB"
    )
    assert told["processor time of the server"] == f"{record['processor_ms_a_request']:.1f} ms a request"
    assert told["reply at the client, median and 99th percentile"] == (
        f"{reply['50'] / 1000:.2f} s, {reply['99'] / 1000:.2f} s"
    )
    assert f"(load average {record['load_average']}" in page

"""Measures a federation over HTTPS on this machine: python benchmarks/http_federation.py

A server in a process of its own, with a folder, and many clients as threads of two other processes. The clients do not
train: each sends a made-up update, called a release and charged, in each round, and then asks for the next version
until there is one. A round is closed once all have sent. At the end the server's count of each client's updates is
compared with what that client knows was accepted, so that a lost or doubled one ends the script with an error. It
prints what it measured, and at full size writes docs/benchmarks/http_federation.json.

The columns: how long a request takes from the client's call to its reply, and within the server's app alone, at the
99th percentile; the server's processor time a request; its resident memory after a tenth of the rounds and at the end.
All processes share the cores of one machine, so the clients' times are those of a busy one.
"""

import argparse
import http.client
import json
import os
import platform
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np

import dpcomp as dp
from dpcomp.adapters.http import FederationApp, Limits, RoundPolicy, Senders, Tls, make_certificate, new_token, serve
from dpcomp.federated import Participant, ReplyReceived, Server, TimedOut, Trained
from dpcomp.federated.phases import Event
from dpcomp.wire.update import with_claim

RECORD = Path(__file__).parent.parent / "docs" / "benchmarks" / "http_federation.json"
COORDINATES, SEED = 1000, dp.PublicSeed(0)
FIRST = np.zeros(COORDINATES, np.float32)
PIPELINE = dp.Pipeline(
    mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4))
)
PROCESSES = 2
LEAST_POLL_SECONDS = 0.2


class TimedApp(FederationApp):
    """An app that notes how long each request takes in it."""

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self.seconds = array("f")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        began = time.perf_counter()
        await super().__call__(scope, receive, send)
        if scope["type"] == "http":
            self.seconds.append(time.perf_counter() - began)


def resident() -> int:
    """The bytes of this process's memory that are in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_server(folder: Path, clients: int, rounds: int) -> None:
    """Serve until SIGTERM, then write what was counted and measured."""
    memory = PIPELINE.init_server(COORDINATES, SEED)
    server = Server(PIPELINE.channel, memory, FIRST, clients=clients, folder=folder / "server")
    app = TimedApp(
        server,
        Senders.read(folder / "senders.toml"),
        RoundPolicy(updates=clients, rounds=rounds),
        limits=Limits(connections=clients + 50),
    )
    after: dict[int, int] = {}  # version → resident bytes

    def watch() -> None:
        while True:
            after.setdefault(server.memory.shared.version, resident())
            (folder / "version").write_text(str(server.memory.shared.version))
            time.sleep(0.2)

    threading.Thread(target=watch, daemon=True).start()
    tls = Tls(certificate=folder / "server.pem", key=folder / "server-key.pem")
    before = resource.getrusage(resource.RUSAGE_SELF)
    serve(app, port=int((folder / "port").read_text()), tls=tls)
    used = resource.getrusage(resource.RUSAGE_SELF)
    links = [server.memory.link(number) for number in range(clients)]
    np.save(folder / "server.npy", np.asarray(app.seconds))
    (folder / "server.json").write_text(
        json.dumps(
            {
                "links": [[link.count, link.digest.hex()] for link in links],
                "version": server.memory.shared.version,
                "resident": [after[version] for version in sorted(after)],
                "refused": dict(app.counts.refused),
                "refusals": dict(server.refusals),
                "processor_seconds": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
            }
        )
    )
    server.close()


class Client:
    """A client without training; it sends over one connection, which it opens again if need be."""

    def __init__(self, number: int, folder: Path, seconds: array):
        memory = PIPELINE.init_client(COORDINATES, SEED, number)
        self.ledger, self.seconds = dp.Ledger(), seconds
        self.participant = Participant(PIPELINE.channel, memory, FIRST, self.ledger)
        self.token = json.loads((folder / "tokens.json").read_text())[number]
        self.context = ssl.create_default_context(cafile=str(folder / "server.pem"))
        self.port, self.values = int((folder / "port").read_text()), np.random.default_rng(number)
        self.line: http.client.HTTPSConnection | None = None
        self.again = 0

    def send(self, message: bytes) -> bytes | None:
        """Send a message until there is a reply, and note how long the reply took."""
        while True:
            try:
                if self.line is None:
                    self.line = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=120, context=self.context)
                began = time.perf_counter()
                self.line.request("POST", "/", message, {"Authorization": f"Bearer {self.token}"})
                response = self.line.getresponse()
                body = response.read()
                self.seconds.append(time.perf_counter() - began)
                if response.status in (200, 204):
                    return body or None
            except (OSError, http.client.HTTPException):
                if self.line is not None:
                    self.line.close()
                self.line = None
            self.again += 1
            time.sleep(0.2)

    def talk(self, event: Event) -> None:
        """Handle an event, and all messages that follow."""
        messages = self.participant.handle(event)
        while messages:
            reply = self.send(messages.pop(0))
            if reply is not None:
                messages += self.participant.handle(ReplyReceived(reply))

    def take_part(self, rounds: int) -> None:
        """Send one update in each round."""
        self.talk(TimedOut())
        took, began = 0.0, time.monotonic()  # of the last round
        while self.participant.state.memory.shared.version < rounds:
            memory = self.participant.state.memory
            if self.participant.may_train:
                self.ledger.charge(PIPELINE.cost, memory.address)
                values = self.values.standard_normal(COORDINATES).astype(np.float32)
                update = dp.Update(values=values, layout=memory.layout, address=memory.address)
                self.talk(Trained(with_claim(update, PIPELINE.claim)))
            # About twice a round, however long the rounds are on this machine.
            time.sleep(max(LEAST_POLL_SECONDS, took / 2) * self.values.uniform(0.5, 1.5))
            self.talk(TimedOut())
            if self.participant.state.memory.shared.version > memory.shared.version:
                took, began = time.monotonic() - began, time.monotonic()


def run_clients(folder: Path, numbers: range, rounds: int) -> None:
    """Run clients as threads, then write what they know and measured."""
    seconds = array("f")
    clients = [Client(number, folder, seconds) for number in numbers]
    threads = [threading.Thread(target=client.take_part, args=(rounds,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    links = {client.participant.state.memory.client: client.participant.state.memory.link for client in clients}
    np.save(folder / f"clients-{numbers.start}.npy", np.asarray(seconds))
    (folder / f"clients-{numbers.start}.json").write_text(
        json.dumps(
            {
                "links": {number: [link.count, link.digest.hex()] for number, link in links.items()},
                "again": sum(client.again for client in clients),
            }
        )
    )


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def wait_for(folder: Path) -> None:
    """Wait until the server listens."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", int((folder / "port").read_text()))).close()
            return
        except OSError:
            time.sleep(0.2)


def measured(folder: Path, clients: int, rounds: int) -> dict[str, Any]:
    """Run a federation, compare both ends, and return the figures. Raises AssertionError where they differ."""
    tokens = [new_token(number) for number in range(clients)]
    (folder / "tokens.json").write_text(json.dumps(tokens))
    (folder / "port").write_text(str(free_port()))
    Senders.of(tokens=tokens).write(folder / "senders.toml")
    make_certificate(folder / "server.pem", folder / "server-key.pem", name="server", hosts=["127.0.0.1"])

    def started(*arguments: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, __file__, *map(str, arguments), "--clients", str(clients), "--rounds", str(rounds)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    began = time.perf_counter()
    server = started("--server", folder)
    wait_for(folder)
    edges = [clients * part // PROCESSES for part in range(PROCESSES + 1)]
    loads = [started("--load", folder, edges[part], edges[part + 1]) for part in range(PROCESSES)]
    codes = [load.wait() for load in loads]
    wall = time.perf_counter() - began
    server.send_signal(signal.SIGTERM)
    assert [server.wait(), *codes] == [0] * (1 + PROCESSES)

    at_server = json.loads((folder / "server.json").read_text())
    at_clients = [json.loads((folder / f"clients-{start}.json").read_text()) for start in edges[:-1]]
    known = {int(number): link for each in at_clients for number, link in each["links"].items()}
    assert at_server["links"] == [known[number] for number in range(clients)], "an update was lost or counted twice"
    assert [count for count, _ in at_server["links"]] == [rounds] * clients, "a client missed a round"
    at_client = np.concatenate([np.load(folder / f"clients-{start}.npy") for start in edges[:-1]])
    within = np.load(folder / "server.npy")
    after = at_server["resident"]
    return {
        "clients": clients,
        "rounds": rounds,
        "requests": len(within),
        "wall_seconds": round(wall, 1),
        "sent_again": sum(each["again"] for each in at_clients),
        "refused": at_server["refused"] | at_server["refusals"],
        "client_ms": {str(q): round(1e3 * float(np.percentile(at_client, q)), 1) for q in (50, 99)},
        "server_ms": {str(q): round(1e3 * float(np.percentile(within, q)), 1) for q in (50, 99)},
        "processor_ms_a_request": round(1e3 * at_server["processor_seconds"] / len(within), 2),
        "resident_mib": {
            "after a tenth": round(after[len(after) // 10] / 2**20, 1),
            "at the end": round(after[-1] / 2**20, 1),
        },
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a federation over HTTPS on this machine.")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--server", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server is not None:
        run_server(options.server, options.clients, options.rounds)
    elif options.load is not None:
        folder, first, end = options.load
        run_clients(Path(folder), range(int(first), int(end)), options.rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            figures = measured(Path(folder), options.clients, options.rounds)
        print(json.dumps(figures, indent=2))
        if (options.clients, options.rounds) == (parser.get_default("clients"), parser.get_default("rounds")):
            RECORD.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

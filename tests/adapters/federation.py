"""A small federation over HTTP on this machine, for tests: its server, its clients, and raw sockets for attackers."""

import os
import socket
import ssl
import time
from pathlib import Path

import numpy as np

import dpcomp as dp
from dpcomp.adapters.http import HttpTransport, Tls, make_certificate
from dpcomp.core.randomness import SecretSeed
from dpcomp.federated import Participant, ReplyReceived, Server, TimedOut, Trained, TrustedRelease

D, SEED, FIRST = 1000, dp.PublicSeed(0), np.zeros(1000, np.float32)
CODEC = dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4))
PIPELINE = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=CODEC)
SAMPLED = dp.Pipeline(
    unit="client",
    trust="server",
    sampling=dp.Poisson(0.5),
    mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
    codec=CODEC,
)


def server_of(clients=3, folder=None, run_id=None, **given):
    memory = PIPELINE.init_server(D, SEED, run_id=run_id)
    return Server(PIPELINE.channel, memory, FIRST, clients=clients, folder=folder, **given)


def trusted_server(clients=8, budget=None):
    release = TrustedRelease(
        pipeline=SAMPLED, secret=SecretSeed(1), ledger=dp.Ledger(budget=budget), divisor=0.5 * clients
    )
    memory = SAMPLED.init_server(D, SEED)
    return Server(SAMPLED.channel, memory, FIRST, trusted_release=release, clients=clients)


class Client:
    """A participant that sends over a transport and notes what it has sent."""

    def __init__(self, number, send, ledger=None, folder=None):
        self.send, self.ledger, self.sent = send, dp.Ledger() if ledger is None else ledger, []
        memory = PIPELINE.init_client(D, SEED, number)
        self.participant = Participant(PIPELINE.channel, memory, FIRST, self.ledger, folder)

    @property
    def memory(self):
        return self.participant.state.memory

    def talk(self, event):
        """Handle an event, and all messages that follow."""
        messages = self.participant.handle(event)
        while messages:
            self.sent.append(messages.pop(0))
            reply = self.send(self.sent[-1])
            if reply is not None:
                messages += self.participant.handle(ReplyReceived(reply))

    def release(self, secret=None):
        memory = self.memory
        permit = self.ledger.charge(PIPELINE.cost, memory.address)
        values = [np.ones((2, D), np.float32)]
        return PIPELINE.release(values, memory, dp.SecretSeed() if secret is None else secret, permit)

    def train(self):
        """Sync and send one update, if this round has none of it yet."""
        self.talk(TimedOut())
        self._train()

    def _train(self):
        if self.participant.may_train:
            self.talk(Trained(self.release()))

    def take_part(self, rounds, pause=0.01):
        """Train until so many rounds are closed."""
        self.talk(TimedOut())
        while self.memory.shared.version < rounds:
            self._train()
            time.sleep(pause)
            self.talk(TimedOut())


def certificates(folder: Path, *names, hosts=("127.0.0.1", "localhost")):
    """Make a certificate for the server and for each of the names."""
    make_certificate(folder / "server.pem", folder / "server-key.pem", name="server", hosts=hosts)
    for name in names:
        make_certificate(folder / f"{name}.pem", folder / f"{name}-key.pem", name=name)


def tls_of(folder: Path, *names):
    return Tls(
        certificate=folder / "server.pem",
        key=folder / "server-key.pem",
        clients=[folder / f"{each}.pem" for each in names],
    )


def transport(url, **given):
    """A transport that gives up soon."""
    return HttpTransport(url, **{"seconds": 10.0, "longest_pause": 0.05} | given)


def connected(url, context=None):
    """Open a raw connection to a URL of this machine."""
    host, port = url.rstrip("/").rpartition("//")[2].rsplit(":", 1)
    line = socket.create_connection((host, int(port)), timeout=10)
    return line if context is None else context.wrap_socket(line, server_hostname=host)


def trusting(path):
    """Return the TLS of a client that trusts one certificate."""
    return ssl.create_default_context(cafile=os.fspath(path))


def rest_of(line):
    """Read until the server ends the connection; a server that does not makes it raise TimeoutError."""
    parts = []
    try:
        while part := line.recv(2**16):
            parts.append(part)
    except (ConnectionError, ssl.SSLError):
        pass
    line.close()
    return b"".join(parts)


def answer(url, *parts):
    """Send parts on a raw connection, and return all that comes back until the server ends it."""
    line = connected(url)
    try:
        for part in parts:
            line.sendall(part)
    except ConnectionError:
        pass  # the server has heard enough
    return rest_of(line)


def post(body=b"", *, token="", length=None, more=""):
    """Return a request by hand; its Content-Length may be wrong."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    length = len(body) if length is None else length
    return f"POST / HTTP/1.1\r\nHost: x\r\n{authorization}{more}Content-Length: {length}\r\n\r\n".encode() + body


def eventually(condition, seconds=10.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)

"""A server and clients in processes of their own, to be killed: each starts over from its folder."""

import logging
import os
from pathlib import Path

import numpy as np

import dpcomp as dp
from dpcomp.adapters.http import FederationApp, HttpTransport, Limits, RoundPolicy, Senders, serve
from dpcomp.federated.phases import ReplyReceived, TimedOut, Trained
from dpcomp.wire.frame import PAYLOAD
from dpcomp.wire.headers import is_payload, tag_of, unsealed
from tests.adapters.federation import PIPELINE, Client, D, server_of

CLIENTS = 3


def live_server(folder: str, port: int) -> None:
    """Serve until SIGTERM or the kill; rounds have no end."""
    logging.getLogger("dpcomp").setLevel(logging.ERROR)
    server = server_of(clients=CLIENTS, folder=f"{folder}/server")
    close_round = server.close_round

    def checked():
        counted = [accepted.client for accepted in server.accepted]
        if len(set(counted)) != len(counted):
            Path(folder, "doubled").write_text(str(counted))
        return close_round()

    server.close_round = checked
    policy = RoundPolicy(updates=CLIENTS, seconds=0.3, least_updates=1)
    serve(
        FederationApp(server, Senders.read(f"{folder}/senders.toml"), policy, limits=Limits(stop_seconds=5.0)),
        port=port,
    )
    server.close()


class Logged(Client):
    """A client that writes each payload to a file before it leaves, and the rounds of those that were accepted."""

    def __init__(self, folder, number, send):
        super().__init__(number, send, dp.Ledger(f"{folder}/client-{number}.db"), f"{folder}/client-{number}")
        self.folder, self.number = Path(folder), number
        self._note()

    def talk(self, event):
        messages = self.participant.handle(event)
        self._note()
        while messages:
            message = messages.pop(0)
            if is_payload(message):
                self._keep(message)
            try:
                reply = self.send(message)
            except OSError:
                continue  # the server is gone; it is asked again
            if reply is not None:
                messages += self.participant.handle(ReplyReceived(reply))
                self._note()

    def train(self):
        if self.participant.may_train:
            memory = self.memory
            permit = self.ledger.charge(PIPELINE.cost, memory.address)
            values = np.random.default_rng(memory.shared.version).standard_normal((20, D)).astype(np.float32)
            self.talk(Trained(PIPELINE.release([values], memory, dp.SecretSeed(), permit)))
        self.talk(TimedOut())

    def _keep(self, message):
        pending = self.participant.state.pending
        assert pending is not None
        path = self.folder / f"sent-{self.number}-{PAYLOAD.record_of(pending.payload).round}"
        if not path.exists():
            path.with_suffix(".part").write_bytes(message)
            os.replace(path.with_suffix(".part"), path)
        elif content(path.read_bytes()) != content(message):
            (self.folder / "released twice").write_text(path.name)

    def _note(self):
        last = self.memory.link.last
        if last is not None:
            (self.folder / f"accepted-{self.number}-{last.round}").touch()


def content(message: bytes) -> tuple[bytes, bytes]:
    """What a payload says with any header."""
    return tag_of(message), bytes(unsealed(message).body)


def live_client(folder: str, number: int, port: int) -> None:
    """Take part until the kill."""
    token = Path(folder, f"token-{number}").read_text()
    send = HttpTransport(f"http://127.0.0.1:{port}/", token=token, attempts=3, longest_pause=0.1)
    client = Logged(folder, number, send)
    client.talk(TimedOut())
    while True:
        client.train()

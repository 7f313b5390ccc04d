"""A client process that is killed at any moment goes on by itself, and has never released twice."""

import multiprocessing
import sqlite3
import time
from contextlib import suppress

import numpy as np
import pytest

from dpcomp.federated.phases import Phase, ReplyReceived, TimedOut
from dpcomp.federated.server import Server
from dpcomp.wire.frame import PAYLOAD
from tests.federated.killed_client import LAYOUT, PIPELINE, RUN, live, opened

PATIENCE = 0.3  # seconds that a round stays open for a client that may have forfeited it


def fresh_server(folder=None):
    return Server(PIPELINE.channel, PIPELINE.init_server(LAYOUT, RUN), np.zeros(LAYOUT.size, np.float32), folder=folder)


def charged(folder):
    """The rounds that the ledger of a folder has charged."""
    with sqlite3.connect(f"file:{folder}/ledger.db?mode=ro", uri=True) as database:
        rounds = {number for (number,) in database.execute("SELECT round FROM charges")}
    database.close()
    return rounds


class Life:
    """The server's side of the line: what it hears from one client process after the other."""

    def __init__(self, folder):
        self.folder, self.server = folder, fresh_server()
        self.sent = {}  # round → the payload that came
        self.log = []  # accepted payloads, and None where a round was closed
        self.opened_at = time.monotonic()

    def live(self, seconds):
        """A process for so many seconds; then it is killed."""
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        process = context.Process(target=live, args=(str(self.folder), theirs), daemon=True)
        process.start()
        theirs.close()
        self._listen(ours, seconds)
        process.kill()
        process.join()
        assert process.exitcode == -9, "the client ended by itself"
        self._drain(ours)
        ours.close()

    def _listen(self, line, seconds):
        heard, end = False, time.monotonic() + 30
        while time.monotonic() < end:
            if line.poll(0.005):
                if not heard:
                    heard, end = True, time.monotonic() + seconds
                self._tell(line, self.handle(line.recv_bytes()))
            waited = time.monotonic() - self.opened_at
            if self.server.accepted or (heard and waited > PATIENCE):
                self.close(line)

    def _drain(self, line):
        with suppress(EOFError, OSError):  # it was killed in the middle of a message
            while line.poll():
                self.handle(line.recv_bytes())

    def handle(self, message):
        if PAYLOAD.begins(message):
            number = PAYLOAD.unseal(message)[0].round
            assert self.sent.setdefault(number, message) == message, f"round {number} was released twice"
        before = len(self.server.accepted)
        word = self.server.handle(message, 0)
        self.log += [message] * (len(self.server.accepted) - before)
        return word

    def close(self, line):
        self.log.append(None)
        self._tell(line, self.server.close_round())
        self.opened_at = time.monotonic()

    def _tell(self, line, message):
        if line is not None and message is not None:
            with suppress(OSError):  # nobody may be there any more
                line.send_bytes(message)


def survive(folder, kills, seed):
    multiprocessing.get_context("forkserver").set_forkserver_preload(["dpcomp.federated"])
    life, rng = Life(folder), np.random.default_rng(seed)
    for kill in range(1, kills + 1):
        life.live(float(rng.exponential(0.3)))
        assert charged(folder) >= set(life.sent), "a round was released that was not charged"
        # Of what was charged and never came, each kill can have taken one: the round that was open then.
        assert len(charged(folder) - set(life.sent)) <= kill
    participant = opened(folder)
    messages = participant.handle(TimedOut())
    while messages:
        messages += participant.handle(ReplyReceived(life.handle(messages.pop())))
    assert participant.state.phase is Phase.SYNCED
    assert participant.state.model.tobytes() == life.server.model.tobytes()
    assert participant.state.memory.link == life.server.memory.link(0)
    participant.ledger.close()
    return life


def replayed(log):
    """The model of a server that hears the accepted messages, and nothing else."""
    server = fresh_server()
    for message in log:
        if message is None:
            server.close_round()
        else:
            assert server.handle(message, 0) is not None
    assert not server.refusals
    return server.model


def check(folder, kills, seed):
    life = survive(folder, kills, seed)
    assert len(life.sent) > kills / 8, "it hardly ever got as far as to send"
    assert life.server.refusals.keys() <= {"repeat", "version"}
    assert replayed(life.log).tobytes() == life.server.model.tobytes()
    return life


def test_a_client_survives_kills(tmp_path):
    check(tmp_path, 8, seed=0)


@pytest.mark.slow
def test_a_client_survives_two_hundred_kills(tmp_path):
    life = check(tmp_path, 220, seed=1)
    forfeited = charged(tmp_path) - set(life.sent)
    print(f"{len(life.sent)} rounds were sent, {len(forfeited)} forfeited; {life.server.refusals}")

"""A client process that is killed at any moment goes on by itself, and has never released twice."""

import multiprocessing
import time
from contextlib import suppress

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.federated.messages import HELLO, NO_DIGEST
from dpcomp.federated.phases import Phase, ReplyReceived, TimedOut
from dpcomp.federated.server import Server
from dpcomp.wire.headers import ShortPayload, is_payload, tag_of, unsealed
from tests.federated.killed_client import LAYOUT, PIPELINE, RUN, live, opened

SILENCE = 600  # seconds after which a client hangs
MOMENT = 0.02  # seconds, on average, from the last message of a life to the kill: they choose where it falls, no more


def fresh_server(folder=None):
    return Server(
        PIPELINE.channel,
        PIPELINE.init_server(LAYOUT, RUN, run_id=b"the kill"),
        np.zeros(LAYOUT.size, np.float32),
        folder=folder,
    )


def charged(folder):
    """The rounds that the ledger of a folder has charged."""
    return {entry.address.round for entry in dp.Ledger.read(folder / "ledger.db").entries}


class Life:
    """The server's end of the line to one client process after the other.

    What happens depends on messages alone, whatever time they take: a process is killed after so many different ones,
    and a round is closed once its update is accepted, or once the client shows that it has none.
    """

    def __init__(self, folder):
        self.folder, self.server = folder, fresh_server()
        self.sent = {}  # round → the payload that came
        self.log = []  # accepted payloads, and None where a round was closed
        self.idle = set()  # questions of this process, at the server's version and with nothing pending

    def live(self, messages, moment):
        """Run a process until it has sent so many different messages, wait for a moment, and kill it."""
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        process = context.Process(target=live, args=(str(self.folder), theirs), daemon=True)
        process.start()
        theirs.close()
        self.idle.clear()
        different = set()
        while len(different) < messages:
            assert ours.poll(SILENCE), "the client says nothing"
            try:
                message = ours.recv_bytes()
            except (EOFError, OSError):
                pytest.fail("the client ended by itself")
            different.add(message)
            self._tell(ours, self.handle(message))
            # Once it was answered, a client trains, unless it has charged this round before: then it asks anew.
            if self.server.accepted or len(self.idle) > 1:
                self.close(ours)
        time.sleep(moment)
        process.kill()
        process.join()
        assert process.exitcode == -9, "the client ended by itself"
        self._drain(ours)
        ours.close()

    def _drain(self, line):
        with suppress(EOFError, OSError):  # it was killed in the middle of a message
            while line.poll():
                self.handle(line.recv_bytes())

    def handle(self, message):
        if is_payload(message):
            payload, version = unsealed(message), self.server.memory.shared.version
            number = payload.header.version_near(version) if isinstance(payload, ShortPayload) else payload.frame.round
            sent = tag_of(message), bytes(payload.body)
            assert self.sent.setdefault(number, sent) == sent, f"round {number} was released twice"
        elif self._is_idle(message):
            self.idle.add(message)
        before = len(self.server.accepted)
        reply = self.server.handle(message, 0)
        self.log += [message] * (len(self.server.accepted) - before)
        return reply

    def close(self, line):
        self.log.append(None)
        self._tell(line, self.server.close_round())
        self.idle.clear()

    def _is_idle(self, message):
        hello, _ = HELLO.unseal(message)
        return hello.pending == NO_DIGEST and hello.version == self.server.memory.shared.version

    def _tell(self, line, message):
        if message is not None:
            with suppress(OSError):  # nobody may be there any more
                line.send_bytes(message)


def survive(folder, kills, seed):
    multiprocessing.get_context("forkserver").set_forkserver_preload(["dpcomp.federated", "dpcomp.pipeline"])
    dp.Ledger.create(folder / "ledger.db").close()
    life, rng = Life(folder), np.random.default_rng(seed)
    for kill in range(1, kills + 1):
        life.live(int(rng.integers(1, 9)), float(rng.exponential(MOMENT)))
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
    assert len(life.sent) > kills / 2, "it hardly ever got as far as to send"
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

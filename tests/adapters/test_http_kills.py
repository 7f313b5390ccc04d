"""Server and clients that are killed at any moment lose nothing that was accepted, and count nothing twice."""

import contextlib
import multiprocessing
import re
import socket
import time

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.adapters.http import Senders, new_token
from dpcomp.federated import TimedOut
from dpcomp.federated.phases import Phase
from tests.adapters.federation import server_of
from tests.adapters.killed_ends import CLIENTS, Logged, live_client, live_server

SILENCE = 300  # seconds after which the federation hangs
SERVER = CLIENTS  # its place among the processes


def rounds_of(folder, word, number):
    """The rounds that files of a client name."""
    names = (re.fullmatch(rf"{word}-{number}-(\d+)", path.name) for path in folder.iterdir())
    return {int(name[1]) for name in names if name}


def progress(folder):
    return sum(len(rounds_of(folder, word, number)) for word in ("sent", "accepted") for number in range(CLIENTS))


def advanced(folder, processes, steps):
    """Wait until so many further payloads were sent or accepted."""
    enough, end = progress(folder) + steps, time.monotonic() + SILENCE
    while progress(folder) < enough:
        assert time.monotonic() < end, "the federation hangs"
        for process in processes:
            assert process.is_alive(), f"{process.name} ended by itself with {process.exitcode}"
        time.sleep(0.01)


def survive(folder, kills, seed):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.adapters.killed_ends"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tokens = [new_token(number) for number in range(CLIENTS)]
    Senders.of(tokens=tokens).write(folder / "senders.toml")
    for number, token in enumerate(tokens):
        (folder / f"token-{number}").write_text(token)
        dp.Ledger.create(folder / f"client-{number}.db").close()

    def started(place):
        target, given = (live_server, (port,)) if place == SERVER else (live_client, (place, port))
        process = context.Process(target=target, args=(str(folder), *given), daemon=True, name=f"process {place}")
        process.start()
        return process

    rng = np.random.default_rng(seed)
    processes = [started(place) for place in range(CLIENTS + 1)]
    try:
        for _ in range(kills):
            advanced(folder, processes, int(rng.integers(1, 7)))
            time.sleep(rng.exponential(0.02))
            place = int(rng.choice([*range(CLIENTS), SERVER, SERVER]))
            processes[place].kill()
            processes[place].join()
            assert processes[place].exitcode == -9
            processes[place] = started(place)
        advanced(folder, processes, 12)
        processes[SERVER].terminate()
        processes[SERVER].join(timeout=60)
        assert processes[SERVER].exitcode == 0
    finally:
        for process in processes:
            process.kill()
            process.join()


def check(folder, kills, seed):
    survive(folder, kills, seed)
    assert not (folder / "doubled").exists(), "a client counted twice in a round"
    assert not (folder / "released twice").exists(), "a round was released twice"
    server = server_of(clients=CLIENTS, folder=folder / "server")
    with contextlib.closing(server):
        for number in range(CLIENTS):
            client = Logged(folder, number, lambda message, of=number: server.handle(message, of))
            while client.participant.state.phase is not Phase.SYNCED:
                client.talk(TimedOut())
            assert client.memory.link == server.memory.link(number)
            assert client.participant.state.model.tobytes() == server.model.tobytes()
            sent, accepted = rounds_of(folder, "sent", number), rounds_of(folder, "accepted", number)
            assert len(accepted) == server.memory.link(number).count  # nothing is lost that a client knows of
            assert accepted <= sent
            charged = {entry.address.round for entry in dp.Ledger.read(folder / f"client-{number}.db").entries}
            assert charged >= sent, "a round was released that was not charged"
            client.ledger.close()
        replayed = server_of(clients=CLIENTS, run_id=server.memory.genesis.run_id)
        for version in range(server.memory.shared.version):
            for number in range(CLIENTS):
                if version in rounds_of(folder, "accepted", number):
                    replayed.handle((folder / f"sent-{number}-{version}").read_bytes(), number)
            replayed.close_round()
        assert not replayed.refusals
        # What was accepted was counted once, in its round, and nothing else was.
        assert replayed.model.tobytes() == server.model.tobytes()
        return server.memory.shared.version


def test_a_few_kills_lose_nothing_and_count_nothing_twice(tmp_path):
    assert check(tmp_path, kills=4, seed=0) > 2


@pytest.mark.slow
def test_fifty_kills_lose_nothing_and_count_nothing_twice(tmp_path):
    assert check(tmp_path, kills=50, seed=1) > 20

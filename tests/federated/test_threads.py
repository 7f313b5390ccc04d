"""A server that is called from the threads of a transport: nothing is lost, and nothing counts twice."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.federated import Participant, ReplyReceived, Server, TimedOut, Trained, TrustedRelease
from dpcomp.federated.messages import REPLY, is_receipt
from dpcomp.wire.update import with_claim

D, CLIENTS, COPIES, THREADS = 300, 16, 3, 16
SEED, NOISE = dp.PublicSeed(0), (dp.Clip(1.0), dp.Gaussian(0.5))
CODEC = dp.Codec(sparsify=dp.TopK(0.2), quantize=dp.Uniform(4))
PIPELINES = {
    "nobody": dp.Pipeline(mechanism=NOISE, codec=CODEC),
    "server": dp.Pipeline(mechanism=NOISE, codec=CODEC, unit="client", trust="server"),
}
ZEROS = np.zeros(D, np.float32)


def server_of(pipeline, folder=None):
    trusted = pipeline.trust == "server"
    release = TrustedRelease(pipeline=pipeline, secret=dp.SecretSeed(0), ledger=dp.Ledger(), divisor=1.0)
    memory = pipeline.init_server(D, SEED, run_id=b"threads!")
    return Server(
        pipeline.channel,
        memory,
        ZEROS,
        clients=CLIENTS,
        folder=folder,
        trusted_release=release if trusted else None,
    )


def clients_of(pipeline, server):
    """Clients that have trained, and their payloads."""
    clients, payloads = [], []
    for number in range(CLIENTS):
        client = Participant(pipeline.channel, pipeline.init_client(D, SEED, number), ZEROS, dp.Ledger())
        (hello,) = client.handle(TimedOut())
        client.handle(ReplyReceived(server.handle(hello, number)))
        values = np.random.default_rng(number).standard_normal(D).astype(np.float32)
        update = dp.Update(values=values, layout=dp.Layout.of(D), address=client.state.memory.address)
        if pipeline.trust == "nobody":
            update = with_claim(update, pipeline.claim)
        client.ledger.charge(pipeline.cost, client.state.memory.address)
        payloads += client.handle(Trained(update))
        clients.append(client)
    return clients, payloads


def delivered(server, payloads, during=None):
    """The replies to several copies of each payload, sent at once by many threads."""
    jobs = [(number, payload) for number, payload in enumerate(payloads) for _ in range(COPIES)]
    order = np.random.default_rng(len(payloads)).permutation(len(jobs))
    start = threading.Barrier(THREADS)

    def work(share):
        start.wait()
        found = []
        for place in share:
            number, payload = jobs[place]
            found.append((number, server.handle(payload, number)))
            if during is not None and place == 0:
                during()
        return found

    with ThreadPoolExecutor(THREADS) as threads:
        return list(chain.from_iterable(threads.map(work, np.array_split(order, THREADS))))


def check(pipeline, folder):
    server = server_of(pipeline, folder)
    clients, payloads = clients_of(pipeline, server)
    replies = delivered(server, payloads)
    for number, reply in replies:
        clients[number].handle(ReplyReceived(reply))
    assert all(client.state.pending is None for client in clients)
    assert sorted(one.client for one in server.accepted) == list(range(CLIENTS))
    assert all(server.memory.link(number) == clients[number].state.memory.link for number in range(CLIENTS))
    assert server.refusals == {"repeat": CLIENTS * (COPIES - 1)}
    alone = server_of(pipeline)
    for number in reversed(range(CLIENTS)):
        alone.handle(payloads[number], number)
    if folder is not None:
        server.close()
        server = server_of(pipeline, folder)
        assert len(server.accepted) == CLIENTS
    assert server.close_round() == alone.close_round()
    assert server.model.tobytes() == alone.model.tobytes()
    server.close()


def check_close(pipeline, folder):
    """A round is closed while payloads arrive: what was called accepted is in one of its means."""
    server, closed = server_of(pipeline, folder), []
    _, payloads = clients_of(pipeline, server)

    def close_round():
        with server._lock:  # so that the count is that of the round that is closed
            closed.append((sorted(one.client for one in server.accepted), server.close_round()))

    replies = delivered(server, payloads, close_round)
    accepted = {number for number, reply in replies if is_receipt(reply) or REPLY.unseal(reply)[0].link_count == 1}
    ((counted, broadcast),) = closed
    assert accepted == set(counted)
    assert not server.accepted  # what came later was coded against an earlier version
    alone = server_of(pipeline)
    for number in counted:
        alone.handle(payloads[number], number)
    assert alone.close_round() == broadcast
    server.close()


@pytest.fixture(autouse=True)
def _threads_take_turns_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("trust", PIPELINES)
@pytest.mark.parametrize("durable", [False, True])
def test_copies_from_many_threads_count_once_and_none_is_lost(trust, durable, tmp_path):
    for trial in range(1 if durable else 2):
        check(PIPELINES[trust], tmp_path / str(trial) if durable else None)


@pytest.mark.parametrize("trust", PIPELINES)
def test_a_round_that_is_closed_meanwhile_holds_all_that_was_called_accepted(trust):
    for _ in range(3):
        check_close(PIPELINES[trust], None)


@pytest.mark.slow
@pytest.mark.parametrize("trust", PIPELINES)
def test_two_hundred_trials_lose_nothing_and_count_nothing_twice(trust, tmp_path):
    for _ in range(100):
        check(PIPELINES[trust], None)
        check_close(PIPELINES[trust], None)
    for trial in range(20):
        check(PIPELINES[trust], tmp_path / f"{trial}")
        check_close(PIPELINES[trust], tmp_path / f"close {trial}")

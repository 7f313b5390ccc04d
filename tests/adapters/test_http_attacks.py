"""What strangers and clients that misbehave send is refused and counted, while honest clients are served."""

import asyncio
import gc
import socket
import threading
import time
import tracemalloc
from contextlib import contextmanager, suppress

import pytest

from dpcomp.adapters.http import (
    FederationApp,
    HttpTransport,
    Limits,
    RefusedByServer,
    RoundPolicy,
    Senders,
    new_token,
    serving,
)
from dpcomp.federated import TimedOut, Trained
from dpcomp.federated.messages import largest_message
from tests.adapters.federation import (
    Client,
    D,
    answer,
    certificates,
    connected,
    eventually,
    post,
    rest_of,
    server_of,
    tls_of,
    transport,
    trusting,
)

QUICK = Limits(header_seconds=0.5, grace_seconds=0.5, least_bytes_per_second=1e6, idle_seconds=5.0, stop_seconds=1.0)
LONGEST = largest_message(D)


def chunked(token):
    """Return the head of a message in chunks."""
    head = f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode()


class Federation:
    """A server that is under attack, with two honest clients; a round is closed once both have sent."""

    def __init__(self, limits):
        self.tokens = [new_token(client) for client in range(2)]
        self.server = server_of(clients=2)
        self.app = FederationApp(self.server, Senders.of(tokens=self.tokens), RoundPolicy(updates=2), limits=limits)
        self.url = ""

    @property
    def refused(self):
        return self.app.counts.refused

    def serves(self, rounds=1):
        """Whether both clients take part in further rounds, and the server has counted what they know it has."""
        sends = [transport(self.url, token=token) for token in self.tokens]
        clients = [Client(number, send) for number, send in enumerate(sends)]
        until = self.server.memory.shared.version + rounds
        threads = [threading.Thread(target=client.take_part, args=(until,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        for send in sends:
            send.close()
        assert self.server.memory.shared.version == until
        return all(self.server.memory.link(number) == client.memory.link for number, client in enumerate(clients))


@contextmanager
def attacked(limits=QUICK):
    federation = Federation(limits)
    with serving(federation.app) as federation.url:
        yield federation
        eventually(lambda: federation.app.counts.connections == 0, seconds=10)


def test_all_who_are_unknown_get_one_answer():
    with attacked() as federation:
        token = federation.tokens[0]
        answers = {
            answer(federation.url, post(b"x" * 40, token=each)).split(b"date")[1][40:]
            for each in (
                "",
                "0.guessed",
                f"1{token[1:]}",
                "999.none",
                token[:-1],
                f"{token}x",
                "٣.x".encode().decode("latin-1"),
            )
        }
        assert len(answers) == 1
        assert answers.pop().endswith(b"sender\n")
        assert federation.refused == {"sender": 7}
        bearer = answer(federation.url, post(more=f"Authorization: Basic {token}\r\n"))
        assert b" 401 " in bearer.splitlines()[0]
        with (
            transport(federation.url, token="0.guessed", attempts=5) as stranger,
            pytest.raises(RefusedByServer, match="token"),
        ):
            stranger(b"hello")
        assert federation.refused == {"sender": 9}  # a user's error is not sent again
        assert federation.serves()
        assert not federation.server.refusals


def test_ten_thousand_unknown_clients_leave_nothing_behind():
    app = Federation(QUICK).app
    statuses = []

    async def strangers(numbers):
        async def receive():
            raise AssertionError("the body of a stranger is read")

        async def send(message):
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        for number in numbers:
            headers = [(b"authorization", b"Bearer %d.%064d" % (number, number))]
            scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": b""}
            await app(scope | {"http_version": "1.1", "root_path": "", "app": None}, receive, send)

    asyncio.run(strangers(range(100)))
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        asyncio.run(strangers(range(10_000)))
        statuses.clear()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 50_000
    assert app.counts.refused == {"sender": 10_100}


def test_nobody_sends_as_another_client_and_nothing_counts_twice():
    with attacked() as federation, transport(federation.url, token=federation.tokens[0]) as send:
        with transport(federation.url, token=federation.tokens[1]) as other:
            client = Client(0, send)
            client.talk(TimedOut())
            client.participant.handle(Trained(client.release()))
            payload = client.participant.state.pending.payload
            assert other(payload) is None  # client 1 has a payload of client 0
            assert federation.server.refusals == {"direction": 1}
            assert not federation.server.accepted
            client.talk(TimedOut())
            assert len(federation.server.accepted) == 1
            assert client.memory.link == federation.server.memory.link(0)
            for _ in range(3):
                send(payload)  # which was accepted before
            assert federation.server.refusals["repeat"] == 3
            assert len(federation.server.accepted) == 1
            Client(1, other).train()
            eventually(lambda: federation.server.memory.shared.version == 1)
            assert send(payload) is not None
            assert federation.server.memory.link(0).count == 1
            assert other(b"noise" * 10) is None
            assert federation.server.refusals["corrupt"] == 1
        assert federation.server.memory.link(0).count == 1


def test_a_message_that_is_too_long_is_refused_before_it_is_read():
    with attacked() as federation:
        token = federation.tokens[0]
        assert b" 413 " in answer(federation.url, post(b"x" * 100, token=token, length=LONGEST + 1))
        assert b" 413 " in answer(federation.url, post(b"", token=token, length=10**18))
        assert federation.server.traffic.messages == 0
        with transport(federation.url, token=token) as send, pytest.raises(RefusedByServer, match="longer than any"):
            send(bytes(LONGEST + 1))
        assert federation.refused == {"length": 3}
        with transport(federation.url, token=token) as send:
            assert send(bytes(LONGEST)) is None  # handled, and found to be none
        assert federation.serves()


def test_a_message_longer_than_it_says_is_cut_and_its_rest_is_no_request():
    with attacked() as federation:
        got = answer(federation.url, post(b"x" * 1000 + b"\r\n\r\n", token=federation.tokens[0], length=10))
        assert b" 204 " in got.splitlines()[0]
        assert b" 400 " in got
        assert federation.refused == {"malformed": 1}
        assert federation.server.refusals == {"corrupt": 1}
        assert federation.serves()


def test_chunks_without_an_end_are_refused_at_the_longest_message():
    with attacked() as federation:
        head = chunked(federation.tokens[0])
        chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
        line = connected(federation.url)
        line.sendall(head)
        sent = 0
        try:
            for _ in range(1000):
                line.sendall(chunk)
                sent += 2**16
        except ConnectionError:
            pass
        line.close()
        assert sent < 50 * LONGEST
        eventually(lambda: federation.refused["length"] == 1)
        short = head + b"4\r\nabcd\r\n0\r\n\r\n"
        line = connected(federation.url)
        line.sendall(short)
        assert b" 204 " in line.recv(1000)  # a message in chunks is one nevertheless
        line.close()
        assert federation.serves()


@pytest.mark.parametrize(
    "sent",
    [b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nX: ", b"\x16\x03\x01", b""],
    ids=["line", "header", "tls", "nothing"],
)
def test_slow_headers_are_ended_while_others_are_served(sent):
    with attacked() as federation:
        lines = [connected(federation.url) for _ in range(30)]
        for line in lines:
            line.sendall(sent)
        begun, dripping = time.monotonic(), True

        def drip():
            while dripping:
                for line in lines:
                    with suppress(OSError):
                        line.sendall(b"a" if sent else b"")
                time.sleep(0.1)

        slow = threading.Thread(target=drip)
        slow.start()
        assert federation.serves()
        eventually(lambda: federation.refused["slow"] + federation.refused["malformed"] == 30, seconds=5)
        assert time.monotonic() - begun < 5
        dripping = False
        slow.join()
        for line in lines:
            line.close()


def test_slow_headers_after_a_first_request_are_ended_too():
    with attacked() as federation, connected(federation.url) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /he")
        got = b""
        while b"version" not in got:  # the body may come by itself
            part = line.recv(1000)
            assert part
            got += part
        for _ in range(30):
            try:
                line.sendall(b"x")
            except ConnectionError:
                break
            time.sleep(0.1)
        eventually(lambda: federation.refused["slow"] == 1)


def test_a_slow_message_is_ended_and_its_client_served_again():
    with attacked() as federation:
        token = federation.tokens[0]
        line = connected(federation.url)
        line.sendall(post(b"x" * 10, token=token, length=1000))
        begun = time.monotonic()
        assert b" 408 " in rest_of(line)
        assert time.monotonic() - begun < 5
        with connected(federation.url) as line:
            line.sendall(post(b"x" * 10, token=token, length=1000))
        eventually(lambda: federation.refused == {"slow": 1, "cut": 1})
        assert federation.server.traffic.messages == 0
        assert federation.serves()


@pytest.mark.parametrize("secured", [False, True])
def test_a_client_that_takes_no_reply_holds_neither_memory_nor_a_place(secured, tmp_path):
    federation = Federation(QUICK)
    handle = federation.server.handle
    federation.server.handle = lambda message, sender: bytes(2**25) if message == b"long" else handle(message, sender)
    certificates(tmp_path)
    with serving(federation.app, tls=tls_of(tmp_path) if secured else None) as url:
        lines = []
        for _ in range(2):
            line = socket.socket()
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, port = url.rstrip("/").rpartition("//")[2].rsplit(":", 1)
            line.connect((host, int(port)))
            if secured:
                line = trusting(tmp_path / "server.pem").wrap_socket(line, server_hostname=host)
            line.sendall(post(b"long", token=federation.tokens[0]))
            lines.append(line)
        messages = federation.app._asgi.routes[0].endpoint
        eventually(lambda: messages._held > 2**25)
        # A third request of the same client is one too many; another client is served.
        ca = {"ca": tmp_path / "server.pem"} if secured else {}
        with (
            HttpTransport(url, token=federation.tokens[0], attempts=1, **ca) as send,
            pytest.raises(ConnectionError, match="429"),
        ):
            send(b"hello")
        with HttpTransport(url, token=federation.tokens[1], attempts=1, **ca) as send:
            Client(1, send).train()
            assert federation.refused["busy"] == 1
        eventually(lambda: messages._held == 0, seconds=20)
        assert federation.refused["slow"] == 2
        eventually(lambda: federation.app.counts.connections == 0, seconds=10)
        for line in lines:
            line.close()
        with HttpTransport(url, token=federation.tokens[0], attempts=1, **ca) as send:
            assert send(b"long") == bytes(2**25)  # of a client that takes it, nothing is cut off


def test_messages_beyond_the_memory_are_put_off():
    limits = Limits(memory=LONGEST, header_seconds=5.0, grace_seconds=2.0, least_bytes_per_second=1e6)
    with attacked(limits) as federation:
        line = connected(federation.url)
        line.sendall(post(bytes(LONGEST - 100), token=federation.tokens[0], length=LONGEST))
        messages = federation.app._asgi.routes[0].endpoint
        eventually(lambda: messages._held > LONGEST // 2)
        eventually(lambda: messages._held == LONGEST - 100)
        with (
            transport(federation.url, token=federation.tokens[1], attempts=1) as send,
            pytest.raises(ConnectionError, match="503"),
        ):
            send(bytes(200))
        assert b" 408 " in rest_of(line)
        assert federation.refused == {"busy": 1, "slow": 1}
        assert federation.serves()


def test_idle_connections_give_their_places_to_new_ones():
    limits = Limits(connections=10, header_seconds=30.0)
    with attacked(limits) as federation:
        lines = [connected(federation.url) for _ in range(60)]
        eventually(lambda: federation.refused["connections"] == 50)
        assert federation.app.counts.connections == 10
        assert federation.serves()
        for line in lines:
            line.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"\x00\xff\xfe garbage\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"POST / FTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 2**20 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost : x\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(request_):
    with attacked() as federation:
        assert b" 400 " in answer(federation.url, request_).splitlines()[0]
        assert federation.refused == {"malformed": 1}
        assert federation.serves()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 405),
        ("BREW", "/", 405),
        ("DELETE", "/health", 405),
        ("POST", "/asked", 405),
        ("POST", "//", 404),
        ("POST", "/../", 404),
        ("POST", "/%00%ff%2e%2e/", 404),
        ("GET", "/journal.db", 404),
        ("GET", "/asked/", 404),
        ("OPTIONS", "*", 404),
    ],
)
def test_other_paths_and_methods_are_refused(method, path, status):
    with attacked() as federation:
        got = answer(federation.url, f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert int(got.split()[1]) == status
        assert federation.refused == {"path": 1}
        assert federation.serves()


def test_a_bad_chunk_within_a_message_ends_it():
    with attacked() as federation:
        head = chunked(federation.tokens[0])
        assert b" 400 " in answer(federation.url, head, b"zz\r\nabcd\r\n")
        assert federation.refused["malformed"] == 1
        assert federation.serves()


class TestCertificates:
    """A server that knows its clients by their certificates."""

    @pytest.fixture
    def folder(self, tmp_path):
        certificates(tmp_path, "client-0", "client-1", "stranger")
        return tmp_path

    @contextmanager
    def serving(self, folder, limits=QUICK):
        server = server_of(clients=3)
        files = {number: folder / f"client-{number}.pem" for number in range(2)}
        app = FederationApp(server, Senders.of(certificates=files), RoundPolicy(updates=3), limits=limits)
        # The stranger's certificate is trusted too, as one of the same authority is, but is no client's.
        with serving(app, tls=tls_of(folder, "client-0", "client-1", "stranger")) as url:
            yield url, server, app.counts.refused
            eventually(lambda: app.counts.connections == 0, seconds=10)

    def transport(self, url, folder, name):
        files = None if name is None else (folder / f"{name}.pem", folder / f"{name}-key.pem")
        return transport(url, certificate=files, ca=folder / "server.pem", attempts=3)

    def test_each_sends_as_itself_alone(self, folder):
        with self.serving(folder) as (url, server, refused):
            with self.transport(url, folder, "client-0") as send:
                client = Client(0, send)
                client.train()
                assert server.memory.link(0) == client.memory.link
            with self.transport(url, folder, "client-1") as send:
                assert send(client.sent[-1]) is None
            assert server.refusals == {"direction": 1}
            assert not refused

    def test_a_certificate_of_nobody_and_none_get_one_answer(self, folder):
        with self.serving(folder) as (url, _, refused):
            for name in (None, "stranger"):
                with self.transport(url, folder, name) as send, pytest.raises(RefusedByServer, match="401"):
                    send(b"hello")
            assert refused == {"sender": 2}

    def test_a_certificate_that_is_not_trusted_is_refused_and_said_to_be(self, folder):
        certificates_of_others = folder / "others"
        certificates_of_others.mkdir()
        certificates(certificates_of_others, "client-0")
        (certificates_of_others / "server.pem").write_bytes((folder / "server.pem").read_bytes())
        with self.serving(folder) as (url, _, refused):
            with (
                self.transport(url, certificates_of_others, "client-0") as send,
                pytest.raises(RefusedByServer, match="certificate"),
            ):
                send(b"hello")
            eventually(lambda: refused["tls"] == 3)
            with self.transport(url, folder, "client-0") as send:
                Client(0, send).train()

    def test_handshakes_that_do_not_end_are_ended(self, folder):
        with self.serving(folder) as (url, _, refused):
            lines = [connected(url) for _ in range(20)]
            for line in lines[:10]:
                line.sendall(b"\x16\x03\x01\x02\x00\x01")
            with self.transport(url, folder, "client-0") as send:
                Client(0, send).train()
            eventually(lambda: refused["tls"] == 20, seconds=5)
            for line in lines:
                line.close()
            assert answer(url, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") == b""  # no TLS at all
            eventually(lambda: refused["tls"] == 21)
            with connected(url, trusting(folder / "server.pem")) as line:
                line.sendall(b"GET /hea")
                assert rest_of(line) == b""
            assert refused["slow"] == 1

    def test_handshakes_give_their_places_to_new_connections(self, folder):
        with self.serving(folder, Limits(connections=5, header_seconds=30.0)) as (url, _, refused):
            lines = [connected(url) for _ in range(30)]
            with self.transport(url, folder, "client-0") as send:
                Client(0, send).train()
            assert refused["connections"] >= 25
            for line in lines:
                line.close()

"""The client's end: what it sends again, what it raises at once, and what it says."""

import contextlib
import http.server
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from dpcomp.adapters.http import HttpTransport, RefusedByServer
from tests.adapters.federation import certificates, transport


@contextmanager
def answering(*answers):
    """Serve one answer after another, as (status, headers, body); None ends the connection without one."""
    given, requests = iter(answers), []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            requests.append((self.client_address[1], self.path, dict(self.headers), body))
            answer = next(given)
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/federation", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


OK = (200, {}, b"reply")


def test_one_connection_carries_all_messages():
    with answering(OK, (204, {}, b""), OK) as (url, requests):
        with HttpTransport(url, token="3.secret") as send:
            assert [send(b"one"), send(b""), send(b"three")] == [b"reply", None, b"reply"]
        assert [body for *_, body in requests] == [b"one", b"", b"three"]
        assert len({port for port, *_ in requests}) == 1
        for _, path, headers, _ in requests:
            assert path == "/federation/"
            assert headers["Authorization"] == "Bearer 3.secret"
            assert headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    "failure", [None, (500, {}, b""), (502, {}, b""), (503, {}, b""), (429, {}, b""), (408, {}, b"")]
)
def test_what_got_no_reply_is_sent_again(failure):
    with answering(failure, failure, OK) as (url, requests), transport(url) as send:
        assert send(b"message") == b"reply"
        assert [body for *_, body in requests] == [b"message"] * 3


@pytest.mark.parametrize(
    ("status", "headers", "meaning"),
    [
        (401, {}, "token or certificate"),
        (404, {}, "no federation at this path"),
        (405, {}, "no federation at this path"),
        (413, {}, "longer than any"),
        (301, {"Location": "https://other.example/"}, "sends its callers to https://other.example/"),
        (403, {}, "is there a server of a federation at this URL"),
        (201, {}, "is there a server of a federation at this URL"),
    ],
)
def test_what_asking_again_does_not_mend_is_raised_at_once(status, headers, meaning):
    with answering((status, headers, b"")) as (url, requests), transport(url) as send:
        with pytest.raises(RefusedByServer, match=meaning):
            send(b"message")
        assert len(requests) == 1


def test_a_server_that_is_down_is_no_error_of_the_user():
    with answering(OK, *[(503, {}, b"")] * 3) as (url, requests), transport(url, attempts=3) as send:
        send(b"message")
        with pytest.raises(ConnectionError, match="no reply in 3 attempts; the last: status 503"):
            send(b"message")
        assert len(requests) == 4
    with transport(url, attempts=2) as send, pytest.raises(ConnectionError, match="refused"):
        send(b"message")


def test_a_server_that_never_answers_a_connection_may_be_another_one():
    with (
        answering(*[None] * 6) as (url, _),
        transport(url, attempts=3) as send,
        pytest.raises(RefusedByServer, match="ends each without a reply"),
    ):
        send(b"message")
    with answering(OK, *[None] * 3) as (url, _), transport(url, attempts=3) as send:
        send(b"message")
        with pytest.raises(ConnectionError):  # of a server that has answered, this is a failure of the network
            send(b"message")


def test_pauses_grow_differ_and_are_bounded(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with answering(*[(503, {"Retry-After": "7"}, b"")] * 3, *[(503, {}, b"")] * 40) as (url, _):
        with transport(url, attempts=3, longest_pause=30.0) as send, pytest.raises(ConnectionError):
            send(b"message")
        assert pauses == [7.0, 7.0]
        for _ in range(2):
            with transport(url, attempts=20, longest_pause=4.0) as send, pytest.raises(ConnectionError):
                send(b"message")
    first, second = pauses[2:21], pauses[21:]
    assert first != second
    assert all(0 <= pause <= min(0.5 * 2**place, 4.0) for place, pause in enumerate(first))
    assert max(first + second) > 1.0


def test_a_reply_that_is_too_long_is_not_held():
    with (
        answering((200, {}, bytes(2000))) as (url, _),
        transport(url, largest_reply=1000) as send,
        pytest.raises(RefusedByServer, match="more than 1,000 bytes"),
    ):
        send(b"message")


def test_a_silent_server_is_not_waited_for():
    with answering() as (url, _), transport(url, seconds=0.3, attempts=1) as send:
        begun = time.monotonic()
        with pytest.raises((ConnectionError, RefusedByServer)):
            send(b"message")
        assert time.monotonic() - begun < 5


def test_a_reply_that_drips_is_not_waited_for():
    listening = socket.create_server(("127.0.0.1", 0))

    def drip():
        line, _ = listening.accept()
        line.recv(10_000)
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(1000):
                line.sendall(b"x")
                time.sleep(0.05)
        line.close()

    thread = threading.Thread(target=drip)
    thread.start()
    with transport(f"http://127.0.0.1:{listening.getsockname()[1]}/", seconds=0.5, attempts=1) as send:
        begun = time.monotonic()
        with pytest.raises(ConnectionError, match=r"bytes came in 0\.5 s"):
            send(b"message")
        assert time.monotonic() - begun < 10
    thread.join()
    listening.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "federation.example",
        "ftp://federation.example/",
        "https:///path",
        "https://user:secret@federation.example/",
        "https://federation.example/?token=3",
        "http://federation.example/",
        "https://federation.example:port/",
    ],
)
def test_a_url_that_is_none_is_refused_at_once(url):
    with pytest.raises(ValueError, match=r"URL|no TLS"):
        HttpTransport(url)


def test_a_file_that_is_no_certificate_is_refused_at_once(tmp_path):
    certificates(tmp_path)
    with pytest.raises(OSError):
        HttpTransport("https://federation.example/", ca=tmp_path / "nowhere.pem")
    with pytest.raises(OSError):
        HttpTransport("https://federation.example/", certificate=(tmp_path / "server-key.pem", tmp_path / "server.pem"))


def test_what_answers_is_no_federation():
    with (
        answering((200, {}, b"<html>")) as (url, _),
        transport(url) as send,
        pytest.raises(RefusedByServer, match="no server of a federation"),
    ):
        send.asked()

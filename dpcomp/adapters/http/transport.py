"""HttpTransport: carries the messages of a client to a federation's server."""

import logging
import os
import secrets
import socket
import ssl
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import httpx

from dpcomp.adapters.http.serving import is_loopback
from dpcomp.core.checks import real_number, whole_number
from dpcomp.core.errors import DpcompError

LOG = logging.getLogger("dpcomp.http")
FIRST_PAUSE = 0.5  # seconds, doubled after each attempt
CONNECT_SECONDS = 10.0
LEAST_BYTES_PER_SECOND = 10_000.0  # of a reply, after `seconds`
IDLE_SECONDS = 30.0  # below that of a server, which would close the connection while a request is on its way
AGAIN = (408, 429, 500, 502, 503, 504)  # statuses after which the same request may succeed


class RefusedByServer(DpcompError):
    """No message of this client gets to the server as it is set up: its URL, token or certificate is wrong.

    Asking again does not help, so it is raised at once; nothing that was charged or saved is lost.
    """


class HttpTransport:
    """Sends messages to a server and returns its replies: the `send` of `FederatedClient`, or of your own loop.

    The connection stays open between messages, and threads may share a transport. A request that gets no reply is sent
    again after a pause, which is drawn below 0.5 s, then 1 s, 2 s and so on, so that clients do not come back all at
    once. To send a message again is safe: the server takes each payload once, and says so.

    Args:
        url: The server's address, such as `"https://federation.example:8765/"`.
        token: The client's token, if the server knows it by one.
        certificate: The PEM files of the client's certificate and private key, if the server knows it by them.
        ca: The PEM file of the authority that has signed the server's certificate, or of that certificate itself if it
            is self-signed. None trusts the authorities of the system.
        seconds: How long the server may take to begin a reply; and beyond 10 kB a second, for all of it.
        attempts: How often a message is sent before `send` gives up.
        longest_pause: The longest pause between two attempts, in seconds.
        largest_reply: The most bytes of a reply.
        plain_because: Why a token may go to another machine without TLS, as for `serve`.

    Raises:
        ValueError: The URL is none, or is not one of HTTPS although it names another machine; or a number is out of
            range.
        OSError: A file of a certificate cannot be used.

    Examples:
        >>> from dpcomp.adapters.http import HttpTransport
        >>> HttpTransport("http://federation.example/", token="7.secret")
        Traceback (most recent call last):
        ValueError: http://federation.example/ has no TLS...
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        certificate: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        ca: str | os.PathLike[str] | None = None,
        seconds: float = 60.0,
        attempts: int = 5,
        longest_pause: float = 30.0,
        largest_reply: int = 2**30,
        plain_because: str = "",
    ):
        self._url = _checked(url, plain_because)
        self._seconds = seconds
        self._attempts = whole_number(attempts, "HttpTransport(attempts)", least=1)
        self._largest_reply = whole_number(largest_reply, "HttpTransport(largest_reply)", least=1)
        self._longest_pause = real_number(longest_pause, "HttpTransport(longest_pause)", "seconds, 0 or more")
        context = ssl.create_default_context(cafile=None if ca is None else os.fspath(ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # of a proxy; dpcomp's server wants 1.3
        if certificate is not None:
            context.load_cert_chain(*certificate)
        self._http = httpx.Client(
            verify=context,
            headers={"Accept-Encoding": "identity"} | ({} if token is None else {"Authorization": f"Bearer {token}"}),
            timeout=httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS)),
            limits=httpx.Limits(keepalive_expiry=IDLE_SECONDS),
        )
        self._reached = False  # whether the server has ever answered

    def __call__(self, message: bytes) -> bytes | None:
        """Send a message, and return the server's reply; None if the server gives none.

        Raises:
            RefusedByServer: The URL, the token or a certificate is wrong.
            ConnectionError: No reply came in all attempts: the server or the network is down.
        """
        return self._request("POST", self._url, message)

    def asked(self) -> bool:
        """Ask whether the server wants an update of this client in the present round. Raises as a call does."""
        reply = self._request("GET", self._url.join("asked"), None)
        try:
            return bool(httpx.Response(200, content=reply).json()["asked"])
        except (ValueError, KeyError, TypeError) as error:
            raise RefusedByServer(
                f"{self._url} is no server of a federation: give the URL that `serve` logs"
            ) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, method: str, url: httpx.URL, message: bytes | None) -> bytes | None:
        dropped = 0
        pauses = self._pauses()
        while True:
            wanted, why = 0.0, ""
            try:
                with self._http.stream(method, url, content=message) as response:
                    self._reached = True
                    if response.status_code in (200, 204):
                        reply = self._read(response)
                        return reply if response.status_code == 200 else None
                    why = f"status {response.status_code}"
                    if response.status_code not in AGAIN:
                        raise RefusedByServer(_meaning(response, self._url))
                    wanted = _seconds(response.headers.get("retry-after", ""))
                    self._read(response)  # so that the connection can be used again
            except httpx.TransportError as error:
                why = str(error) or type(error).__name__
                self._refuse_user_error(error)
                dropped += isinstance(error, httpx.RemoteProtocolError | httpx.ReadError)
            pause = next(pauses, None)
            if pause is None:
                break
            LOG.debug("again url=%s why=%r", self._url, why)
            time.sleep(min(max(pause, wanted), self._longest_pause))
        if not self._reached and dropped == self._attempts:
            raise RefusedByServer(
                f"{self._url} takes connections and ends each without a reply, as a server does that does not know "
                "this client's certificate, or speaks TLS where the URL says http: check both"
            )
        raise ConnectionError(f"{self._url} gave no reply in {self._attempts} attempts; the last: {why}")

    def _pauses(self) -> Iterator[float]:
        for attempt in range(self._attempts - 1):
            longest = min(FIRST_PAUSE * 2**attempt, self._longest_pause)
            yield secrets.SystemRandom().uniform(0.0, longest)

    def _read(self, response: httpx.Response) -> bytes:
        parts: list[bytes] = []
        length, began = 0, time.monotonic()
        for part in response.iter_raw():
            length += len(part)
            if time.monotonic() - began > self._seconds + length / LEAST_BYTES_PER_SECOND:
                raise httpx.ReadTimeout(f"a reply of which only {length:,} bytes came in {self._seconds:g} s and more")
            if length > self._largest_reply:
                raise RefusedByServer(
                    f"{self._url} replies with more than {self._largest_reply:,} bytes: is it the server? If so, give "
                    "a higher largest_reply"
                )
            parts.append(part)
        return b"".join(parts)

    def _refuse_user_error(self, error: httpx.TransportError) -> None:
        """Raise what asking again does not mend."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise RefusedByServer(
                    f"the certificate of {self._url} is not trusted ({cause.verify_message}): give ca= the server's "
                    "certificate or its authority's, and the host name that stands in it"
                ) from error
            if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
                raise RefusedByServer(
                    f"{self._url} refuses the certificate of this client ({cause.reason}): give certificate= the one "
                    "that the server knows"
                ) from error
            if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
                raise RefusedByServer(f"{self._url} speaks no TLS: is it http:// on this machine?") from error
            if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME and not self._reached:
                raise RefusedByServer(f"{self._url}: there is no host of this name; check the URL") from error
            cause = cause.__cause__ or cause.__context__


def _checked(url: str, plain_because: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is no URL of a server: give one as https://federation.example:8765/")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ValueError(f"the URL of {parsed.host} has a user, query or fragment: give address, port and path alone")
    if parsed.scheme == "http" and not plain_because and not is_loopback(parsed.host):
        raise ValueError(
            f"{url} has no TLS: whoever carries the token reads it, and sends as this client. Use https://, or say in "
            "plain_because what else protects the way"
        )
    return parsed if parsed.path.endswith("/") else parsed.copy_with(path=f"{parsed.path}/")


def _meaning(response: httpx.Response, url: httpx.URL) -> str:
    meanings = {
        401: "the server knows no client by this token or certificate: give the one that it was told of",
        413: "the message is longer than any of the server's layout: both ends need one configuration",
        404: "there is no federation at this path: give the URL that `serve` logs",
        405: "there is no federation at this path: give the URL that `serve` logs",
    }
    status = response.status_code
    if response.is_redirect:
        return f"{url} sends its callers to {response.headers.get('location')}: give that URL if it is the server's"
    return f"{url} answers with {status}: {meanings.get(status, 'is there a server of a federation at this URL?')}"


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdecimal() else 0.0

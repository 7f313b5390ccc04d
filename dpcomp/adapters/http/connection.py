"""Connection: uvicorn's HTTP/1.1 with limits on connections and time, and with the client's certificate."""

import asyncio
import ssl
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dpcomp.adapters.http.counts import Counts
from dpcomp.adapters.http.limits import Limits
from dpcomp.adapters.http.messages import CHUNK

CLOSING_SECONDS = 2.0  # for the end of TLS, which the peer must answer


class Gate:
    """Opens at most so many connections; a new one takes the place of the one that has waited longest for a request.

    Args:
        limits: The limits.
        counts: Where connections and refusals are counted.
        tls: The context of the connections; None without TLS.
    """

    def __init__(self, limits: Limits, counts: Counts, tls: ssl.SSLContext | None):
        self.limits, self.counts, self.tls = limits, counts, tls
        self._waiting: dict[Connection, None] = {}  # for a request, in the order in which they began to

    def connection(self, **given: Any) -> "Connection":
        """Return what handles a new connection, as uvicorn asks for it."""
        return Connection(self, **given)

    def open(self, connection: "Connection") -> bool:
        """Count a new connection, which waits for a request; return False if there is no place."""
        if self.counts.connections >= self.limits.connections:
            self.counts.refused["connections"] += 1
            if not self._waiting:
                return False
            next(iter(self._waiting)).abort()
        self.counts.connections += 1
        self._waiting[connection] = None
        return True

    def close(self, connection: "Connection") -> None:
        """Count a connection no longer."""
        self.counts.connections -= 1
        self._waiting.pop(connection, None)

    def wait(self, connection: "Connection", waits: bool) -> None:
        """Take note that an open connection waits for a request, or that it does no longer."""
        if not waits:
            self._waiting.pop(connection, None)
        elif connection.opened:
            self._waiting.setdefault(connection)


class Connection(H11Protocol):
    """One connection: it waits for a request, then the app answers it; each state may last for a limited time.

    The client's certificate is handed to the app as the ASGI extension `tls` says.

    Attributes:
        opened: Whether it has a place at the gate.
    """

    def __init__(self, gate: Gate, **given: Any):
        super().__init__(**given)
        self._gate, self.opened = gate, False
        self._raw: asyncio.Transport | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}  # of the header, the reply and the end
        self._securing: asyncio.Task[None] | None = None
        self._early = b""  # what came with the end of the handshake

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Open the connection, or refuse it where there is no place."""
        self._raw, self.opened = transport, self._gate.open(self)
        if not self.opened:
            transport.abort()
        elif self._gate.tls is None:
            self._begin(transport)
        else:
            transport.pause_reading()  # until TLS reads
            self._securing = self.loop.create_task(self._secure(transport, self._gate.tls))

    async def _secure(self, raw: asyncio.Transport, context: ssl.SSLContext) -> None:
        """Begin TLS here rather than at uvicorn, so that handshakes have a place, a time limit and a count."""
        if not self.opened:
            return
        limits = self._gate.limits
        try:
            secured = await self.loop.start_tls(
                raw,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=limits.header_seconds,
                ssl_shutdown_timeout=limits.seconds_for(2 * CHUNK) + CLOSING_SECONDS,  # it has to write a reply's end
            )
        except OSError:  # of which SSLError is one
            secured = None
        if secured is None or raw.is_closing():
            if self.opened:
                self._gate.counts.refused["tls"] += 1
            self.abort()
        elif self.opened:
            self._begin(secured)

    def _begin(self, transport: asyncio.Transport) -> None:
        certificate = transport.get_extra_info("ssl_object")
        certificate = None if certificate is None else certificate.getpeercert(binary_form=True)
        self.app = _WithCertificate(self.app, certificate)  # type: ignore[assignment]
        super().connection_made(transport)
        self._limit("header", self._gate.limits.header_seconds)
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def data_received(self, data: bytes) -> None:
        """Read a request, whose header may take so long and no longer."""
        if self.transport is None:
            self._early += data
        elif not self.transport.is_closing():  # else it is the rest of a request that was refused
            if self._waits and "header" not in self._timers:
                self._limit("header", self._gate.limits.header_seconds)
            super().data_received(data)
            if not self._waits:
                self._limit("header", None)
                self._gate.wait(self, False)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._gate.counts.refused["malformed"] += 1
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
            self._leave()
        else:  # within a reply there is no place for another one
            self.abort()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the end of the connection."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._leave()
        elif self._waits:
            self._gate.wait(self, True)
            self._limit("reply", self._seconds or None)

    def pause_writing(self) -> None:
        """Limit how long the client may take for its reply."""
        super().pause_writing()
        self._limit("reply", self._seconds or None)

    def resume_writing(self) -> None:
        """Go on writing."""
        super().resume_writing()
        self._limit("reply", None)

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that was not used for long."""
        super().timeout_keep_alive_handler()
        self._leave()

    def shutdown(self) -> None:
        """End the connection once its request is answered, since the server stops."""
        super().shutdown()
        if self.transport.is_closing():
            self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place free."""
        self._end()
        if self.transport is not None:
            super().connection_lost(exc)

    def abort(self) -> None:
        """End the connection at once."""
        self._end()
        if self._raw is not None:
            self._raw.abort()

    @property
    def _waits(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def _unsent(self) -> int:
        """The bytes of replies that the client has not taken, as the socket has them: below TLS, which holds few."""
        return 0 if self._raw is None else self._raw.get_write_buffer_size()

    @property
    def _seconds(self) -> float:
        """How long the client may take for the rest of its reply; 0 if it has all of it."""
        return self._gate.limits.seconds_for(self._unsent + 2 * CHUNK) if self._unsent else 0.0

    def _leave(self) -> None:
        """Limit how long the connection may take to close, and give its place to a new one if need be."""
        self._gate.wait(self, True)
        self._limit("close", CLOSING_SECONDS + self._seconds)

    def _limit(self, what: str, seconds: float | None) -> None:
        """End the connection after so long, unless this is called again before."""
        if what in self._timers:
            self._timers.pop(what).cancel()
        if seconds is not None and self.opened:
            self._timers[what] = self.loop.call_later(seconds, self._late, what)

    def _late(self, what: str) -> None:
        del self._timers[what]
        if what == "header" or self._unsent:
            self._gate.counts.refused["slow"] += 1
            self.abort()
        elif what == "close":
            self.abort()

    def _end(self) -> None:
        if self.opened:
            self.opened = False
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
            self._gate.close(self)


class _WithCertificate:
    """An ASGI app that sees the certificate of one connection."""

    def __init__(self, app: Any, certificate: bytes | None):
        chain = [] if certificate is None else [ssl.DER_cert_to_PEM_cert(certificate)]
        self._app, self._tls = app, {"client_cert_chain": chain, "client_cert_name": None, "client_cert_error": None}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Hand a request on."""
        await self._app({**scope, "extensions": {**scope.get("extensions", {}), "tls": self._tls}}, receive, send)

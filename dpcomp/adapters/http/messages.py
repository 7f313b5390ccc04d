"""Messages: reads a message of a client within the limits, and sends the server's reply."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dpcomp.adapters.http.counts import Refused
from dpcomp.adapters.http.limits import Limits
from dpcomp.core.errors import DpcompError
from dpcomp.federated.messages import largest_message
from dpcomp.federated.server import Server

LOG = logging.getLogger("dpcomp.http")
CHUNK = 2**18  # bytes of a reply that are handed to the network at once, which holds a few of them


class Refusal(HTTPException):
    """The refusal of a request: it is counted by its reason, and ends the connection, of which nothing more is read.

    Args:
        status: The status of the answer.
        reason: Why, for the counts.
    """

    def __init__(self, status: int, reason: Refused):
        again = {"Retry-After": "1"} if reason == "busy" else {}
        super().__init__(status, headers={"Connection": "close"} | again)
        self.reason: Refused = reason


class Messages:
    """An ASGI app that hands the messages of clients to a server, in threads, and its replies to the clients.

    Args:
        server: The server.
        sender_of: Returns who sends a request, and raises `Refusal` where nobody that is known does.
        limits: What is taken at most.
        arrived: Called after each message that was handled.

    Raises:
        ValueError: The limit of memory is below the longest message of the layout.
    """

    def __init__(
        self,
        server: Server,
        sender_of: Callable[[Scope], int],
        limits: Limits,
        arrived: Callable[[], None],
    ):
        self._longest = largest_message(server.memory.layout.size)
        if limits.memory < self._longest:
            raise ValueError(
                f"Limits(memory) is {limits.memory:,}: one message of this layout may take {self._longest:,} bytes; "
                "give that times the messages that may come at once"
            )
        self._server, self._sender_of, self._limits = server, sender_of, limits
        self._arrived = arrived
        self._threads = anyio.CapacityLimiter(limits.threads)
        self._held = 0  # bytes of messages and replies
        self._at_once: Counter[int] = Counter()  # the requests of each client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        sender = self._sender_of(scope)
        with self._turn(sender), self._hold() as hold:
            message = await self._read(Request(scope, receive), hold)
            try:
                reply = await anyio.to_thread.run_sync(self._server.handle, message, sender, limiter=self._threads)
            except (DpcompError, OSError) as error:  # such as a full disk: nothing was accepted
                LOG.error("message_not_handled error=%r", error)
                raise HTTPException(500) from error
            del message
            self._arrived()
            if reply is None:
                await Response(status_code=204)(scope, receive, send)
            else:
                hold(len(reply), at_most=False)  # it is there; no message is taken until it has left
                await _send_reply(reply, send)

    async def _read(self, request: Request, hold: Callable[..., None]) -> bytes:
        declared = request.headers.get("content-length")
        expected = self._longest if declared is None else int(declared)
        if expected > self._longest:
            raise Refusal(413, "length")
        parts: list[bytes] = []
        length = 0
        try:
            with anyio.fail_after(self._limits.seconds_for(expected)):
                async for part in request.stream():
                    length += len(part)
                    if length > self._longest:
                        raise Refusal(413, "length")
                    hold(len(part))
                    parts.append(part)
        except TimeoutError as error:
            raise Refusal(408, "slow") from error
        except ClientDisconnect as error:
            raise Refusal(400, "cut") from error
        return b"".join(parts)

    @contextmanager
    def _turn(self, sender: int) -> Iterator[None]:
        """Count a request of a client, of which only so many are taken at a time."""
        if self._at_once[sender] >= self._limits.requests_per_client:
            raise Refusal(429, "busy")
        self._at_once[sender] += 1
        try:
            yield
        finally:
            self._at_once[sender] -= 1
            if not self._at_once[sender]:
                del self._at_once[sender]

    @contextmanager
    def _hold(self) -> Iterator[Callable[..., None]]:
        """Count the bytes that a request holds, until it ends."""
        mine = 0

        def hold(length: int, at_most: bool = True) -> None:
            nonlocal mine
            if at_most and self._held + length > self._limits.memory:
                raise Refusal(503, "busy")
            mine += length
            self._held += length

        try:
            yield hold
        finally:
            self._held -= mine


async def _send_reply(reply: bytes, send: Send) -> None:
    """Send a reply in chunks, each once there is place for it: what the network holds is not counted."""
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(reply))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for place in range(0, len(reply), CHUNK):
        await send({"type": "http.response.body", "body": reply[place : place + CHUNK], "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})

"""FederationApp: the ASGI app of a federation's server."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dpcomp.adapters.http.counts import Counts
from dpcomp.adapters.http.limits import Limits
from dpcomp.adapters.http.messages import LOG, Messages, Refusal
from dpcomp.adapters.http.rounds import RoundPolicy, Rounds
from dpcomp.adapters.http.senders import Senders
from dpcomp.core.errors import DpcompError
from dpcomp.federated.server import Server

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class FederationApp:
    """Serves a federation over HTTP, as an ASGI app: `serve` runs it, and so does any ASGI server that does as much.

    | request | answer |
    |---|---|
    | `POST /` | the server's reply to a message; 204 if there is none |
    | `GET /asked` | whether the server asks the client that sends this for an update in the present round |
    | `GET /health` | the version, to anybody |
    | `GET /metrics` | public counts in the text format of Prometheus, to anybody |

    The first two want to know the sender: by the header `Authorization: Bearer TOKEN`, or by a certificate that TLS has
    verified and the ASGI server shows (the ASGI extension `tls`). All who are not known get one answer, 401.

    **Privacy:** nobody sends as another client, since the server takes a message only from the client that it names.
    Under a trusted server each client learns of the draw only whether it was drawn itself; the counts and logs hold
    nothing that depends on clean messages, and neither does the time at which a round is closed.

    Args:
        server: The server. The caller opens it, and closes it once the app has ended.
        senders: Who sends what.
        policy: When a round is closed.
        limits: What is taken at most.

    Raises:
        NotPrivate: As `RoundPolicy.refuse_observable` does.
        ValueError: As `Messages` and `Rounds` do.
    """

    def __init__(self, server: Server, senders: Senders, policy: RoundPolicy, *, limits: Limits = Limits()):
        policy.refuse_observable(server)
        self.limits, self.counts = limits, Counts()
        self._server, self._senders, self._rounds = server, senders, Rounds(server, policy)
        messages = Messages(server, self._sender_of, limits, self._rounds.arrived)
        self._asgi = Starlette(
            routes=[
                Route("/", messages, methods=["POST"]),
                Route("/asked", self._asked, methods=["GET"]),
                Route("/health", self._health, methods=["GET"]),
                Route("/metrics", self._metrics, methods=["GET"]),
            ],
            lifespan=self._lifespan,
            exception_handlers={HTTPException: self._answer},
        )
        self._asgi.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or begin and end with the ASGI server."""
        await self._asgi(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._rounds.run)
            yield
            tasks.cancel_scope.cancel()  # a round that is being closed is closed

    def _sender_of(self, scope: Scope) -> int:
        sender = self._senders.sender_of(Request(scope).headers.get("authorization"), _certificate_of(scope))
        if sender is None:
            raise Refusal(401, "sender")
        return sender

    async def _asked(self, request: Request) -> Response:
        sender = self._sender_of(request.scope)
        try:
            asked = not self._rounds.ended and await anyio.to_thread.run_sync(self._server.asks, sender)
        except (DpcompError, OSError) as error:  # such as a full disk: a draw that is not kept is told to nobody
            LOG.error("cohort_not_drawn error=%r", error)
            raise HTTPException(500) from error
        # Of one length for all clients, since lengths are seen on the network.
        return JSONResponse({"version": self._server.memory.shared.version, "asked": int(asked)})

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"version": self._server.memory.shared.version})

    async def _metrics(self, _: Request) -> Response:
        return PlainTextResponse(self.counts.text(self._server), media_type=PROMETHEUS)

    async def _answer(self, _: Request, error: Exception) -> Response:
        """Count a refusal, and answer with its status and reason alone."""
        assert isinstance(error, HTTPException)
        if error.status_code == 500:
            return PlainTextResponse("failed\n", 500)  # the log says why
        reason = error.reason if isinstance(error, Refusal) else "path"
        self.counts.refused[reason] += 1
        return PlainTextResponse(f"{reason}\n", error.status_code, headers=error.headers)


def _certificate_of(scope: Scope) -> bytes | None:
    """Return the client's certificate (DER), as the ASGI server shows it; None if there is none."""
    chain = scope.get("extensions", {}).get("tls", {}).get("client_cert_chain") or []
    return ssl.PEM_cert_to_DER_cert(chain[0]) if chain else None

"""Serving: runs a federation's app under uvicorn, until the process is asked to end."""

import ipaddress
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from dpcomp.adapters.http.app import FederationApp
from dpcomp.adapters.http.certificates import Tls
from dpcomp.adapters.http.connection import Gate
from dpcomp.core.errors import DpcompError

LOG = logging.getLogger("dpcomp.http")
LARGEST_HEADER = 2**14  # bytes
OTHER_FILES = 64  # that are open beside the connections


def serve(
    app: FederationApp, *, host: str = "127.0.0.1", port: int = 8765, tls: Tls | None = None, plain_because: str = ""
) -> None:
    """Serve a federation until the process gets SIGTERM or SIGINT.

    Then it takes no new message, answers those that it has begun to take, finishes a round that is being closed, and
    returns. Close the server after it.

    Args:
        app: The app.
        host: The address to listen at.
        port: The port; 0 takes a free one.
        tls: The server's certificate, and which certificates of clients it verifies.
        plain_because: Why there is no TLS at an address that is not the machine's own, such as "nginx in front ends
            TLS". Whoever carries a token in the clear reads it, and sends as its client.

    Raises:
        ValueError: There is no TLS, and no reason for it, at an address that others reach.
        OSError: The port is taken, or a file of the certificate cannot be used.
        DpcompError: The system allows fewer open files than connections.
        KeyboardInterrupt: It was SIGINT.
    """
    server, listening, url = _prepared(app, host, port, tls, plain_because)
    main = threading.current_thread() is threading.main_thread()
    # uvicorn raises the signal again once it has stopped; whoever called this still has a server to close.
    before = signal.signal(signal.SIGTERM, lambda *_: None) if main else None
    LOG.info("serving url=%s", url)
    try:
        server.run(sockets=[listening])
    finally:
        listening.close()
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    LOG.info("stopped url=%s", url)


@contextmanager
def serving(
    app: FederationApp, *, host: str = "127.0.0.1", port: int = 0, tls: Tls | None = None, plain_because: str = ""
) -> Iterator[str]:
    """Serve a federation in a thread, for notebooks and tests.

    Args:
        app: The app.
        host: The address to listen at.
        port: The port; 0 takes a free one.
        tls: As for `serve`.
        plain_because: As for `serve`.

    Yields:
        The URL for `HttpTransport`.

    Raises:
        ValueError, OSError, DpcompError: As `serve` does.
    """
    server, listening, url = _prepared(app, host, port, tls, plain_because)
    thread = threading.Thread(target=server.run, args=([listening],), name="dpcomp-http")
    thread.start()
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def _prepared(
    app: FederationApp, host: str, port: int, tls: Tls | None, plain_because: str
) -> tuple[uvicorn.Server, socket.socket, str]:
    """Return uvicorn's server, the socket at which it listens from now on, and the URL."""
    if tls is None and not plain_because and not is_loopback(host):
        raise ValueError(
            f"no TLS at {host}: whoever carries a token reads it, and sends as its client. Give tls=Tls(...), or say "
            "in plain_because what else protects the way"
        )
    limits = app.limits
    _allow_files(limits.connections + OTHER_FILES)
    gate = Gate(limits, app.counts, None if tls is None else tls.context())
    config = uvicorn.Config(
        app,
        http=gate.connection,  # type: ignore[arg-type]  # a function that returns a protocol is all that is called
        loop="asyncio",
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        log_level="error",  # else a stranger fills the log
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=LARGEST_HEADER,
        timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=limits.stop_seconds,  # type: ignore[arg-type]
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=1024)
    shown = f"[{host}]" if ":" in host else host
    url = f"{'http' if tls is None else 'https'}://{shown}:{listening.getsockname()[1]}/"
    return uvicorn.Server(config), listening, url


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is that of this machine, which no network carries."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _allow_files(needed: int) -> None:
    """Raise this process's limit of open files if need be, since a round is saved in files too."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise DpcompError(
            f"the system allows {hard} open files, and the connections need {needed}: raise the limit (ulimit -n), or "
            f"give Limits(connections={max(hard - OTHER_FILES, 1)})"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))

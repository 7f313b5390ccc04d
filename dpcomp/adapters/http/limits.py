"""Limits: what a server takes at most from the network, in connections, bytes and seconds."""

from dataclasses import dataclass, fields

from dpcomp.core.checks import real_number, whole_number


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds what connections and messages may take of a server.

    The length of a message needs no limit here: it follows from the layout, as `largest_message` says.

    Args:
        connections: The most open connections. Beyond it, the connection that has waited longest for a request is
            closed for a new one.
        requests_per_client: The most requests of one client at a time; others are answered with 429.
        header_seconds: How long TLS may take, and how long the header of a request.
        idle_seconds: How long a connection may stay open between two requests.
        grace_seconds: How long a message or a reply may take, beside `least_bytes_per_second`.
        least_bytes_per_second: The slowest rate at which a message or a reply is carried; what is slower is ended.
        memory: The most bytes of messages and replies that are held at once; beyond it messages are answered with 503.
        threads: The most messages that are handled at once.
        stop_seconds: How long requests in progress may take after SIGTERM.

    Raises:
        TypeError: A value is no number.
        ValueError: A number is not above 0.
    """

    connections: int = 1000
    requests_per_client: int = 2
    header_seconds: float = 10.0
    idle_seconds: float = 60.0
    grace_seconds: float = 20.0
    least_bytes_per_second: float = 10_000.0
    memory: int = 2**28
    threads: int = 8
    stop_seconds: float = 10.0

    def __post_init__(self):
        for field in fields(self):
            name, value = f"Limits({field.name})", getattr(self, field.name)
            if isinstance(field.default, int):
                value = whole_number(value, name, least=1)
            else:
                value = real_number(value, name, "a number above 0")
                if not value > 0:
                    raise ValueError(f"{name} is {value}: give a number above 0")
            object.__setattr__(self, field.name, value)

    def seconds_for(self, length: int) -> float:
        """Return how long so many bytes may take on the network, in seconds."""
        return self.grace_seconds + length / self.least_bytes_per_second

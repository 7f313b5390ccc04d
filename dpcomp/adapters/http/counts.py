"""Counts: connections and what the transport refused, and the text in which a server shows them."""

from collections import Counter
from typing import Literal, get_args

from dpcomp.federated.server import Server

Refused = Literal[
    "sender",  # no known token or certificate
    "length",  # longer than any message of the layout
    "slow",  # a header, message or reply that took too long
    "cut",  # the connection ended before the message
    "malformed",  # not HTTP
    "path",  # no such path or method
    "busy",  # too many requests of this client, or too many bytes held
    "connections",  # closed for a newer one, or not opened
    "tls",  # no TLS, or a certificate that is not trusted
]
# What clients cause by their messages. Of a trusted server's clients, those that were drawn send any, and no others do.
OF_CLIENTS: tuple[Refused, ...] = ("length", "slow", "cut", "busy", "connections")


class Counts:
    """Counts connections and what the transport refused; messages and their bytes are counted by the server.

    Attributes:
        connections: The number of open connections.
        refused: The number of requests and connections that were refused, by reason.
    """

    def __init__(self):
        self.connections = 0
        self.refused: Counter[Refused] = Counter()

    def text(self, server: Server) -> str:
        """Return the counts in the text format of Prometheus.

        **Privacy:** where the server is trusted, lengths of messages and what was refused of them depend on clean
        values; and a client that was drawn keeps its connection in other use than one that asks in vain. So all that
        clients cause is left out.
        """
        version = server.memory.shared.version
        reasons = [each for each in get_args(Refused) if not (server.sees_clean and each in OF_CLIENTS)]
        lines = [
            *_family("dpcomp_version", "gauge", "Rounds closed so far.", {"": version}),
            *_family(
                "dpcomp_http_refused_total",
                "counter",
                "Requests and connections that the transport refused.",
                {f'{{reason="{reason}"}}': self.refused[reason] for reason in reasons},
            ),
        ]
        if not server.sees_clean:
            traffic = server.traffic
            refusals = {f'{{reason="{reason}"}}': count for reason, count in sorted(server.refusals.items())}
            lines += [
                *_family("dpcomp_http_connections", "gauge", "Open connections.", {"": self.connections}),
                *_family("dpcomp_updates", "gauge", "Updates accepted in this round.", {"": len(server.accepted)}),
                *_family(
                    "dpcomp_withdrawn", "gauge", "Clients that take no further part.", {"": len(server.withdrawn)}
                ),
                *_family("dpcomp_messages_total", "counter", "Messages received.", {"": traffic.messages}),
                *_family("dpcomp_received_bytes_total", "counter", "Their bytes.", {"": traffic.received_bytes}),
                *_family("dpcomp_sent_bytes_total", "counter", "Bytes of replies.", {"": traffic.sent_bytes}),
                *_family("dpcomp_refusals_total", "counter", "Messages that the server refused.", refusals),
            ]
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, meaning: str, values: dict[str, int]) -> list[str]:
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *(f"{name}{each} {values[each]}" for each in values)]

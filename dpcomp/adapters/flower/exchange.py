"""Exchange: what is sent to nodes and comes back, until all that were asked have answered or the time is over."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from dpcomp.adapters.flower.node_numbers import NodeNumbers
from dpcomp.adapters.flower.records import FAILED, WITHDRAWALS, FromNode, Model, ToNode
from dpcomp.core.errors import CorruptPayload
from dpcomp.federated.messages import HELLO
from dpcomp.federated.server import Server

LOG = logging.getLogger("flwr.dpcomp")  # whose records Flower prints
MOST_MESSAGES = 4  # to a node in a round: with the first model, with answers to a late and a present question, one more
LATEST_SHARE = 0.25  # of a round: in its last quarter no message is sent
# Errors of an app; of Flower's own, those of an app that can't be loaded, that raised, and of a bundle that is refused.
# The others say that a node or a message is not there.
FAILURES = (FAILED, 1, 2, 6, 7)
TOGETHER = 16  # messages that are made at once, each of which may hold a snapshot


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A message to a node that has no reply yet.

    Args:
        client: The node's number.
        node: Flower's id of the node.
        pushed: When it was sent, on this process's monotonic clock.
        expires: When Flower drops it.
    """

    client: int
    node: int
    pushed: float
    expires: float


class Exchange:
    """Carries messages between the nodes of a Flower grid and the server's end of the protocol.

    What is kept in memory is one question for each enrolled client, and one entry for each message without a reply.

    **Privacy:** under a trusted server, whom it asks and what they answer tell who was drawn. So no log says it, and
    the attributes are for the operator alone.

    Args:
        grid: Flower's grid.
        server: The server's end of the protocol.
        numbers: Which client each node is.
        first_model: The first model, for nodes that have none.
        poll_seconds: How long to wait before the grid is asked again.

    Attributes:
        unknown: The number of nodes that got no number, since there are as many as the terms say.
        dropped: Why replies were dropped, counted by reason.
        declined: Why a client does not take part, in its own words, by number; it is not asked again in this run.
        failed: The error of each client whose app failed at the last message, by number.
    """

    def __init__(self, grid: Grid, server: Server, numbers: NodeNumbers, first_model: Model, poll_seconds: float):
        self._grid, self._server, self._numbers = grid, server, numbers
        self._first_model, self._poll_seconds = first_model, poll_seconds
        self._questions: dict[int, bytes] = {}
        self._need_first_model: set[int] = set()
        self._sent: dict[str, Sent] = {}
        self.unknown, self.dropped = 0, Counter[str]()
        self.declined, self.failed = dict[int, str](), dict[int, str]()

    def ask(
        self,
        kind: str,
        expected: Collection[int],
        config: ConfigRecord,
        *,
        seconds: float,
        late_seconds: float,
        answered: Callable[[int, FromNode], bool],
        enough: Callable[[], bool],
    ) -> set[int]:
        """Ask clients as their nodes come, and handle replies, until all are settled or the time is over.

        A client is settled once its reply holds what was asked for, it will not take part, its app failed, or it has
        nothing to send. One whose node is not connected is not waited for, if there is enough without it; one that was
        asked is, since Flower keeps its message: a node that comes back would train for a round that is over.

        A node handles one message at a time. So where its reply takes long, no second message waits behind the first,
        unless that must be lost; and none is sent so late that its reply could hardly come in time.

        Args:
            kind: Flower's message type: "train" or "evaluate".
            expected: The numbers of the clients to ask.
            config: What the strategy's user sends.
            seconds: How long to wait for replies.
            late_seconds: How long after that a reply may still come.
            answered: Takes a client's reply; returns whether it holds what was asked for.
            enough: Returns whether clients whose nodes are away need not be waited for.

        Returns:
            The numbers of the clients that were settled.
        """
        until, settled, asked = time.monotonic() + seconds, set[int](), dict[int, int]()
        while True:
            connected = self._connected(expected)
            settled |= self._pull(expected, connected, answered)
            left, busy = until - time.monotonic(), self._busy(seconds)
            settled |= {client for client, count in asked.items() if count >= MOST_MESSAGES and client not in busy}
            waiting = (asked.keys() | connected.keys()) - settled
            if settled.issuperset(expected) or ((asked or settled) and not waiting and enough()) or left <= 0:
                return settled
            due = connected.keys() - settled - busy if left > LATEST_SHARE * seconds else set[int]()
            for client in due:
                asked[client] = asked.get(client, 0) + 1
            self._push(kind, {client: connected[client] for client in sorted(due)}, config, left, late_seconds)
            time.sleep(min(self._poll_seconds, left))

    def _busy(self, seconds: float) -> set[int]:
        """Return the clients whose nodes were sent a message in the last seconds that has no reply yet."""
        since = time.monotonic() - seconds
        return {sent.client for sent in self._sent.values() if sent.pushed > since}

    def _connected(self, expected: Collection[int]) -> dict[int, int]:
        """Return Flower's ids of the expected clients whose nodes are connected, by number; new nodes get one."""
        found, unknown = dict[int, int](), 0
        for node in self._grid.get_node_ids():
            client = self._numbers.enrol(node)
            unknown += client is None
            if client is not None and client in expected:
                found[client] = node
        if unknown > self.unknown:
            LOG.warning("%d nodes got no number, since the terms are for fewer clients", unknown)
        self.unknown = unknown
        return found

    def _push(self, kind: str, nodes: Mapping[int, int], config: ConfigRecord, left: float, late: float) -> None:
        version, rest = self._server.memory.shared.version, iter(nodes.items())
        while some := list(islice(rest, TOGETHER)):
            messages = [
                Message(self._content(client, config, left), node, kind, ttl=left + late, group_id=str(version + 1))
                for client, node in some
            ]
            now, pushed = time.monotonic(), set(self._grid.push_messages(messages))
            for (client, node), message in zip(some, messages, strict=True):
                if message.metadata.message_id in pushed:
                    sent = Sent(client=client, node=node, pushed=now, expires=now + left + late)
                    self._sent[message.metadata.message_id] = sent
                else:
                    self._warn("Flower did not take the message to client %d", client)

    def _content(self, client: int, config: ConfigRecord, left: float) -> RecordDict:
        content, question = RecordDict({"config": config}), self._questions.get(client)
        answer = None if question is None else self._server.handle(question, client)
        new = client in self._need_first_model or (answer is None and not self._server.memory.link(client).count)
        first_model = self._first_model if new else None
        ToNode(client=client, seconds=left, answer=answer, first_model=first_model).write(content)
        return content

    def _pull(
        self, expected: Collection[int], connected: Collection[int], answered: Callable[[int, FromNode], bool]
    ) -> set[int]:
        """Handle the replies that have come; return the clients that they settle."""
        now, settled = time.monotonic(), set[int]()
        self._sent = {name: sent for name, sent in self._sent.items() if sent.expires > now}
        for message in self._grid.pull_messages(list(self._sent)) if self._sent else ():
            sent = self._sent.pop(message.metadata.reply_to_message_id, None)
            # Flower itself reports that a node is not there; all else must come from the node that was asked.
            by_flower = message.has_error() and message.error.code not in (*WITHDRAWALS, FAILED)
            if sent is None or (message.metadata.src_node_id != sent.node and not by_flower):
                self.dropped["node"] += 1
                continue
            client = sent.client
            if message.has_error():
                self._take_error(client, message.error)
                # A message that was lost may be of an earlier time, and its node be back.
                if client not in connected or not by_flower or message.error.code in FAILURES:
                    settled.add(client)
                continue
            try:
                reply = FromNode.read(message.content)
            except CorruptPayload as error:
                self.dropped["corrupt"] += 1
                self._warn("client %d: %s", client, error)
                settled.add(client)
                continue
            self.failed.pop(client, None)
            self._take(client, reply)
            if client in expected and answered(client, reply):
                settled.add(client)
        return settled

    def _take_error(self, client: int, error: Error) -> None:
        reason = error.reason or f"error {error.code}"
        if error.code in WITHDRAWALS:
            self.declined[client] = reason
            self._server.withdraw(client, WITHDRAWALS[error.code])
            self._warn("client %d will not take part: %s", client, reason)
            return
        self.dropped[f"error {error.code}"] += 1
        if error.code in FAILURES:
            self.failed[client] = reason
        self._warn("client %d sent no update (error %d): %s", client, error.code, reason)

    def _warn(self, words: str, *values: object) -> None:
        """Log what is said of a client; not under a trusted server, which asks only those that it has drawn."""
        if not self._server.sees_clean:
            LOG.warning(words, *values)

    def _take(self, client: int, reply: FromNode) -> None:
        """Give a client's update to the server, and keep its question."""
        for message in reply.messages:
            if HELLO.begins(message):
                if len(message) == HELLO.header_bytes:
                    self._questions[client] = message
            else:
                self._server.handle(message, client)
        if reply.messages:
            self._need_first_model.discard(client)
        else:
            self._need_first_model.add(client)


def mean_of(records: Iterable[MetricRecord]) -> MetricRecord | None:
    """Return the plain mean of each metric over clients, weighed by no count of theirs; None without any."""
    values: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.items():
            if isinstance(value, int | float):
                values.setdefault(name, []).append(float(value))
    return MetricRecord({name: sum(each) / len(each) for name, each in values.items()}) if values else None

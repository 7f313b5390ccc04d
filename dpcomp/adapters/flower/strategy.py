"""PrivateStrategy: Flower's strategy whose rounds are those of `dpcomp.federated.Server`."""

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from dpcomp.adapters.flower.exchange import Exchange, mean_of
from dpcomp.adapters.flower.node_numbers import NodeNumbers
from dpcomp.adapters.flower.records import FromNode, arrays_of, model_of
from dpcomp.core.checks import real_number
from dpcomp.core.errors import DpcompError, NotPrivate
from dpcomp.core.randomness import SecretSeed
from dpcomp.core.storage import make_folder
from dpcomp.federated.server import Server
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.terms import FederationTerms

LOG = logging.getLogger("flwr.dpcomp")  # whose records Flower prints


class PrivateStrategy(Strategy):
    """A strategy of Flower that plays the rounds of a federation's terms, with nodes that run a `PrivateClientApp`.

    In the place of `FedAvg(...)`. Updates and broadcasts travel as the messages of `dpcomp.federated`: a node that has
    followed all rounds gets the last broadcast, one that was away the missed ones or a snapshot. A round is closed with
    `terms.least_updates` or more: once all clients whose nodes are connected have sent or will not take part, or after
    `terms.round_seconds`. That of a trusted server is closed by time alone.

    A killed ServerApp goes on from the folder when the app is run again. A node keeps its number as long as it keeps
    its node id, for which Flower needs the authentication of nodes.

    **Privacy:** the SuperLink must authenticate nodes: whoever can send under several ids is several clients. Where the
    pipeline of a trusted server samples clients, they are drawn in secret, and only those who were drawn are asked. No
    time of its rounds and no line of its log depends on the draw or on what has come.

    Args:
        terms: The terms of the federation.
        folder: Where the server's state is kept, and the numbers of the nodes; it serves several federations.
        secret: Where the noise and the cohorts of a trusted server come from; None if the server is not trusted.
        ledger: The ledger that a trusted server's releases are charged to; None if the server is not trusted.
        fraction_evaluate: The probability with which a client is asked to evaluate after a round; under a trusted
            server this takes `terms.round_seconds` more.
        poll_seconds: How long to wait before Flower is asked for replies again, in seconds.

    Attributes:
        server: The server's end of the protocol, once `start` was called.
        exchange: What was dropped, and who does not take part, once `start` was called.

    Raises:
        ValueError: A number lies outside its range.

    Examples:
        >>> import numpy as np
        >>> import dpcomp as dp
        >>> from dpcomp.adapters.flower import PrivateStrategy
        >>> from dpcomp.terms import FederationTerms
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1))
        >>> terms = FederationTerms.agree(pipeline, 10, np.zeros(10, np.float32), rounds=20, steps=5, clients=3)
        >>> strategy = PrivateStrategy(terms, folder="server")  # then strategy.start(grid=grid, initial_arrays=arrays)
    """

    def __init__(
        self,
        terms: FederationTerms,
        *,
        folder: str | os.PathLike[str],
        secret: SecretSeed | None = None,
        ledger: Ledger | None = None,
        fraction_evaluate: float = 0.0,
        poll_seconds: float = 0.5,
    ):
        if not 0 <= real_number(fraction_evaluate, "fraction_evaluate", "a number from 0 to 1") <= 1:
            raise ValueError(f"fraction_evaluate={fraction_evaluate}: give a probability, from 0 to 1")
        if not real_number(poll_seconds, "poll_seconds", "a number above 0") > 0:
            raise ValueError(f"poll_seconds={poll_seconds}: give a time in seconds, above 0")
        self._trusted = terms.pipeline.trust_model.server_sees_clean
        self.terms, self._folder, self._secret, self._ledger = terms, Path(folder), secret, ledger
        self._fraction_evaluate, self._poll_seconds = fraction_evaluate, poll_seconds
        self.server: Server | None = None
        self.exchange: Exchange | None = None

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int | None = None,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Play the rounds that the folder does not hold yet, and return the last model.

        Args:
            grid: Flower's grid.
            initial_arrays: The first model of the terms: its trainable parameters, and nothing else.
            num_rounds: The rounds of the federation, those of earlier runs included; None for those of the terms.
            timeout: How long a round stays open where the terms don't say it, in seconds.
            train_config: What the train functions find in `msg.content["config"]`.
            evaluate_config: The same for the evaluate functions.
            evaluate_fn: Evaluates the model on public data at the server, before the first round and after each.

        Returns:
            The last model; and the means of the metrics that nodes declared, which no guarantee covers.

        Raises:
            VersionMismatch: `initial_arrays` are not the first model of the terms.
            BudgetExhausted: A trusted server's budget allows no further round.
            DpcompError: As `Server` does.
            ValueError: `num_rounds` is above the rounds of the terms.
        """
        num_rounds = self.terms.rounds if num_rounds is None else num_rounds
        if num_rounds > self.terms.rounds:
            raise ValueError(f"num_rounds={num_rounds}: the terms are for {self.terms.rounds} rounds; leave it out")
        layout, first_model = model_of(initial_arrays)
        result, place = Result(), self._folder / self.terms.run_id.hex()
        make_folder(self._folder)
        with ExitStack() as at_the_end:
            numbers = NodeNumbers(self._folder / "nodes.db", most=self.terms.clients)
            at_the_end.callback(numbers.close)
            server = self.terms.server(layout, first_model, folder=place, secret=self._secret, ledger=self._ledger)
            at_the_end.callback(server.close)
            self.server = server
            self.exchange = Exchange(grid, server, numbers, (layout, first_model), self._poll_seconds)
            self.summary()
            while True:
                number, result.arrays = server.memory.shared.version, arrays_of(layout, server.model)
                if evaluate_fn is not None and (measured := evaluate_fn(number, result.arrays)) is not None:
                    result.evaluate_metrics_serverapp[number] = measured
                if number >= num_rounds or not self._train(server, self.exchange, result, timeout, train_config):
                    return result
                self._evaluate(server, self.exchange, result, timeout, evaluate_config)

    def _train(
        self, server: Server, exchange: Exchange, result: Result, timeout: float, config: ConfigRecord | None
    ) -> bool:
        """Play a round; return whether there was one: not if no client is left that takes part."""
        terms, cohort = self.terms, server.cohort()
        seconds = terms.round_seconds or timeout
        until = time.monotonic() + seconds
        number, metrics = server.memory.shared.version, dict[int, MetricRecord]()

        def has_sent(client: int) -> bool:
            last = server.memory.link(client).last
            return last is not None and last.round == number

        def answered(client: int, reply: FromNode) -> bool:
            if sent := has_sent(client):
                metrics[client] = reply.metrics
            return sent or client in server.given_up

        def enough() -> bool:
            if self._trusted:
                return False
            # A round that nodes have given up is left to the others: they were charged for it, and come back after it.
            return server.present >= terms.least_updates or (server.next_round_only > 0 and not server.awaited)

        def is_missing(client: int) -> bool:
            return not has_sent(client) and client not in exchange.declined and client not in server.given_up

        while missing := [client for client in cohort if is_missing(client)]:
            settled = exchange.ask(
                "train",
                missing,
                config or ConfigRecord(),
                seconds=seconds,
                late_seconds=seconds * (1 + terms.late_policy.max_age),  # the round may stay open
                answered=answered,
                enough=enough,
            )
            if self._trusted or enough():
                break
            if settled.issuperset(missing) and exchange.failed.keys() | exchange.declined.keys() >= settled:
                self._refuse_failures(server, exchange)
            LOG.warning("round %d stays open: it has %d updates", number + 1, len(server.accepted))
            time.sleep(self._poll_seconds)
        self._wait_for_time(until)
        if len(exchange.declined) == terms.clients or not (self._trusted or enough()):
            LOG.error("too few clients take part any more, so the rounds end after %d", number)
            return False
        accepted = len(server.accepted)
        payload_bytes = sum(each.payload_bytes for each in server.accepted)
        broadcast = server.close_round()
        if (mean := mean_of(metrics.values())) is not None:
            result.train_metrics_clientapp[number + 1] = mean
        counted = "" if self._trusted else f"{accepted} updates of {payload_bytes} bytes together; "
        LOG.info("round %d: %sa broadcast of %d bytes", number + 1, counted, len(broadcast))
        return True

    def _wait_for_time(self, until: float) -> None:
        """Wait until a time of the monotonic clock under a trusted server, where what has come must not end a wait."""
        if self._trusted:
            time.sleep(max(0.0, until - time.monotonic()))

    def _refuse_failures(self, server: Server, exchange: Exchange) -> None:
        """Refuse to wait for clients whose apps have failed. Raises DpcompError if there are any."""
        if exchange.failed:
            raise DpcompError(
                f"round {server.memory.shared.version + 1} has {len(server.accepted)} updates of the "
                f"{self.terms.least_updates} that it needs, and no more will come. Will not take part: "
                f"{exchange.declined}; failed: {exchange.failed}. Repair the nodes, by their own logs, and run the app "
                "again: it goes on"
            )

    def _evaluate(
        self, server: Server, exchange: Exchange, result: Result, timeout: float, config: ConfigRecord | None
    ) -> None:
        """Ask some clients to evaluate the model; the draw is apart from that of a cohort."""
        draw = random.SystemRandom()
        asked = [client for client in range(self.terms.clients) if draw.random() < self._fraction_evaluate]
        metrics, replies = dict[int, MetricRecord](), Counter[int]()

        def answered(client: int, reply: FromNode) -> bool:
            replies[client] += 1
            if len(reply.metrics):
                metrics[client] = reply.metrics
            return len(reply.metrics) > 0 or replies[client] > 1  # a node that is synced has nothing that it may send

        if asked:
            seconds = self.terms.round_seconds or timeout
            until = time.monotonic() + seconds
            exchange.ask(
                "evaluate",
                asked,
                config or ConfigRecord(),
                seconds=seconds,
                late_seconds=0.0,
                answered=answered,
                enough=lambda: True,
            )
            self._wait_for_time(until)  # a node that was drawn answers later than one that was not
        if (mean := mean_of(metrics.values())) is not None:
            result.evaluate_metrics_clientapp[server.memory.shared.version] = mean

    def summary(self) -> None:
        """Log the terms and where the federation stands."""
        version = 0 if self.server is None else self.server.memory.shared.version
        LOG.info(
            "PrivateStrategy: round %d of %d, %d clients, run id %s",
            *(version, self.terms.rounds, self.terms.clients, self.terms.run_id.hex()),
        )
        LOG.info("%r", self.terms.pipeline)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Refuse to be called by another strategy. Raises NotPrivate."""
        self._refuse_wrapper()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Refuse to be called by another strategy. Raises NotPrivate."""
        self._refuse_wrapper()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Refuse to be called by another strategy. Raises NotPrivate."""
        self._refuse_wrapper()

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Refuse to be called by another strategy. Raises NotPrivate."""
        self._refuse_wrapper()

    def _refuse_wrapper(self, *_: Any) -> NoReturn:
        raise NotPrivate(
            "PrivateStrategy plays its rounds in start(), and another strategy has called it, such as one of Flower's "
            "DifferentialPrivacy wrappers: they clip and noise dense models, keep budgets in memory, and would alter a "
            "sum that is released and accounted for already. Start PrivateStrategy itself"
        )

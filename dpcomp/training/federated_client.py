"""FederatedClient: a training script's own loop, over the rounds of a federation."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from dpcomp.core.address import Address
from dpcomp.core.checks import check_type, whole_number
from dpcomp.core.errors import BudgetExhausted, CorruptPayload, DpcompError, TermsRefused
from dpcomp.core.randomness import PublicSeed
from dpcomp.federated.absence import AbsencePolicy, Keep
from dpcomp.federated.messages import WithdrawalReason
from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import ReplyReceived, TimedOut, Trained
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.privacy.ledger.permit import Permit
from dpcomp.terms import ClientPolicy, FederationTerms
from dpcomp.training.pytorch.private_optimizer import PrivateOptimizer, refuse_other_training
from dpcomp.training.pytorch.rows.parameters import read, write

Transport = Callable[[bytes], bytes | None]

LOG = logging.getLogger("dpcomp")
WITHDRAWALS = 3  # attempts to tell a server that a client takes no part any more


class FederatedClient:
    """Takes part in the rounds of a federation with the training loop of a script.

    `for number in client.rounds(...)` asks the server for its version, charges the ledger, sets the model to the
    server's and opens the round; the body trains; then the update is saved, encoded and sent. The process may be killed
    at any moment: the same script with the same folder goes on, sends again what was not decided, or forfeits a round
    whose noise may have been drawn.

    **Privacy:** a round is charged before its noise is drawn, and is never charged or released twice. The loop ends
    where the budget does not allow the next round, or the ledger can't be charged any more, and the server is told
    that it need not wait for this client.

    Args:
        optimizer: What `make_private` returned; its model has the first weights, which are the same at all ends.
        ledger: The ledger that releases are charged to. The script opens and closes it.
        send: Carries a message to the server, and returns its reply; None where none came. An `OSError`, such as a lost
            connection, counts as no reply. Where it has a method `asked() -> bool`, as `HttpTransport` has, a round is
            charged only if that returns True: a server that draws a cohort refuses the updates of other clients.
        client: The number of this client, as the server knows its sender.
        seed: The public seed of the federation; None where its terms are given.
        terms: The terms of the federation, which say its rounds and steps too; None where a seed is given.
        policy: What this client allows of the terms, held against them now and against the ledger in each round; None
            for any.
        folder: Where the client's state is saved; the client continues from it. None keeps it in memory.
        absence_policy: What the client keeps of its residual after rounds that it missed, as for `Participant`.
        poll_seconds: How long to wait before the server is asked again, in seconds.

    Attributes:
        ledger: The ledger.
        participant: The client's state, and what handles messages.
        budget_refusal: Why the budget ended the rounds; None where it did not.

    Raises:
        DpcompError: As `Participant` does, and where the policy does not allow the terms also as `Participant.handle`
            does, since the server is asked which rounds are left.
        TermsRefused: The policy does not allow the terms, or the ledger holds charges of another client's number.
        TypeError: `optimizer` is none of `make_private`, or not one of `seed` and `terms` is given.
        ValueError: `poll_seconds` is negative, or the terms are of another pipeline or learning rate.
        VersionMismatch: The model has other layers or first weights than the terms say; or the policy does not allow
            the terms, and the server that was asked is of another federation.

    Examples:
        >>> import torch, dpcomp as dp
        >>> from dpcomp.federated import Server
        >>> from dpcomp.training.pytorch import FederatedClient, make_private
        >>> from dpcomp.training.pytorch.rows.parameters import read
        >>> features = torch.randn(60, 4)
        >>> data = torch.utils.data.TensorDataset(features, (features[:, 0] > 0).long())
        >>> network, loss = torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss()
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.5))
        >>> model, optimizer, loader = make_private(
        ...     network, torch.optim.SGD(network.parameters(), lr=0.1), data, pipeline,
        ...     loss=loss, expected_batch_size=30,
        ... )
        >>> memory = pipeline.init_server(optimizer.layout, seed=dp.PublicSeed(0))
        >>> server = Server(pipeline.channel, memory, read(model))
        >>> def send(message):
        ...     reply = server.handle(message, sender=0)
        ...     if len(server.accepted) == 1:
        ...         server.close_round()  # of a federation of one client
        ...     return reply
        >>> client = FederatedClient(optimizer, dp.Ledger(), send, client=0, seed=dp.PublicSeed(0), folder=None)
        >>> for number in client.rounds(2, steps=len(loader)):
        ...     for inputs, targets in loader:
        ...         loss(model(inputs), targets).backward()
        ...         optimizer.step()
        ...     print("round", number)
        round 0
        round 1
        >>> bool((read(model) == server.model).all())
        True
    """

    def __init__(
        self,
        optimizer: PrivateOptimizer,
        ledger: Ledger,
        send: Transport,
        *,
        client: int,
        seed: PublicSeed | None = None,
        terms: FederationTerms | None = None,
        policy: ClientPolicy | None = None,
        folder: str | os.PathLike[str] | None,
        absence_policy: AbsencePolicy = Keep(),
        poll_seconds: float = 1.0,
    ):
        check_type(
            optimizer,
            PrivateOptimizer,
            f"FederatedClient(optimizer) is a {type(optimizer).__name__}: give that of make_private",
        )
        if not poll_seconds >= 0:
            raise ValueError(f"FederatedClient(poll_seconds={poll_seconds}): give a time in seconds, 0 or more")
        first_model = read(optimizer.model)
        if terms is None:
            if seed is None or policy is not None:
                raise TypeError(
                    f"FederatedClient(seed={seed}, terms=None, policy={policy}): give the terms of the federation, "
                    "against which a policy is held; or the seed of one without terms"
                )
            memory = optimizer.pipeline.init_client(optimizer.layout, seed=seed, client=client)
        else:
            if seed is not None:
                raise TypeError(f"FederatedClient(seed={seed}, terms=...): the terms say the seed; leave it out")
            refuse_other_training(terms, optimizer)
            memory = terms.init_client(optimizer.layout, first_model, client)
        self.ledger, self.terms = ledger, terms
        self.participant = Participant(
            optimizer.pipeline.channel, memory, first_model, ledger, folder, absence_policy=absence_policy
        )
        self.budget_refusal: BudgetExhausted | None = None
        self._optimizer, self._send, self._poll_seconds = optimizer, send, poll_seconds
        self._policy = policy
        if terms is not None and policy is not None:
            self._hold_to(policy, terms)

    def _hold_to(self, policy: ClientPolicy, terms: FederationTerms) -> None:
        """Refuse terms that the policy does not allow, whatever rounds the server has closed since it was asked last.

        Raises:
            TermsRefused: They are refused.
            DpcompError: As `Participant.handle` does with the server's reply, such as that of another federation.
        """
        memory = self.participant.state.memory
        try:
            policy.check(terms, self.ledger, memory.client, memory.shared.version)
        except TermsRefused:
            if not self._may_fit(policy, terms):
                self._withdraw("policy")
                raise
            with suppress(OSError):  # why the terms are refused matters more than a state that was not saved
                self._ask()  # the rounds that were closed meanwhile cost nothing
            state = self.participant.state
            try:
                policy.check(terms, self.ledger, memory.client, state.memory.shared.version)
            except TermsRefused as refusal:
                if state.question is not None:
                    raise TermsRefused(
                        f"{refusal}. But the server gave no reply, and rounds that it has closed since version "
                        f"{memory.shared.version} cost nothing: try again once it replies. It was not told that this "
                        "client withdraws"
                    ) from refusal
                self._withdraw("policy")
                raise

    def _may_fit(self, policy: ClientPolicy, terms: FederationTerms) -> bool:
        """Return whether a policy may allow terms if the server has closed enough of the rounds."""
        try:
            policy.check(terms, self.ledger, self.participant.state.memory.client, terms.rounds)
        except TermsRefused:
            return False
        return True

    def rounds(self, until: int | None = None, *, steps: int | None = None) -> Iterator[int]:
        """Yield the number of each round in which the script trains, and send its update afterwards.

        An update is sent when the loop asks for the next round: end the loop by `until`, since a `break` gives up the
        update of a round that was charged. At the end the model is the server's.

        Args:
            until: The number of rounds of the federation, those that this client missed included; None for those of
                the terms, or where there are none for no end but that of the budget.
            steps: The steps that a round is charged for: those of a pass over the loader; None for those of the terms.

        Yields:
            The number of the round, from 0; the model is the server's, and the optimiser takes `steps` steps.

        Raises:
            VersionMismatch: The server is of another federation.
            BudgetExhausted: The body took no step.
            TermsRefused: The ledger was marked as incomplete, or charged for another number, unit or trust, since the
                policy was held against it. The server is told before.
            NotPrivate: As `optimizer.refuse_unready`, before the round is charged, and `optimizer.update` do.
            DpcompError: As `Participant.handle` and, without a policy, `Ledger.charge` do. The server is told before
                where the ledger can't be charged any more.
            TypeError: `steps` is None without terms.
            ValueError: `until` or `steps` is no such number, or another one than the terms say; or without a policy as
                `Ledger.charge` does, and the server is told before.
        """
        if self.terms is not None:
            until, steps = self._agreed(until, steps)
        if steps is None:
            raise TypeError("rounds(steps=None): without terms, say how many steps a round is charged for")
        steps = whole_number(steps, "rounds(steps)", least=1)
        if until is not None:
            until = whole_number(until, "rounds(until)", least=0)
        return self._rounds(until, steps)

    def _agreed(self, until: int | None, steps: int | None) -> tuple[int, int]:
        """Return the rounds and steps of the terms, beyond which none are allowed."""
        assert self.terms is not None
        if steps not in (None, self.terms.steps):
            raise ValueError(f"rounds(steps={steps}): the terms say {self.terms.steps} steps a round; leave steps out")
        until = self.terms.rounds if until is None else until
        if until > self.terms.rounds:
            raise ValueError(f"rounds(until={until}): the terms say {self.terms.rounds} rounds; leave until out")
        return until, self.terms.steps

    def _rounds(self, until: int | None, steps: int) -> Iterator[int]:
        optimizer, participant = self._optimizer, self.participant
        self.budget_refusal, forfeited = None, None
        self._ask()
        while True:
            memory = participant.state.memory
            if until is not None and memory.shared.version >= until:
                break
            if participant.may_train and self._is_asked():
                memory = participant.state.memory
                write(optimizer.model, participant.state.model)
                optimizer.refuse_unready(memory)  # before the charge, which no later error takes back
                try:
                    permit = self._charged(memory.address, steps)
                except BudgetExhausted as refusal:
                    self.budget_refusal = refusal
                    LOG.warning("the rounds end: %s", refusal)
                    self._withdraw("budget")
                    break
                optimizer.begin(memory, permit)
                yield memory.address.round
                self._deliver(participant.handle(Trained(optimizer.update())))
                self._ask()
            else:
                if participant.gives_round_up:
                    if participant.state.memory.address != forfeited:
                        forfeited = participant.state.memory.address
                        LOG.warning(
                            "round %d was charged before, and its noise may have been drawn: it is given up, and the "
                            "client waits for the server's next round",
                            forfeited.round,
                        )
                    self._withdraw("round")
                time.sleep(self._poll_seconds)
                self._ask()
        write(optimizer.model, participant.state.model)

    def _charged(self, address: Address, steps: int) -> Permit:
        """Charge the ledger for a round, and return the permit; where it can't be charged, say so to the server.

        Raises:
            BudgetExhausted: A budget does not allow it; the server is not told yet.
            TermsRefused, DpcompError, ValueError: As `rounds` does.
        """
        cost = self._optimizer.pipeline.cost
        try:
            if self._policy is not None:
                return self._policy.charge_round(self.ledger, cost, address, steps)
            return self.ledger.charge(cost, address, steps=steps)
        except BudgetExhausted:
            raise
        except TermsRefused:
            self._withdraw("policy")
            raise
        except (DpcompError, ValueError):  # such as an incomplete ledger, or charges for another unit
            self._withdraw("budget")
            raise

    def _is_asked(self) -> bool:
        """Return whether the server wants an update of this client in its present round, if the transport can ask."""
        asked: Callable[[], bool] | None = getattr(self._send, "asked", None)
        if asked is None:
            return True
        before = self.participant.state.memory.address
        try:
            if not asked():
                return False
        except OSError as error:
            LOG.warning("no reply of the server (%s); it is asked again in %g s", error, self._poll_seconds)
            return False
        self._ask()  # the answer may be of a round that has begun since this client was told the version
        return self.participant.may_train and self.participant.state.memory.address == before

    def _withdraw(self, reason: WithdrawalReason) -> None:
        """Tell the server that it need not wait for this client, if it can be reached.

        What ends the client's part is said again, WITHDRAWALS times in all, where no reply comes; that it gives a round
        up is said again as long as the round lasts.
        """
        why = "no reply"
        for attempt in range(1 if reason == "round" else WITHDRAWALS):
            if attempt:
                time.sleep(self._poll_seconds)
            try:
                if self._send(self.participant.withdrawal(reason)) is not None:
                    return
            except OSError as error:
                why = str(error)
            except DpcompError as error:  # why this client withdraws matters more
                why = str(error)
                break
        LOG.warning("the server was not told that this client takes no part (%s)", why)

    def _ask(self) -> None:
        """Ask the server for its version, or send again what it has not decided."""
        self._deliver(self.participant.handle(TimedOut()))

    def _deliver(self, messages: list[bytes]) -> None:
        """Carry messages to the server and its replies back, until there are no more."""
        waiting = list(messages)
        while waiting:
            try:
                reply = self._send(waiting.pop(0))
            except OSError as error:
                LOG.warning("no reply of the server (%s); it is asked again in %g s", error, self._poll_seconds)
                continue
            if reply is None:
                continue
            try:
                waiting += self.participant.handle(ReplyReceived(reply))
            except CorruptPayload as error:
                LOG.warning("a damaged reply (%s); the server is asked again in %g s", error, self._poll_seconds)
            except DpcompError:
                if self.ledger.incomplete:  # as where another process takes part as this client
                    self._withdraw("budget")
                raise

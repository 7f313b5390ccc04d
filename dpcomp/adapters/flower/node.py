"""Node: one client of a federation during one message of Flower, from and to the files of its folder."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from torch import nn

from dpcomp.adapters.flower.node_folders import LEDGER, POLICY
from dpcomp.adapters.flower.records import Model
from dpcomp.core.address import Address
from dpcomp.core.errors import BudgetExhausted, CorruptPayload, DpcompError, NotPrivate
from dpcomp.core.randomness import SecretSeed
from dpcomp.federated.absence import AbsencePolicy
from dpcomp.federated.participant import Participant
from dpcomp.federated.phases import Phase, ReplyReceived, Restarted, TimedOut, Trained
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.privacy.ledger.permit import Permit
from dpcomp.terms import ClientPolicy, FederationTerms
from dpcomp.training.pytorch.private_optimizer import PrivateOptimizer, refuse_other_training
from dpcomp.training.pytorch.rows.parameters import layout_of, read, write
from dpcomp.wire.model_file import read_model, write_model
from dpcomp.wire.update import Update

LOG = logging.getLogger("flwr.dpcomp")  # whose records Flower prints


class OutOfBudget(BudgetExhausted):
    """The node's ledger does not allow the round, and so none after it; nothing was charged."""


class Node:
    """The client of a node while Flower calls the app; every message is another process, so all state is in files.

    The question with which a call ends stays open, and the server answers it with its next message: so a round takes
    one message to the node and one reply.

    Args:
        terms: The terms of the federation.
        participant: The client's state.
        ledger: The node's ledger.
        policy: What the node allows.
        nonprivate_metrics: The names of metrics that leave the node without noise, for the ledger to tell.
    """

    def __init__(
        self,
        terms: FederationTerms,
        participant: Participant,
        ledger: Ledger,
        policy: ClientPolicy,
        nonprivate_metrics: tuple[str, ...],
    ):
        self._terms, self._ledger, self._nonprivate_metrics = terms, ledger, nonprivate_metrics
        self._participant, self._policy = participant, policy
        self._trained: PrivateOptimizer | nn.Module | None = None

    @property
    def may_train(self) -> bool:
        """Whether the node is at the server's version, and has neither sent an update nor charged this round."""
        return self._participant.may_train

    @property
    def synced(self) -> bool:
        """Whether the node is at the server's version."""
        return self._participant.state.phase is Phase.SYNCED

    def giving_up(self) -> list[bytes]:
        """Return the message that the node can send no update in this round, if it was charged for the round before."""
        return [self._participant.withdrawal("round")] if self._participant.gives_round_up else []

    @property
    def model(self) -> Model:
        """The layers and values of the model at the node's version."""
        state = self._participant.state
        return state.memory.layout, state.model

    def follow(self, answer: bytes | None) -> list[bytes]:
        """Apply the server's answer to the last question; return an update that must be sent again.

        Raises:
            VersionMismatch: The server is of another federation.
            TermsRefused: The rounds that are left cost more than the node's policy allows.
        """
        if answer is None:
            return []
        try:
            messages = self._participant.handle(ReplyReceived(answer))
        except CorruptPayload as error:
            LOG.warning("a damaged answer of the server (%s): it is asked again", error)
            return []
        if self.synced:
            memory = self._participant.state.memory
            self._policy.check(self._terms, self._ledger, memory.client, memory.shared.version)
        return messages

    def begin(self, trained: PrivateOptimizer | nn.Module) -> None:
        """Open the round for what the app trains; `PrivateClientApp.begin` explains it."""
        if self._trained is not None:
            raise DpcompError("begin was called before in this round: a node trains once a round")
        terms, memory = self._terms, self._participant.state.memory
        local_steps = terms.pipeline.trust_model.releases_local_steps
        if local_steps != isinstance(trained, PrivateOptimizer):
            raise NotPrivate(
                f"begin({type(trained).__name__}) with unit={terms.pipeline.unit!r} and trust={terms.pipeline.trust!r}"
                ": give the optimiser of make_private where each local step is released (unit='example'), and the "
                "plain module where the whole change of the model is"
            )
        if isinstance(trained, PrivateOptimizer):
            refuse_other_training(terms, trained)
            module, layout = trained.model, trained.layout
        else:
            module, layout = trained, layout_of(trained)
        if layout != memory.layout:
            raise DpcompError(
                f"the model has {layout}, and the federation's first model {memory.layout}: build the model of the "
                "federation, with the same names and shapes in the same order"
            )
        write(module, self._participant.state.model)
        if isinstance(trained, PrivateOptimizer):
            trained.refuse_unready(memory)  # before the charge, which no later error takes back
            trained.begin(memory, self._charged(memory.address))
        self._trained = trained

    def update(self) -> list[bytes]:
        """Return the message with the update of what was trained since `begin`; it is saved first.

        Raises:
            DpcompError: The app did not call `begin`.
            BudgetExhausted, NotPrivate: As `PrivateOptimizer.update` and `Pipeline.release` do.
        """
        if self._trained is None:
            raise DpcompError(
                "the train function returned without app.begin(...): call it once the model is there, before the "
                "first step"
            )
        trained, self._trained = self._trained, None
        update = trained.update() if isinstance(trained, PrivateOptimizer) else self._whole_change(trained)
        return self._participant.handle(Trained(update))

    def question(self) -> bytes:
        """Return the question that the server answers with its next message to this node; it is saved first."""
        if self._participant.state.phase is Phase.WAITING:
            self._participant.handle(Restarted())  # the next message finds another process
        (question,) = self._participant.handle(TimedOut())
        return question

    def _whole_change(self, module: nn.Module) -> Update:
        """Return the change of a model since `begin`, released where nobody is trusted, else clean."""
        terms, state = self._terms, self._participant.state
        change = read(module) - state.model
        if terms.pipeline.trust_model.server_sees_clean:
            # The server's ledger knows nothing of the node's other federations, so the node's own has all rounds too.
            self._charge_all_rounds(state.memory.client)
            # What is not finite counts as zero, as under Clip; a client that sent nothing would be seen.
            values = change if np.isfinite(change).all() else np.zeros_like(change)
            return Update(values=values, layout=state.memory.layout, address=state.memory.address)
        permit = self._charged(state.memory.address)
        return terms.pipeline.release([change[None, :]], state.memory, SecretSeed(), permit)

    def _charged(self, address: Address) -> Permit:
        """Charge the node's ledger for a round, and return the permit.

        Raises:
            OutOfBudget: The ledger does not allow it.
        """
        cost, steps = self._terms.pipeline.cost, self._terms.steps
        try:
            permit = self._policy.charge_round(self._ledger, cost, address, steps)
        except BudgetExhausted as refusal:
            raise OutOfBudget(str(refusal)) from refusal
        permit.assume(self._assumptions())
        return permit

    def _charge_all_rounds(self, client: int) -> None:
        """Charge the node's ledger for all rounds of a trusted server, unless it was. Raises OutOfBudget."""
        try:
            self._policy.charge_all_rounds(self._terms, self._ledger, client)
        except BudgetExhausted as refusal:
            raise OutOfBudget(str(refusal)) from refusal
        self._ledger.assume(self._assumptions())

    def _assumptions(self) -> list[str]:
        names = ", ".join(self._nonprivate_metrics)
        return [f"the metrics {names} leave the node without noise, and no guarantee covers them"] if names else []


@contextmanager
def opened_node(
    folder: Path,
    terms: FederationTerms,
    client: int,
    first_model: Model | None,
    *,
    absence_policy: AbsencePolicy,
    nonprivate_metrics: tuple[str, ...],
) -> Iterator[Node | None]:
    """Open a node's ledger, hold the node's policy against the terms, and read its state; close the ledger at the end.

    What the rounds cost that are left is held against the policy once the node knows the server's version.

    Args:
        folder: The node's folder, which `prepare_node` has made.
        terms: The terms of the federation.
        client: The number that the server gave to the node.
        first_model: The first model, if the server sent one.
        absence_policy: What the node keeps of its residual after rounds that it missed.
        nonprivate_metrics: The names of metrics that leave the node without noise.

    Yields:
        The node; None where it has no first model yet.

    Raises:
        TermsRefused: The policy does not allow the terms.
        VersionMismatch: The first model is not that of the terms.
        DpcompError: The folder holds no policy or ledger, or the state of another client.
    """
    if not (folder / POLICY).exists():
        raise DpcompError(f"{folder} holds no {POLICY}: the node's operator makes it, once, by prepare_node")
    policy = ClientPolicy.read(folder / POLICY)
    with ExitStack() as at_the_end:
        ledger = at_the_end.enter_context(Ledger(folder / LEDGER))
        policy.check(terms, ledger, client, terms.rounds)  # all but the cost of the rounds that are left
        place = folder / terms.run_id.hex()  # a node may take part in several federations
        model = _first_model(place / "first_model.safetensors", terms, first_model)
        if model is None:
            yield None
            return
        participant = terms.participant(
            *model,
            client=client,
            ledger=ledger,
            folder=place / "state",
            absence_policy=absence_policy,
        )
        yield Node(terms, participant, ledger, policy, nonprivate_metrics)


def _first_model(path: Path, terms: FederationTerms, sent: Model | None) -> Model | None:
    """Return the first model: that of the file, or the one that the server sent, which is then written."""
    if path.exists():
        return read_model(path)
    if sent is not None:
        layout, model = sent
        terms.check_model(layout, model)
        write_model(path, model, layout)
    return sent

"""PrivateClientApp: Flower's ClientApp, whose train function sends a private and compressed update."""

import time
from collections.abc import Callable, Sequence

from flwr.app import Context, Error, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import nn

from dpcomp.adapters.flower.node import LOG, Node, OutOfBudget, opened_node
from dpcomp.adapters.flower.node_folders import FolderOf, folder_in_node_config
from dpcomp.adapters.flower.records import (
    ARRAYS,
    FAILED,
    SAID_OF_WITHDRAWALS,
    WITHDRAWALS,
    FromNode,
    ToNode,
    arrays_of,
)
from dpcomp.core.errors import DpcompError, NotPrivate, TermsRefused
from dpcomp.federated.absence import AbsencePolicy, Keep
from dpcomp.federated.messages import WithdrawalReason
from dpcomp.terms import FederationTerms
from dpcomp.training.pytorch.private_optimizer import PrivateOptimizer

KEPT = "the text of an error may hold private data, so it stays in the node's log"


class PrivateClientApp(ClientApp):
    """A `ClientApp` whose train function ends with a private, compressed update in place of the model.

    In the place of `ClientApp()`. The functions that are registered with `@app.train()` and `@app.evaluate()` find the
    model at the server's version in `msg.content["arrays"]`, and the train function calls `app.begin(optimizer)` before
    the first step. Of what they return, only the declared metrics leave the node.

    All state of the node is in its folder: its policy, its ledger, and what its codec has dropped so far. Flower may
    kill the process at any moment, and starts another one for each message.

    **Privacy:** the policy is held against the terms before anything is trained; a round is charged before its noise is
    drawn; an update is on the disk before it leaves. Only the update, counters and digests of the protocol, and the
    declared metrics leave the node; the text of an error does not.

    Args:
        terms: The terms of the federation, such as `FederationTerms.read(path)` of a file beside the app.
        folder: Says where a node's folder is: by default where its operator has said, with `--node-config`.
        nonprivate_metrics: The names of metrics that leave the node without noise. Every guarantee of the node's ledger
            then says that it does not cover them. Public constants need no noise, but are named here all the same.
        absence_policy: What a node keeps of its residual after rounds that it missed, as for `Participant`.
        mods: Further mods of Flower, which see what the app sees: arrays of the model, and no update.

    Raises:
        NotPrivate: A mod is one of Flower's for differential privacy.

    Examples:
        >>> import numpy as np
        >>> import dpcomp as dp
        >>> from dpcomp.adapters.flower import PrivateClientApp
        >>> from dpcomp.terms import FederationTerms
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1))
        >>> terms = FederationTerms.agree(pipeline, 10, np.zeros(10, np.float32), rounds=20, steps=5, clients=3)
        >>> app = PrivateClientApp(terms)
        >>> @app.train()
        ... def train(msg, context):
        ...     ...  # build the model, make_private, app.begin(optimizer), and train
    """

    def __init__(
        self,
        terms: FederationTerms,
        *,
        folder: FolderOf = folder_in_node_config,
        nonprivate_metrics: Sequence[str] = (),
        absence_policy: AbsencePolicy = Keep(),
        mods: list[Mod] | None = None,
    ):
        _refuse_privacy_mods(mods)
        self._private = _PrivateMod(terms, folder, tuple(nonprivate_metrics), absence_policy)
        super().__init__(mods=[self._private, *(mods or [])])
        self.terms = terms

    def begin(self, trained: PrivateOptimizer | nn.Module) -> None:
        """Open the round in the train function: charge the node's ledger, and give the model the server's weights.

        Call it when all is ready for the first step, so that an error before costs nothing.

        Args:
            trained: The optimiser of `make_private`, where each local step is released (`unit="example"`); with
                `unit="client"` the plain module, whose change until the function returns is the update.

        Raises:
            BudgetExhausted: The node's budget does not allow the round; let it pass, and the server learns that this
                node will not take part.
            NotPrivate: It is not what the pipeline of the terms releases.
            ValueError: The optimiser has another pipeline or learning rate than the terms.
            DpcompError: The model has other layers than the federation's, or no train function is running.
        """
        self._private.begin(trained)

    def train(
        self, action: str = "default", *, mods: list[Mod] | None = None
    ) -> Callable[[ClientAppCallable], ClientAppCallable]:
        """Register the train function; see Flower's `ClientApp.train`. Raises NotPrivate as the constructor does."""
        _refuse_privacy_mods(mods)
        return super().train(action, mods=mods)

    def evaluate(
        self, action: str = "default", *, mods: list[Mod] | None = None
    ) -> Callable[[ClientAppCallable], ClientAppCallable]:
        """Register the evaluate function; see Flower's `ClientApp.evaluate`. Raises NotPrivate as the constructor."""
        _refuse_privacy_mods(mods)
        return super().evaluate(action, mods=mods)

    def query(
        self, action: str = "default", *, mods: list[Mod] | None = None
    ) -> Callable[[ClientAppCallable], ClientAppCallable]:
        """Refuse a query function: what it would send, no ledger is charged for.

        Raises:
            NotPrivate: Always.
        """
        raise NotPrivate(
            "a query function sends values of the node that no ledger is charged for: send a metric of the evaluate "
            "function, and declare it, PrivateClientApp(nonprivate_metrics=...)"
        )


class _PrivateMod:
    """Stands before the app's functions, as Flower's outermost mod; it is apart, since Flower's class grows names."""

    def __init__(
        self,
        terms: FederationTerms,
        folder: FolderOf,
        nonprivate_metrics: tuple[str, ...],
        absence_policy: AbsencePolicy,
    ):
        self._terms, self._folder = terms, folder
        self._nonprivate_metrics, self._absence_policy = nonprivate_metrics, absence_policy
        self._training: Node | None = None  # while the train function runs

    def begin(self, trained: PrivateOptimizer | nn.Module) -> None:
        """Open the round; see `PrivateClientApp.begin`."""
        if self._training is None:
            raise DpcompError("begin was called outside of a train function: Flower calls that, and it calls begin")
        self._training.begin(trained)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        try:
            return Message(self._reply(message, context, call_next).content(), reply_to=message)
        except (TermsRefused, OutOfBudget) as refusal:  # a permit that an app has used up is that app's failure
            LOG.warning("this node does not take part: %s", refusal)
            reason: WithdrawalReason = "policy" if isinstance(refusal, TermsRefused) else "budget"
            (code,) = (code for code, named in WITHDRAWALS.items() if named == reason)
            # What the refusal says besides, such as what other federations were charged, is the node's own.
            return Message(Error(code, SAID_OF_WITHDRAWALS[reason]), reply_to=message)
        except Exception as error:
            LOG.error("the app failed, and the server is told only that: %s", KEPT, exc_info=error)
            return Message(Error(FAILED, f"the app of this node failed; {KEPT}"), reply_to=message)

    def _reply(self, message: Message, context: Context, call_next: ClientAppCallable) -> FromNode:
        asked = ToNode.read(message.content)
        metrics = MetricRecord()
        with opened_node(
            self._folder(context),
            self._terms,
            asked.client,
            asked.first_model,
            absence_policy=self._absence_policy,
            nonprivate_metrics=self._nonprivate_metrics,
        ) as node:
            if node is None:
                return FromNode(messages=(), metrics=metrics)
            messages, training = node.follow(asked.answer), message.metadata.message_type.startswith("train")
            if training and time.time() > message.metadata.created_at + asked.seconds:
                LOG.warning("the message came too late to train for its round: the server is asked for its version")
            elif node.may_train if training else node.synced:
                message.content[ARRAYS] = arrays_of(*node.model)
                metrics = self._call_app(node if training else None, message, context, call_next)
                messages += node.update() if training else []
            elif training:
                messages += node.giving_up()
            return FromNode(messages=(*messages, node.question()), metrics=metrics)

    def _call_app(
        self, node: Node | None, message: Message, context: Context, call_next: ClientAppCallable
    ) -> MetricRecord:
        """Call the app's function, and return the declared metrics of its reply."""
        self._training = node
        try:
            reply = call_next(message, context)
        finally:
            self._training = None
        if not isinstance(reply, Message) or reply.has_error():
            return MetricRecord()
        given = {name: value for record in reply.content.metric_records.values() for name, value in record.items()}
        if kept := sorted(given.keys() - set(self._nonprivate_metrics)):
            LOG.info("the metrics %s stay on this node: no noise is in them, and none was declared", ", ".join(kept))
        return MetricRecord({name: value for name, value in given.items() if name in self._nonprivate_metrics})


def _refuse_privacy_mods(mods: Sequence[Mod] | None) -> None:
    """Refuse Flower's mods for differential privacy.

    Raises:
        NotPrivate: There is one.
    """
    for mod in mods or ():
        if mod in (fixedclipping_mod, adaptiveclipping_mod) or isinstance(mod, LocalDpMod):
            raise NotPrivate(
                f"{getattr(mod, '__name__', type(mod).__name__)} beside dpcomp: it would clip or noise an update that "
                "never leaves, and no ledger is charged for it. Leave it out; the pipeline of the terms clips and adds "
                "the noise"
            )

"""A client that outlives its process: its state machine, its ledger, and a folder that holds both."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from dpcomp.core.errors import DpcompError
from dpcomp.federated.absence import AfterAbsence, Keep
from dpcomp.federated.client import ClientState, transition
from dpcomp.federated.phases import Event, Phase, Restarted, Save
from dpcomp.pipeline import Pipeline
from dpcomp.privacy.ledger import Ledger
from dpcomp.wire import checkpoint
from dpcomp.wire.checkpoint import Checkpoint
from dpcomp.wire.memory import ClientMemory


class Participant:
    """Does what the state machine says; what is to be saved is saved before anything leaves.

    Given a folder, the state is a checkpoint in it; without one it is kept in memory, for simulations. The ledger is
    the caller's, and never goes back.

    Raises:
        DpcompError: the ledger is older than the checkpoint.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        memory: ClientMemory,
        model: Float32[np.ndarray, "d"],
        ledger: Ledger,
        folder: str | os.PathLike[str] | None = None,
        after_absence: AfterAbsence = Keep(),
    ):
        self._pipeline, self._after_absence, self.ledger = pipeline, after_absence, ledger
        self._folder = None if folder is None else Path(folder)
        self.state = self._saved = ClientState(memory=memory, model=model)
        if self._folder is not None and self._folder.exists():
            self.restart()

    @property
    def may_train(self) -> bool:
        """Whether an update may be released now: the model is the server's, and nothing was sent or charged here yet.

        An address that was charged before a crash, and whose update was not saved, is forfeit.
        """
        memory = self.state.memory
        spent = memory.address == memory.link.last or self.ledger.charged(memory.address)
        return self.state.phase is Phase.SYNCED and not spent

    def on(self, event: Event) -> list[bytes]:
        """Go through an event, and return what is to be sent to the server. Raises as `transition` does.

        Raises:
            DpcompError: the server knows of a release that the ledger does not: what is spent would be under-reported.
            OSError: the state could not be saved; it is as it was, and nothing may be sent.
        """
        after, actions = transition(self._pipeline, self.state, event, self._after_absence)
        pending = self.state.pending
        if after.memory.link not in (self.state.memory.link, None if pending is None else pending.link):
            self._refuse_older_ledger(after, "the server knows a release")
        for action in actions:
            if isinstance(action, Save):
                self._save(after)
        self.state = after
        return [action.message for action in actions if not isinstance(action, Save)]

    def restart(self) -> None:
        """Go on from what was saved."""
        if self._folder is not None:
            self._saved = self._load(self._folder)
        self.state, _ = transition(self._pipeline, self._saved, Restarted())

    def _save(self, state: ClientState) -> None:
        if self._folder is not None:
            checkpoint.save(self._folder, Checkpoint(state.memory, state.model, state.pending))
        self._saved = state

    def _load(self, folder: Path) -> ClientState:
        try:
            memory, model, pending, _ = checkpoint.load(folder, self._pipeline)
        except FileNotFoundError:
            return self._saved  # it never got as far as to save anything
        if not isinstance(memory, ClientMemory) or model is None:
            raise DpcompError(f"{folder} holds no checkpoint of a client: name another folder")
        mine = self._saved.memory
        if (memory.client, memory.seed, memory.pipeline) != (mine.client, mine.seed, mine.pipeline):
            raise DpcompError(
                f"{folder} is of client {memory.client}, run {memory.seed} and layout {memory.layout}; this is client "
                f"{mine.client}, run {mine.seed} and layout {mine.layout}: name another folder"
            )
        state = ClientState(memory=memory, model=model, pending=pending)
        self._refuse_older_ledger(state, f"{folder} holds a release")
        return state

    def _refuse_older_ledger(self, state: ClientState, known: str) -> None:
        """Refuse to go on where what is known to be released was never charged here."""
        last = state.memory.link.last if state.pending is None else state.pending.link.last
        if last is not None and self._pipeline.trust == "nobody" and not self.ledger.charged(last):
            raise DpcompError(
                f"{known} at {last}, which {self.ledger} never charged: it is older than that, or another client's. "
                "Restore the newest ledger; what is spent cannot be taken back"
            )

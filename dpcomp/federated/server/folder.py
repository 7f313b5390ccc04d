"""Server folder: the journal and the checkpoints of a server, from which another process goes on."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpcomp.core.errors import DpcompError
from dpcomp.core.storage import make_folder
from dpcomp.federated.saved_state import ledger_arrays, refuse_older_ledger, refuse_other_genesis
from dpcomp.federated.server.journal import Journal
from dpcomp.federated.server.state import ServerState
from dpcomp.federated.server.traffic import Traffic, counts_as_arrays, counts_in_arrays
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.wire import checkpoint
from dpcomp.wire.channel import Channel
from dpcomp.wire.memory import ServerMemory

ACCEPTED = "accepted"  # the array with the number of payloads that the journal had taken when a checkpoint was saved
FORFEITED = "forfeited"  # the array with the rounds that were closed without a release


class Saved(NamedTuple):
    """What a server folder holds of the last closed round.

    Attributes:
        state: What the next round begins with.
        traffic: What the server had received and sent.
        refusals: How many messages it had refused, by reason.
        forfeited: The rounds that were closed without a release, ascending.
        payloads: What was accepted since, each after the version of the server that accepted it.
    """

    state: ServerState
    traffic: Traffic
    refusals: Counter[str]
    forfeited: tuple[int, ...]
    payloads: list[tuple[int, bytes]]


class ServerFolder:
    """Keeps a server's rounds as checkpoints, and what it accepts and draws in between in a journal.

    A new folder gets a run id, unless the state names one, and the first checkpoint.

    Args:
        path: The folder; it is created if it does not exist.
        first: What the server begins its first round with.
        channel: The channel of both ends.
        ledger: The ledger of a trusted server; else None.

    Raises:
        DpcompError: The folder is of another federation, is in use, or lacks its journal or its checkpoints.
    """

    def __init__(self, path: str | os.PathLike[str], first: ServerState, channel: Channel, ledger: Ledger | None):
        self.path = Path(path)
        make_folder(self.path)
        self._first, self._channel, self._ledger = first, channel, ledger
        self._checkpoints, journal = self.path / "checkpoints", self.path / "journal.db"
        begun = checkpoint.exists(self._checkpoints)
        if begun and not journal.exists():
            raise DpcompError(
                f"{self.path} holds checkpoints, but no {journal.name}: payloads that were called accepted are "
                "missing. Restore both from one copy"
            )
        if begun or journal.exists():
            self.journal = Journal(journal)
        else:
            self.journal = Journal.create(journal, first.with_run_id().memory.genesis.run_id)
        if not begun:
            with ExitStack() as on_failure:
                on_failure.callback(self.journal.close)
                self._begin(first)
                on_failure.pop_all()

    def _begin(self, first: ServerState) -> None:
        """Save the first state beside a new journal, or one whose server was killed before it did this."""
        if self.journal.count or self.journal.cohorts():
            raise DpcompError(
                f"{self.path} holds the journal of a server, but no checkpoint: restore both from one copy, or give an "
                "empty folder"
            )
        genesis = first.memory.genesis
        memory = first.memory.with_genesis(replace(genesis, run_id=self.journal.run_id))
        refuse_other_genesis(self.path, memory, genesis)
        self.save(replace(first, memory=memory), Traffic(), {}, ())

    def save(self, state: ServerState, traffic: Traffic, refusals: Mapping[str, int], forfeited: Sequence[int]) -> None:
        """Write a checkpoint durably.

        Args:
            state: What the next round begins with.
            traffic: What the server has received and sent.
            refusals: How many messages it has refused, by reason.
            forfeited: The rounds that were closed without a release, ascending.

        Raises:
            OSError: It could not be written.
        """
        arrays: dict[str, np.ndarray] = {ACCEPTED: np.array([self.journal.count], dtype=np.int64)}
        arrays |= counts_as_arrays(traffic, refusals)
        if forfeited:
            arrays[FORFEITED] = np.array(forfeited, dtype=np.int64)
        if self._ledger is not None:
            arrays |= ledger_arrays(self._ledger)
        checkpoint.save(self._checkpoints, state.checkpoint(arrays))

    def load(self, moments: Iterable[str]) -> Saved:
        """Read the newest checkpoint.

        Args:
            moments: The names of the optimiser's moments.

        Raises:
            DpcompError: It is of another federation or of a client, is newer than the journal, or holds a release that
                the ledger was never charged for.
        """
        saved = checkpoint.load(self._checkpoints, self._channel)
        state, first = ServerState.in_checkpoint(saved, moments), self._first.memory
        if state is None:
            raise DpcompError(f"{self.path} holds no checkpoint of a server: give another folder")
        memory, arrays = state.memory, saved.extra_arrays
        if (memory.seed, memory.pipeline) != (first.seed, first.pipeline):
            raise DpcompError(
                f"{self.path} is of run {memory.seed} and layout {memory.layout}; this is run {first.seed} and "
                f"layout {first.layout}: give another folder"
            )
        refuse_other_genesis(self.path, memory, first.genesis)
        taken = int(arrays[ACCEPTED][0])
        self.journal.refuse_other(self.path, memory.genesis.run_id, taken)
        if self._ledger is not None:
            self._refuse_uncharged(self._ledger, memory)
            refuse_older_ledger(self._ledger, arrays)
            self._warn_of_charged(self._ledger, memory)
        # What was accepted before the checkpoint may be of this version too: of a time whose own checkpoint was lost.
        return Saved(state, *counts_in_arrays(arrays), forfeited_in_arrays(arrays), self.journal.payloads(taken))

    def _refuse_uncharged(self, ledger: Ledger, memory: ServerMemory) -> None:
        """Refuse a ledger that lacks the charge of the last release."""
        last = replace(memory.address, round=memory.shared.version - 1) if memory.shared.version else None
        if last is not None and not ledger.charged(last):
            raise DpcompError(
                f"{self.path} holds the release of {last}, which {ledger} never charged: restore the newest ledger; "
                "what is spent cannot be taken back"
            )

    def _warn_of_charged(self, ledger: Ledger, memory: ServerMemory) -> None:
        """Warn of the rounds from the present one on that a ledger was charged for, of which there is no release."""
        version = memory.shared.version
        ahead = charged_from(ledger, memory)
        if not ahead:
            return
        if ahead == [version]:
            why = "a process ended between its charge and its end, or the folder was set back by one round"
        else:
            why = (
                "the folder was set back to an older copy, and what was released after that is lost; or it is new, "
                "beside the ledger of another run of this seed"
            )
        warnings.warn(
            f"{self.path} is at version {version}, and {ledger} was charged for {_rounds(ahead)} already: {why}. What "
            "was charged is closed without a release: it is not charged again, no noise is drawn, and what clients "
            "send is deleted unused. If there is a newer copy of the folder, stop now and restore that; else go on",
            stacklevel=5,
        )

    def forget(self, version: int, oldest_cohort: int | None) -> None:
        """Delete the payloads and cohorts of closed rounds, but for those that the checkpoint before the newest needs.

        A trusted server has charged a closed round, and can't release it again, so it needs none of its clean payloads.

        Args:
            version: The version of the first round that is not closed.
            oldest_cohort: The version of the first round whose cohort is still needed; None if none are drawn.
        """
        try:
            self.journal.forget_before(version if self._channel.server_sees_clean else version - 1)
            if oldest_cohort is not None:
                self.journal.forget_cohorts_before(oldest_cohort)
        except DpcompError as error:  # the round is saved, so it is closed; the next one deletes what is left here
            warnings.warn(
                f"{self.path}: what came in closed rounds could not be deleted, and is tried again after the next "
                f"round or at the next start: {error}",
                stacklevel=4,
            )

    def close(self) -> None:
        """Close the journal, so that another process may use the folder."""
        self.journal.close()


def charged_from(ledger: Ledger, memory: ServerMemory) -> list[int]:
    """Return the rounds from the present one on that a trusted server's ledger was charged for, ascending.

    Args:
        ledger: The ledger.
        memory: The server's memory.
    """
    place = memory.address
    return sorted(number for number in ledger.charged_rounds(place.run, place.client) if number >= place.round)


def forfeited_in_arrays(arrays: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Return the rounds that were closed without a release, as the extra arrays of a checkpoint hold them."""
    return tuple(arrays.get(FORFEITED, np.empty(0, np.int64)).tolist())


def _rounds(numbers: Sequence[int]) -> str:
    """Write rounds, ascending, as their number and the first and last of them."""
    if len(numbers) == 1:
        return f"round {numbers[0]}"
    return f"{len(numbers):,} rounds from {numbers[0]} to {numbers[-1]}"

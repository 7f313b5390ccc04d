"""RunFolder: the folder in which a simulation saves its state, so that the same call goes on after its process ended.

A state is a folder of its own, `round-000010` after round 10. It is written under another name, synced and renamed, and
only then the one before it is deleted; so whatever moment a process is killed at, one whole state is there.
"""

import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from dpcomp.core.errors import DpcompError
from dpcomp.core.storage import make_folder, put_in_place, sync, write_whole
from dpcomp.federated.server import Server
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.privacy.ledger.ledger_copy import copy_of_ledger, ledger_of_copy
from dpcomp.simulation.clients.simulated_clients import SimulatedClients
from dpcomp.simulation.saving.settings import differences
from dpcomp.wire import checkpoint
from dpcomp.wire.channel import Channel
from dpcomp.wire.checkpoint import Checkpoint

if sys.platform != "win32":
    import fcntl

FORMAT = "dpcomp run 1"
SETTINGS, LOCK, STATE, LEDGER, RESIDUALS, SERVER = (
    *("settings.json", "lock", "state.json", "ledger.db", "residuals", "server"),
)
CLIENTS, TAIL = "residual clients", "tail sum"  # arrays beside those of the server

Row = dict[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """What a run has come to, besides its federation.

    Args:
        rows: The rows so far.
        stopped: Why a callback stopped the run; empty where none did.
        counts: What the watched pipeline has counted of all units.
        columns: The columns that its probes have filled.
        tail: The sum of the models that are averaged, as a (d,) vector; None where there is none yet.
    """

    rows: tuple[Row, ...]
    stopped: str
    counts: Mapping[str, int]
    columns: tuple[str, ...]
    tail: Float64[np.ndarray, "d"] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class RunState:
    """What was saved after a round.

    Args:
        facts: What the run had come to.
        server: The server's memory and model, and what else it keeps.
        refusals: How many messages the server had refused, by reason.
        ledger: What was charged.
        residuals: The file of what clients keep, a row a client.
    """

    facts: Facts
    server: Checkpoint
    refusals: Mapping[str, int]
    ledger: Ledger
    residuals: Path


class RunFolder:
    """The folder of a run, which one process at a time uses; `opened_run_folder` opens it.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path):
        self._path = path

    def read(self, channel: Channel) -> RunState | None:
        """Return the state after the last round that was saved; None where no round was.

        Args:
            channel: The channel of both ends: `pipeline.channel`.

        Raises:
            DpcompError: The state is damaged.
        """
        states = self._states()
        if not states:
            return None
        place = states[-1]
        told = _facts_in(place / STATE)
        for name, digest in told["digests"].items():
            if not (place / name).is_file():
                raise DpcompError(f"{place / name} is missing: {_BEGIN_ANEW}")
            if _digest_of(place / name) != digest:
                raise DpcompError(f"{place / name} is damaged: {_BEGIN_ANEW}")
        if not checkpoint.exists(place / SERVER):
            raise DpcompError(f"{place / SERVER} holds no checkpoint: {_BEGIN_ANEW}")
        saved = checkpoint.load(place / SERVER, channel)
        facts = Facts(
            rows=tuple(told["rows"]),
            stopped=told["stopped"],
            counts=told["counts"],
            columns=tuple(told["columns"]),
            tail=saved.extra_arrays.get(TAIL),
        )
        ledger = ledger_of_copy((place / LEDGER).read_bytes(), str(place / LEDGER))
        return RunState(
            facts=facts, server=saved, refusals=told["refusals"], ledger=ledger, residuals=place / RESIDUALS
        )

    def save(self, facts: Facts, server: Server, clients: SimulatedClients, ledger: Ledger) -> None:
        """Write the state after a round durably, then delete the one before it.

        Args:
            facts: What the run has come to.
            server: The server, between two rounds.
            clients: The clients, all of which stand together.
            ledger: What was charged.

        Raises:
            OSError: The state cannot be written; the one before it is as it was.
        """
        name = f"round-{len(facts.rows):06d}"
        earlier, draft = self._states(), self._path / f".{name}.part"
        self._remove_drafts()
        draft.mkdir()
        saved = server.between_rounds()
        kept = clients.write_kept(draft / RESIDUALS)
        beside = {CLIENTS: kept} | ({} if facts.tail is None else {TAIL: facts.tail})
        checkpoint.save(draft / SERVER, saved._replace(extra_arrays={**saved.extra_arrays, **beside}))
        (draft / LEDGER).write_bytes(copy_of_ledger(ledger))
        told = {
            "rows": facts.rows,
            "stopped": facts.stopped,
            "counts": dict(facts.counts),
            "columns": list(facts.columns),
            "refusals": dict(server.refusals),
            "digests": {each: _digest_of(draft / each) for each in (LEDGER, RESIDUALS)},
        }
        text = json.dumps(told, default=float)
        (draft / STATE).write_text(json.dumps({"facts": text, "digest": _digest(text.encode())}), encoding="utf-8")
        for each in (STATE, LEDGER, RESIDUALS):
            sync(draft / each)
        sync(draft)
        put_in_place(draft, self._path / name)
        for old in earlier:
            try:
                shutil.rmtree(old)
            except OSError as error:  # the new one is in place, and is what the run goes on from
                warnings.warn(f"{old} can't be deleted ({error}), and is tried again at the next state", stacklevel=2)

    def _states(self) -> list[Path]:
        """Return all whole states, oldest first."""
        return sorted(place for place in self._path.glob("round-*") if place.name.removeprefix("round-").isdigit())

    def _remove_drafts(self) -> None:
        """Remove what killed processes have left unfinished."""
        for draft in self._path.glob(".round-*.part"):
            shutil.rmtree(draft)


@contextmanager
def opened_run_folder(path: str | os.PathLike[str], settings: Mapping[str, Any]) -> Iterator[RunFolder]:
    """Open the folder of a run, which is made if it is missing; until the context ends no other process may use it.

    Args:
        path: The folder.
        settings: The call of `simulate`, as `described` gives it.

    Raises:
        ValueError: The path is empty.
        DpcompError: Another process uses the folder, it holds the run of another call, or it cannot be written.
    """
    if path == "":
        raise ValueError(f"simulate(folder={path!r}) is no path: name a folder, such as 'run', or leave folder out")
    place = Path(path)
    try:
        make_folder(place)
        (place / LOCK).touch()
    except OSError as error:
        raise DpcompError(
            f"simulate(folder={str(path)!r}) cannot be written ({error}): name a folder that this process may write, "
            "or that it can make"
        ) from error
    with _held(place):
        _refuse_other(place, settings)
        yield RunFolder(place)


_BEGIN_ANEW = "restore it from a copy, or give simulate an empty folder and begin anew"


def _refuse_other(place: Path, settings: Mapping[str, Any]) -> None:
    file = place / SETTINGS
    given = json.loads(json.dumps({"format": FORMAT, **settings}))
    if not file.exists():
        if any(place.glob("round-*")):
            raise DpcompError(f"{place} holds the state of a run, but no {SETTINGS}: {_BEGIN_ANEW}")
        write_whole(file, json.dumps(given, indent=1, ensure_ascii=False).encode())
        return
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DpcompError(f"{file} is damaged ({error}): {_BEGIN_ANEW}") from error
    if differing := differences(saved, given):
        raise DpcompError(
            f"{place} holds the run of another call: {differing}. Make the call that began it, or give another folder"
        )


@contextmanager
def _held(place: Path) -> Iterator[None]:
    """Keep other processes out; the system lets them in again however this one ends."""
    with (place / LOCK).open("a") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DpcompError(
                    f"{place} is in use by another simulation ({error}): wait for it, or give another folder"
                ) from error
        yield


def _facts_in(file: Path) -> dict[str, Any]:
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
        text: str = whole["facts"]
        if _digest(text.encode()) == whole["digest"]:
            return json.loads(text)
        error = "its digest does not match"
    except (OSError, ValueError, KeyError, TypeError) as raised:
        error = raised
    raise DpcompError(f"{file} is damaged ({error}): {_BEGIN_ANEW}")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

"""Status: what the folder of a server or a client says of a federation, while its process may use it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dpcomp.core.address import Address
from dpcomp.core.errors import DpcompError
from dpcomp.federated.server.folder import forfeited_in_arrays
from dpcomp.federated.server.journal import look_at_journal
from dpcomp.federated.server.traffic import Traffic, counts_in_arrays
from dpcomp.wire import checkpoint
from dpcomp.wire.frame import PAYLOAD

JOURNAL, CHECKPOINTS = "journal.db", "checkpoints"


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """What the folder of a server says.

    Attributes:
        folder: The folder.
        run_id: The run id of the federation.
        run: The number of the public seed.
        parameters: d, the number of coordinates.
        version: How many rounds are closed.
        saved: When the last of them was saved, in UTC.
        updates: The number of updates that were accepted since, in the present round.
        last_rounds: Of each client that has sent, up to the last closed round, the round of its last accepted update.
        withdrawn: Why each client that takes no further part does not.
        refusals: How many messages were refused for each reason, up to the last closed round.
        traffic: What was received and replied, up to the last closed round.
        forfeited: The closed rounds of a trusted server that had no release, since it was charged for them before.
    """

    folder: Path
    run_id: bytes
    run: int
    parameters: int
    version: int
    saved: datetime
    updates: int
    last_rounds: Mapping[int, int]
    withdrawn: Mapping[int, str]
    refusals: Mapping[str, int]
    traffic: Traffic
    forfeited: tuple[int, ...]

    @classmethod
    def read(cls, folder: Path) -> "ServerStatus":
        """Read the folder of a server.

        Raises:
            DpcompError: It is none, lacks its checkpoints, or its files belong to different federations.
        """
        run_id, accepted, withdrawn = look_at_journal(folder / JOURNAL)
        try:
            saved, record, arrays = checkpoint.look_at(folder / CHECKPOINTS)
        except FileNotFoundError as error:
            raise DpcompError(
                f"{folder} holds the journal of a server and no checkpoint: a server that begins saves one at once, so "
                "look again; else restore both from one copy"
            ) from error
        if bytes.fromhex(record["run_id"]) != run_id:
            raise DpcompError(f"{folder} holds a journal of run id {run_id.hex()} and a checkpoint of another")
        version: int = record["shared"]["version"]
        extra = {name.removeprefix("beside "): array for name, array in arrays.items()}
        traffic, refusals = counts_in_arrays(extra)
        clients, rounds = arrays["links client"].tolist(), arrays["links round"].tolist()
        return cls(
            folder=folder,
            run_id=run_id,
            run=record["seed"],
            parameters=_parameters(record),
            version=version,
            saved=datetime.fromtimestamp(saved, tz=UTC),
            updates=accepted.get(version, 0),
            last_rounds=dict(zip(clients, rounds, strict=True)),
            withdrawn=withdrawn,
            refusals=dict(refusals),
            traffic=traffic,
            forfeited=forfeited_in_arrays(extra),
        )

    @property
    def current(self) -> tuple[int, ...]:
        """The clients whose last accepted update is of the last closed round."""
        return tuple(client for client, number in self.last_rounds.items() if number >= self.version - 1)


@dataclass(frozen=True, kw_only=True)
class ClientStatus:
    """What the folder of a client says.

    Attributes:
        folder: The folder.
        run_id: The run id of the federation; zeros if the client has not learned it yet.
        run: The number of the public seed.
        client: The client's number.
        parameters: d, the number of coordinates.
        version: The version of the server that the client is at.
        saved: When that was saved, in UTC.
        accepted: The number of its updates that it knows were accepted.
        pending: The address of the update that has no reply yet; None if there is none.
        asking: Whether a question has no reply yet.
    """

    folder: Path
    run_id: bytes
    run: int
    client: int
    parameters: int
    version: int
    saved: datetime
    accepted: int
    pending: Address | None
    asking: bool

    @classmethod
    def read(cls, folder: Path) -> "ClientStatus":
        """Read the folder of a client.

        Raises:
            DpcompError: It is that of a server, or its checkpoints are damaged.
            FileNotFoundError: It holds no checkpoint.
        """
        saved, record, arrays = checkpoint.look_at(folder)
        if "client" not in record:
            raise DpcompError(f"{folder} holds checkpoints of a server, and no {JOURNAL} lies above them")
        pending = arrays.get("payload")
        return cls(
            folder=folder,
            run_id=bytes.fromhex(record["run_id"]),
            run=record["seed"],
            client=record["client"],
            parameters=_parameters(record),
            version=record["shared"]["version"],
            saved=datetime.fromtimestamp(saved, tz=UTC),
            accepted=record["link"]["count"],
            pending=None if pending is None else PAYLOAD.record_of(pending.tobytes()).address,
            asking="beside question" in arrays,
        )


def states_in(folder: Path, depth: int = 3) -> list[ServerStatus | ClientStatus]:
    """Read all states of servers and clients in a folder and those below it.

    Args:
        folder: The folder.
        depth: How many levels of folders are looked at.

    Raises:
        DpcompError: A state is damaged, or of another format.
    """
    if (folder / JOURNAL).exists():
        return [ServerStatus.read(folder)]
    if checkpoint.exists(folder):
        return [ClientStatus.read(folder)]
    below = sorted(path for path in folder.iterdir() if path.is_dir()) if depth else []
    return [state for path in below for state in states_in(path, depth - 1)]


def _parameters(record: Mapping[str, Any]) -> int:
    return sum(int(np.prod(shape, dtype=np.int64)) for _, shape in record["layout"])

"""What the checkpoints of both ends hold besides their memories, and how a restored one is held to its surroundings."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dpcomp.core.errors import DpcompError
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.privacy.ledger.ledger_file import LedgerMark
from dpcomp.wire.memory import NO_DIGEST, ClientMemory, Genesis, ServerMemory

LEDGER_COUNT, LEDGER_DIGEST = "ledger count", "ledger digest"


def ledger_arrays(ledger: Ledger) -> dict[str, np.ndarray]:
    """Return the mark of a ledger as arrays for a checkpoint; a ledger without entries has none to lose."""
    mark = ledger.mark
    if not mark.count:
        return {}
    digest = np.frombuffer(mark.digest.encode(), dtype=np.uint8)
    return {LEDGER_COUNT: np.array([mark.count], dtype=np.int64), LEDGER_DIGEST: digest}


def refuse_older_ledger(ledger: Ledger, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse a ledger that lacks an entry which it had when a checkpoint was saved.

    Args:
        ledger: The ledger.
        arrays: The checkpoint's extra arrays.

    Raises:
        DpcompError: The ledger was restored from a copy, created anew, or is another's.
    """
    if LEDGER_COUNT in arrays:
        digest = arrays[LEDGER_DIGEST].tobytes().decode()
        ledger.refuse_older_than(LedgerMark(count=int(arrays[LEDGER_COUNT][0]), digest=digest))


def refuse_other_genesis(folder: Path, saved: ClientMemory | ServerMemory, given: Genesis) -> None:
    """Refuse a saved memory of another federation.

    Args:
        folder: Where it was saved.
        saved: The memory.
        given: The first model that this end was opened with, and a run id if it was given one.

    Raises:
        DpcompError: The first models differ, or the run ids.
    """
    if saved.genesis.first_model != given.first_model:
        raise DpcompError(
            f"{folder} began with the first model {saved.genesis.first_model.hex()}, but {given.first_model.hex()} was "
            "given: give the first model of the federation, or another folder"
        )
    if given.run_id not in (NO_DIGEST, saved.genesis.run_id):
        raise DpcompError(
            f"{folder} is of run id {saved.genesis.run_id.hex()}; this is {given.run_id.hex()}: give another folder"
        )

"""Copies of a ledger in memory, which a simulation keeps beside its state."""

from dpcomp.core.database.database import IN_MEMORY, memory_copy
from dpcomp.core.errors import DpcompError, NotPrivate
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.privacy.ledger.ledger_file import KIND


def copy_of_ledger(ledger: Ledger) -> bytes:
    """Return what a ledger in memory holds, as the content of a ledger's file.

    **Privacy:** a ledger that goes on from a copy does not know what was charged after it. So only a ledger in memory
    is copied, for a run whose noise is a function of its seed: what it released after the copy, it releases again, bit
    for bit, and charges once (PRIVACY_RULES hazards 18 and 19).

    Args:
        ledger: A ledger in memory.

    Raises:
        NotPrivate: The ledger is durable.
    """
    database = ledger._database  # pyright: ignore[reportPrivateUsage]
    if database.name != IN_MEMORY:
        raise NotPrivate(f"{ledger} is durable, and goes on from its own file: a copy would forget later charges")
    with database.reading() as connection:
        return connection.serialize()


def ledger_of_copy(content: bytes, name: str) -> Ledger:
    """Return a ledger in memory that goes on from a copy.

    Args:
        content: What `copy_of_ledger` returned.
        name: What errors call the copy, such as its path.

    Raises:
        DpcompError: The copy is damaged, or an entry of it was changed or deleted.
    """
    ledger = Ledger.__new__(Ledger)
    try:
        ledger._start(memory_copy(KIND, content), None)  # pyright: ignore[reportPrivateUsage]
    except DpcompError as error:
        raise DpcompError(f"{name} is no copy of a ledger: {error}") from error
    return ledger

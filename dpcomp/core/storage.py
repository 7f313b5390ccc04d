"""Files that outlive a crash: written whole or not at all, in folders that stay; and databases for one process."""

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, draft_name: str | None = None) -> Iterator[Path]:
    """Replace a file by a draft once the draft is on the disk: another process sees the old file, or the whole new one.

    The block writes the draft; where it raises, the draft is removed and the file stays as it was.

    Args:
        path: The file. Its folder is made if it is missing.
        draft_name: The name of the draft, in the same folder; None gives each call a name of its own. A fixed name lets
            the next call overwrite what a killed one has left, and is for files that one process at a time writes.

    Yields:
        The path at which the block writes the draft.

    Raises:
        OSError: The draft can't be written, or the file not be replaced.
    """
    make_folder(path.parent)
    # Two processes, on one machine or two, may write the same file at once: each into a draft of its own.
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part" if draft_name is None else draft_name)
    try:
        yield draft
        _sync(draft)  # without it a crash of the machine may leave the new name on an empty file
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file as `atomic_write` does. Raises OSError."""
    with atomic_write(path) as draft:
        draft.write_bytes(content)


def make_folder(place: Path) -> None:
    """Make a folder, and those above it, that outlive the machine's next crash. Raises OSError."""
    made = [folder for folder in (place, *place.parents) if not folder.exists()]
    place.mkdir(parents=True, exist_ok=True)
    for folder in made:
        _sync(folder.parent)


def open_database(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """Open an SQLite database that this process alone holds, and whose every statement is on the disk when it returns.

    Args:
        path: The file, made if it is missing; or ":memory:".

    Returns:
        A connection in autocommit mode that any thread may use, one at a time.

    Raises:
        sqlite3.DatabaseError: The file can't be opened, is held by another process, or is no database.
    """
    database = sqlite3.connect(os.fspath(path), timeout=0.0, isolation_level=None, check_same_thread=False)
    try:
        # Exclusive before WAL, so that no index of the log is shared with other processes.
        database.executescript(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
            "BEGIN IMMEDIATE; COMMIT;"  # takes the lock now, and not with the first change
        )
    except BaseException:
        database.close()
        raise
    return database


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Locks of open files: a lock lasts until that descriptor is closed, and other programs with SQLite respect it.

SQLite's own locks belong to a process and an inode: any open and close of the file in the process drops them. These
stand on the bytes that SQLite's own stand on, so other programs with SQLite read between two changes, and never write
or roll back while the file is held.
"""

import errno
import os
import stat
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from dpcomp.core.database.kind import HEADER_BYTES, JOURNAL_MAGIC, MAGIC, DatabaseExists, DatabaseKind, journal_of
from dpcomp.core.errors import DpcompError

if sys.platform == "linux":
    import fcntl

PATIENCE = 30.0  # seconds for which a change waits for readers, and a reader for a change
COURTESY = 0.1  # seconds for which a change waits at most to let readers in that wait already
READERS_SHARE = 0.25  # for so much of the time that a change takes, readers of other programs are let in afterwards

# The bytes that SQLite's locks stand on (https://sqlite.org/fileformat2.html).
PENDING, RESERVED, SHARED = 2**30, 2**30 + 1, 2**30 + 2
SHARED_BYTES = 510
WAITING = SHARED + SHARED_BYTES  # a byte that SQLite does not lock: here a reader says that it waits


class OpenFileLock:
    """The lock of an open file: it is not lost when another descriptor of the file is closed.

    Args:
        descriptor: The file, opened for writing by a holder and for reading by a reader.
        place: Its path.
        kind: What it must hold.
    """

    def __init__(self, descriptor: int, place: Path, kind: DatabaseKind):
        self._descriptor: int | None = descriptor
        self.place, self._absolute, self._kind = place, place.absolute(), kind
        self._closed_at = self._opened_at = time.monotonic()  # to readers, by the last change

    def refuse_unfit_file(self) -> None:
        """Refuse what is no file, or a file with several names."""
        found = os.fstat(self._open)
        if not stat.S_ISREG(found.st_mode):
            raise DpcompError(f"{self.place} is no {self._kind.name}, and no file: give the path of one")
        if found.st_nlink > 1:
            # The journal stands beside one name, and whoever opens another would miss it.
            raise DpcompError(
                f"{self.place} has {found.st_nlink} names (hard links): a change that was cut short under one of them "
                "is missed under another. Keep one name of the file, and copy it for a backup"
            )

    def refuse_content(self) -> None:
        """Refuse a file that holds anything, but for the beginning of a database whose creation was cut short."""
        if os.fstat(self._open).st_size == 0:
            return
        marked = os.pread(self._open, HEADER_BYTES, 0)[68:72]
        if marked in (bytes(4), self._kind.application_id.to_bytes(4, "big")):
            with suppress(OSError), journal_of(Path(os.path.realpath(self.place))).open("rb") as journal:
                if journal.read(8) == JOURNAL_MAGIC and journal.read(12)[8:] == bytes(4):
                    return  # the change that was cut short began with no page
        raise DatabaseExists(
            f"{self.place} exists already: open it, or give another path. A file is never replaced by a new "
            f"{self._kind.name}"
        )

    def refuse_other_content(self) -> None:
        """Refuse a file of another kind or format by its first bytes, before SQLite sees it."""
        name, number = self._kind.name, self._kind.format
        header = os.pread(self._open, HEADER_BYTES, 0)
        marked, version = (int.from_bytes(header[place : place + 4], "big") for place in (68, 60))
        if header.startswith(MAGIC) and marked == self._kind.application_id:
            if version != number:
                raise DpcompError(
                    f"{self.place} has {name} format {version}, not {number}: use the version of dpcomp that wrote it"
                )
            if header[18:20] != b"\1\1":
                raise DpcompError(
                    f"{self.place} was put into write-ahead mode by another program, so the file alone may be "
                    "incomplete: run `PRAGMA journal_mode = DELETE` on it, with its log beside it"
                )
            return
        if self._kind.unmarked and self._kind.unmarked in self._beginning():
            raise DpcompError(
                f"{self.place} has {name} format {version}, not {number}: use the version of dpcomp that wrote it"
            )
        why = "it is empty" if not header.strip(b"\0") else "it holds something else"
        raise DpcompError(
            f"{self.place} is no {name}, since {why}; it was not changed. Give another path, or restore the file. "
            f"{self._kind.how_to_create}"
        )

    def refuse_replaced(self) -> None:
        """Refuse to go on once the path names another file: what is written here would be lost."""
        ours = os.fstat(self._open)
        try:
            there = os.stat(self._absolute)  # the process may have gone to another folder
        except OSError as error:
            raise DpcompError(f"{self.place} was removed while it was in use ({error}): restore it") from error
        if not os.path.samestat(ours, there):
            raise DpcompError(f"{self.place} was replaced by another file while it was in use: restore the newest one")

    def hold(self) -> None:
        """Take the right to change the file. Raises DpcompError if it is taken."""
        if not self._lock("F_WRLCK", RESERVED, 1):
            raise DpcompError(
                f"the {self._kind.name} {self.place} is open in another process, or twice in this process: a single "
                "holder at a time may change it; close the other one"
            )

    def await_readers(self) -> None:
        """Keep new readers out, and wait until there are none."""
        pending, shared = ("F_WRLCK", PENDING, 1), ("F_WRLCK", SHARED, SHARED_BYTES)
        # Readers ask again and again, and between changes without a pause would hardly be let in. Ours say that they
        # wait; those of other programs do not.
        patience = time.monotonic() + COURTESY
        while not self._lock("F_WRLCK", WAITING, 1) and time.monotonic() < patience:
            time.sleep(0.001)
        self._lock("F_UNLCK", WAITING, 1)
        open_until = self._opened_at + READERS_SHARE * (self._opened_at - self._closed_at)
        time.sleep(max(0.0, open_until - time.monotonic()))
        self._closed_at = time.monotonic()
        try:
            self._await([pending, shared], f"a reader has held {self.place} for {PATIENCE:g} seconds")
        except DpcompError:
            self.admit_readers()
            raise

    def admit_readers(self) -> None:
        """Let readers in again."""
        self._lock("F_UNLCK", PENDING, 1)
        self._lock("F_UNLCK", SHARED, SHARED_BYTES)
        self._opened_at = time.monotonic()

    def await_change(self) -> None:
        """Wait until no change is being made, and keep further ones waiting."""
        waiting, pending, shared = ("F_RDLCK", WAITING, 1), ("F_RDLCK", PENDING, 1), ("F_RDLCK", SHARED, SHARED_BYTES)
        self._await([waiting, pending, shared], f"changes of {self.place} have taken {PATIENCE:g} seconds")
        for place in (WAITING, PENDING):
            self._lock("F_UNLCK", place, 1)

    def release(self) -> None:
        """Give up all locks, and close the descriptor."""
        if self._descriptor is not None:
            self._lock("F_UNLCK", PENDING, WAITING + 1 - PENDING)  # closing is not enough: a child may have a copy
            self.forget()

    def forget(self) -> None:
        """Close the descriptor in a forked child, whose parent keeps the locks."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def _open(self) -> int:
        assert self._descriptor is not None
        return self._descriptor

    def _beginning(self) -> bytes:
        """Return the first bytes of the file and of a write-ahead log beside it."""
        found = os.pread(self._open, 2**16, 0)
        with suppress(OSError), open(f"{os.path.realpath(self.place)}-wal", "rb") as log:
            found += log.read(2**16)
        return found

    def _await(self, locks: Sequence[tuple[str, int, int]], why_not: str) -> None:
        deadline, pause = time.monotonic() + PATIENCE, 0.0005
        for lock in locks:
            while not self._lock(*lock):
                if time.monotonic() > deadline:
                    raise DpcompError(f"{why_not}: nothing was changed; end that, and try again")
                time.sleep(pause)
                pause = min(2 * pause, 0.005)

    def _lock(self, kind: str, start: int, length: int) -> bool:
        """Take or give up a lock on some bytes, and return whether that was possible."""
        assert sys.platform == "linux"
        record = struct.pack("hhqqi0q", getattr(fcntl, kind), os.SEEK_SET, start, length, 0)
        try:
            fcntl.fcntl(self._open, fcntl.F_OFD_SETLK, record)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise DpcompError(
                f"the {self._kind.name} {self.place} cannot be locked ({error}): keep it on a local disk"
            ) from error
        return True


def on_linux(path: str | os.PathLike[str], kind: DatabaseKind) -> Path:
    """Return the path of a file that can be locked. Raises DpcompError on other systems."""
    if sys.platform != "linux":
        raise DpcompError(
            f"the {kind.name} {path} cannot be locked on this system: locks of an open file are Linux' alone. Keep it "
            "on Linux, or in memory"
        )
    return Path(path)


def existing(place: Path, flags: int, kind: DatabaseKind) -> int:
    """Open a file that exists, and return its descriptor. Raises DpcompError."""
    try:
        return os.open(place, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        with suppress(OSError):
            similar = get_close_matches(place.name, os.listdir(place.parent))
            there = f"; the folder has {', '.join(similar)}" if similar else ""
            raise DpcompError(f"there is no {kind.name} at {place}{there}. {kind.how_to_create}") from error
        raise DpcompError(f"there is no {kind.name} at {place}, and no such folder. {kind.how_to_create}") from error
    except OSError as error:
        raise DpcompError(
            f"the {kind.name} {place} cannot be opened ({error}): is it a file that this process may read, and write "
            "unless it only looks?"
        ) from error

"""Databases: SQLite files that one process holds, and whose every change is on the disk when it returns.

SQLite's own locks belong to a process and an inode: any open and close of the file in the process drops them. So SQLite
is told to take none, and the locks are taken here, as locks of an open file description, which last until that is
closed. They stand on the bytes that SQLite's own locks stand on, so other programs with SQLite respect them: they read
between two changes, and never write or roll back while the file is held.

The rollback journal, and not a write-ahead log: after each change the file alone is complete.
"""

import errno
import os
import sqlite3
import stat
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from urllib.parse import quote

from dpcomp.core.errors import DpcompError
from dpcomp.core.storage import sync

if sys.platform == "linux":
    import fcntl

PATIENCE = 30.0  # seconds for which a change waits for readers, and a reader for a change
COURTESY = 0.1  # seconds for which a change waits at most to let readers in that wait already
READERS_SHARE = 0.25  # for so much of the time that a change takes, readers of other programs are let in afterwards

# SQLite's format: the header of a file, and the bytes that its locks stand on (https://sqlite.org/fileformat2.html).
HEADER_BYTES, MAGIC, JOURNAL_MAGIC = 100, b"SQLite format 3\0", bytes.fromhex("d9d505f920a163d7")
PENDING, RESERVED, SHARED = 2**30, 2**30 + 1, 2**30 + 2
SHARED_BYTES = 510
IN_MEMORY = ":memory:"  # the name of a database that has no file
WAITING = SHARED + SHARED_BYTES  # a byte that SQLite does not lock: here a reader says that it waits


@dataclass(frozen=True, kw_only=True)
class DatabaseKind:
    """What the databases of one kind hold, and how a file of that kind is known.

    Args:
        name: What errors call it, such as "ledger".
        application_id: SQLite's application id, a positive 31-bit number.
        format: The number of the format: SQLite's user version.
        schema: The statements that make its tables.
        unmarked: A statement of the schema of earlier formats, which had no application id; empty if there are none.
        how_to_create: What a caller does to make a new one.
    """

    name: str
    application_id: int
    format: int
    schema: tuple[str, ...]
    unmarked: bytes
    how_to_create: str


class DatabaseExists(DpcompError):
    """A database cannot be created, since a file is there already."""


class Database:
    """A database that this process alone may change; `open_database`, `create_database`, `memory_database` make it.

    Threads take turns. A forked child can neither use it nor release its lock.

    Attributes:
        name: The path, or ":memory:".
    """

    def __init__(self, name: str, connection: sqlite3.Connection, lock: "_OpenFileLock | None"):
        self.name, self._connection, self._file_lock = name, connection, lock
        self._process, self._turn = os.getpid(), threading.RLock()
        self._unusable = ""  # why nothing may be read or written any more
        self._finalizer = weakref.finalize(self, _close, connection, lock, self._process)
        with _fork_turn:
            _open_databases.add(self)

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Run a block as a transaction; when it returns the change is on the disk, and after an error there is none.

        Yields:
            The connection, inside the transaction.

        Raises:
            DpcompError: Nothing was changed: the file can't be written, was replaced, or a reader holds it.
        """
        self.refuse_other_process()
        with self._turn:
            self._refuse_unusable()
            try:
                if self._file_lock is not None:
                    self._file_lock.refuse_replaced()
                    self._file_lock.await_readers()
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException as error:
                self._roll_back()
                if isinstance(error, sqlite3.Error):
                    raise DpcompError(
                        f"{self.name} cannot be written ({error}): nothing was changed. Is the disk full, or may this "
                        "process not write in the folder?"
                    ) from error
                raise
            if self._file_lock is not None:
                self._file_lock.admit_readers()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Run a block that reads, while no other thread changes anything.

        Yields:
            The connection.

        Raises:
            DpcompError: The file cannot be read.
        """
        self.refuse_other_process()
        with self._turn:
            self._refuse_unusable()
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise DpcompError(
                    f"{self.name} cannot be read ({error}): restore the newest whole copy of it"
                ) from error

    def close(self) -> None:
        """Close the file, so that another process may open it; a forked child closes nothing."""
        with self._turn:
            self._unusable = "was closed"
            self._finalizer()

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            # Half a change stands in the file. Readers stay locked out; whoever opens it next rolls it back.
            self._unusable = f"holds half a change that could not be rolled back ({error}); close it and open it again"
            return
        if self._file_lock is not None:
            self._file_lock.admit_readers()

    def refuse_other_process(self) -> None:
        """Refuse a forked child. Raises DpcompError."""
        if os.getpid() != self._process:
            raise DpcompError(f"{self.name} was opened by another process: open it in the process that uses it")

    def _refuse_unusable(self) -> None:
        if self._unusable:
            raise DpcompError(f"{self.name} {self._unusable}")


def _close(connection: sqlite3.Connection, lock: "_OpenFileLock | None", process: int) -> None:
    if os.getpid() != process:
        return
    if lock is not None:
        with suppress(sqlite3.Error):  # a journal that cannot be removed now is empty, or is rolled back later
            connection.execute("PRAGMA journal_mode = DELETE")  # removes the journal's empty file
    connection.close()
    if lock is not None:
        lock.release()


def memory_database(kind: DatabaseKind, fill: Callable[[sqlite3.Connection], None]) -> Database:
    """Make a database in memory.

    Args:
        kind: What it holds.
        fill: Writes the first rows.
    """
    database = Database(IN_MEMORY, _connect("file::memory:"), None)
    _make_tables(database, kind, fill)
    return database


def memory_copy(kind: DatabaseKind, content: bytes) -> Database:
    """Make a database in memory that holds what another one did.

    Args:
        kind: What it holds.
        content: What SQLite's `serialize` returned of the other one.

    Raises:
        DpcompError: The content is damaged, or of another kind or format.
    """
    marked, version = (int.from_bytes(content[place : place + 4], "big") for place in (68, 60))
    if not content.startswith(MAGIC) or (marked, version) != (kind.application_id, kind.format):
        raise DpcompError(f"it is no {kind.name} of format {kind.format}")
    connection = _connect("file::memory:")
    try:
        connection.deserialize(content)
        _refuse_damaged(connection, Path(IN_MEMORY), kind, "integrity_check")
    except sqlite3.Error as error:
        connection.close()
        raise DpcompError(f"it is damaged ({error})") from error
    except DpcompError:
        connection.close()
        raise
    return Database(IN_MEMORY, connection, None)


def create_database(
    path: str | os.PathLike[str], kind: DatabaseKind, fill: Callable[[sqlite3.Connection], None]
) -> Database:
    """Create a database where no file is, or an empty one; nobody else may read it.

    A process that is killed meanwhile leaves an empty file at most.

    Args:
        path: The file.
        kind: What it holds.
        fill: Writes the first rows, in the transaction that makes the tables.

    Returns:
        The database, held by this process.

    Raises:
        DatabaseExists: A file is there already.
        DpcompError: The file cannot be written, or another process holds it.
    """
    place = _on_linux(path, kind)
    try:
        try:
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            made = True
        except FileExistsError:
            descriptor = os.open(place, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            made = False
    except OSError as error:
        raise DpcompError(
            f"the {kind.name} {place} cannot be created ({error}): does its folder exist, and may this process write "
            "there?"
        ) from error
    with ExitStack() as on_failure:
        lock = _OpenFileLock(descriptor, place, kind)
        on_failure.callback(lock.release)
        lock.refuse_unfit_file()
        if not made:
            lock.refuse_content()
        lock.hold()
        if made:
            on_failure.callback(lambda: place.unlink(missing_ok=True))
        database = _held(lock)
        on_failure.callback(database.close)
        with database.reading() as connection:
            connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()  # rolls back what was cut short
        lock.refuse_content()  # the journal is gone now
        os.fchmod(descriptor, 0o600)
        _make_tables(database, kind, fill)
        try:
            sync(place.absolute().parent)
        except OSError as error:
            raise DpcompError(f"the {kind.name} {place} cannot be created ({error})") from error
        on_failure.pop_all()
        return database


def open_database(path: str | os.PathLike[str], kind: DatabaseKind) -> Database:
    """Open an existing database, which this process holds from then on.

    Args:
        path: The file.
        kind: What it must hold.

    Returns:
        The database. A change that was cut short by a crash was rolled back.

    Raises:
        DpcompError: No file is there, another process or another object of this one holds it, it is of another kind or
            format, or it is damaged. A file that is refused is not changed.
    """
    place = _on_linux(path, kind)
    with ExitStack() as on_failure:
        lock = _OpenFileLock(_existing(place, os.O_RDWR, kind), place, kind)
        on_failure.callback(lock.release)
        lock.refuse_unfit_file()
        lock.refuse_other_content()
        if not os.access(Path(os.path.realpath(place)).parent, os.W_OK):
            raise DpcompError(
                f"the {kind.name} {place} cannot be written: this process may not write in its folder, where each "
                "change needs a journal. Make the folder writable; to look at the file needs no writing"
            )
        lock.hold()
        lock.await_readers()  # a change that was cut short is rolled back with the first look at the file
        database = _held(lock)
        on_failure.callback(database.close)
        with database.reading() as connection:
            _refuse_damaged(connection, place, kind, "integrity_check")
        lock.refuse_other_content()  # it is empty if its creation was cut short
        lock.refuse_replaced()
        lock.admit_readers()
        on_failure.pop_all()
        return database


@contextmanager
def look_at_database(path: str | os.PathLike[str], kind: DatabaseKind) -> Iterator[sqlite3.Connection]:
    """Read a database that any process may hold; nothing in its folder is changed, and its holder's lock stays.

    A change of the holder waits until the block ends.

    Args:
        path: The file.
        kind: What it must hold.

    Yields:
        A connection that reads the state after one of the holder's changes.

    Raises:
        DpcompError: No file is there, it is of another kind or format, or damaged, or a change takes too long.
    """
    place = _on_linux(path, kind)
    with ExitStack() as at_the_end:
        lock = _OpenFileLock(_existing(place, os.O_RDONLY, kind), place, kind)
        at_the_end.callback(lock.release)
        lock.refuse_unfit_file()
        lock.refuse_other_content()
        lock.await_change()
        file, mode = Path(os.path.realpath(place)), "ro"
        if _size(_journal_of(file)) > 0:
            # A holder was killed in the middle of a change. To see the state before it, roll back a copy.
            folder = at_the_end.enter_context(TemporaryDirectory())
            copy, mode = Path(folder) / "copy", "rw"
            copyfile(file, copy)
            copyfile(_journal_of(file), _journal_of(copy))
            file = copy
        connection = _connect(_uri(file, mode))
        at_the_end.callback(connection.close)
        try:
            # Indexes, which take ten times as long to check, are for the holder: a look reads the tables.
            _refuse_damaged(connection, place, kind, "quick_check")
            lock.refuse_replaced()
            yield connection
        except sqlite3.Error as error:
            raise DpcompError(f"{place} cannot be read ({error}): restore the newest whole copy of it") from error


class _OpenFileLock:
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
            with suppress(OSError), _journal_of(Path(os.path.realpath(self.place))).open("rb") as journal:
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


def _on_linux(path: str | os.PathLike[str], kind: DatabaseKind) -> Path:
    if sys.platform != "linux":
        raise DpcompError(
            f"the {kind.name} {path} cannot be locked on this system: locks of an open file are Linux' alone. Keep it "
            "on Linux, or in memory"
        )
    return Path(path)


def _existing(place: Path, flags: int, kind: DatabaseKind) -> int:
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


def _held(lock: _OpenFileLock) -> Database:
    connection = _connect(_uri(lock.place, "rw"))
    # TRUNCATE and FULL: with the return of a commit the file is on the disk, and the journal is empty, there too.
    try:
        for pragma in ("journal_mode = TRUNCATE", "synchronous = FULL", "secure_delete = ON"):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error as error:
        connection.close()
        raise DpcompError(f"{lock.place} cannot be read ({error}): restore the newest whole copy of it") from error
    return Database(str(lock.place), connection, lock)


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def _uri(file: Path, mode: str) -> str:
    # unix-none is SQLite's file system without locks.
    return f"file:{quote(os.fsencode(file.absolute()))}?mode={mode}&vfs=unix-none"


def _make_tables(database: Database, kind: DatabaseKind, fill: Callable[[sqlite3.Connection], None]) -> None:
    with database.changing() as connection:
        connection.execute(f"PRAGMA application_id = {kind.application_id}")
        connection.execute(f"PRAGMA user_version = {kind.format}")
        for statement in kind.schema:
            connection.execute(statement)
        fill(connection)


def _refuse_damaged(connection: sqlite3.Connection, place: Path, kind: DatabaseKind, check: str) -> None:
    try:
        found = connection.execute(f"PRAGMA {check}(1)").fetchone()[0]
    except UnicodeDecodeError as error:  # it tells of a name that is damaged
        found = error
    if found != "ok":
        raise DpcompError(
            f"the {kind.name} {place} is damaged ({found}): a copy that was made during a change needs the file "
            f"{_journal_of(place).name} of that moment beside it. Restore the newest whole copy"
        )


def _journal_of(file: Path) -> Path:
    return file.with_name(f"{file.name}-journal")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


_open_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_fork_turn = threading.Lock()
_stopped: list[Database] = []  # while the process forks


def _stop_changes() -> None:
    """Wait until no change is being made, so that a child's copy of a connection is in none."""
    _fork_turn.acquire()
    for database in _open_databases:
        database._turn.acquire()  # pyright: ignore[reportPrivateUsage]
        _stopped.append(database)


def _resume() -> None:
    while _stopped:
        _stopped.pop()._turn.release()  # pyright: ignore[reportPrivateUsage]
    _fork_turn.release()


def _resume_in_child() -> None:
    for database in _stopped:
        lock = database._file_lock  # pyright: ignore[reportPrivateUsage]
        if lock is not None:
            lock.forget()  # else the lock would last as long as the child
    _resume()


if sys.platform == "linux":
    os.register_at_fork(before=_stop_changes, after_in_parent=_resume, after_in_child=_resume_in_child)

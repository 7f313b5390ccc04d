"""Databases: SQLite files that one process holds, and whose every change is on the disk when it returns.

SQLite is told to take no locks, which belong to a process and an inode: the locks of `file_lock` are taken instead.

The rollback journal, and not a write-ahead log: after each change the file alone is complete.
"""

import os
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from urllib.parse import quote

from dpcomp.core.database.file_lock import OpenFileLock, existing, on_linux
from dpcomp.core.database.kind import MAGIC, DatabaseKind, journal_of
from dpcomp.core.errors import DpcompError
from dpcomp.core.storage import sync

IN_MEMORY = ":memory:"  # the name of a database that has no file


class Database:
    """A database that this process alone may change; `open_database`, `create_database`, `memory_database` make it.

    Threads take turns. A forked child can neither use it nor release its lock.

    Attributes:
        name: The path, or ":memory:".
    """

    def __init__(self, name: str, connection: sqlite3.Connection, lock: OpenFileLock | None):
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


def _close(connection: sqlite3.Connection, lock: OpenFileLock | None, process: int) -> None:
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
    place = on_linux(path, kind)
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
        lock = OpenFileLock(descriptor, place, kind)
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
    place = on_linux(path, kind)
    with ExitStack() as on_failure:
        lock = OpenFileLock(existing(place, os.O_RDWR, kind), place, kind)
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
    place = on_linux(path, kind)
    with ExitStack() as at_the_end:
        lock = OpenFileLock(existing(place, os.O_RDONLY, kind), place, kind)
        at_the_end.callback(lock.release)
        lock.refuse_unfit_file()
        lock.refuse_other_content()
        lock.await_change()
        file, mode = Path(os.path.realpath(place)), "ro"
        if _size(journal_of(file)) > 0:
            # A holder was killed in the middle of a change. To see the state before it, roll back a copy.
            folder = at_the_end.enter_context(TemporaryDirectory())
            copy, mode = Path(folder) / "copy", "rw"
            copyfile(file, copy)
            copyfile(journal_of(file), journal_of(copy))
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


def _held(lock: OpenFileLock) -> Database:
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
            f"{journal_of(place).name} of that moment beside it. Restore the newest whole copy"
        )


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

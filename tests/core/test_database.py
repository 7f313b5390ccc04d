"""SQLite files that one process holds: what others can and cannot do meanwhile, and what a failure leaves."""

import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from dpcomp.core.database import file_lock as module
from dpcomp.core.database.database import create_database, look_at_database, memory_database, open_database
from dpcomp.core.database.kind import DatabaseKind
from dpcomp.core.errors import DpcompError

SCHEMA = "CREATE TABLE notes (number INTEGER PRIMARY KEY, text TEXT)"
KIND = DatabaseKind(
    name="notebook",
    application_id=12345678,
    format=4,
    schema=(SCHEMA,),
    unmarked=b"CREATE TABLE old_notes",
    how_to_create="Ask for a new one",
)


def created(path):
    return create_database(path, KIND, lambda connection: connection.execute("INSERT INTO notes VALUES (0, 'first')"))


def write(database, text="more"):
    with database.changing() as connection:
        connection.execute("INSERT INTO notes (text) VALUES (?)", (text,))


def write_and_fail(database):
    with database.changing() as connection:
        connection.execute("INSERT INTO notes (text) VALUES ('half')")
        raise ZeroDivisionError


def count(database):
    with database.reading() as connection:
        return connection.execute("SELECT COUNT(*) FROM notes").fetchone()[0]


def looked(path):
    with look_at_database(path, KIND) as connection:
        return connection.execute("SELECT COUNT(*) FROM notes").fetchone()[0]


def interpreter(script):
    """The command that runs a script in an interpreter of its own, with this module's kind of database."""
    names = "create_database, look_at_database, open_database"
    return [
        sys.executable,
        "-c",
        "import os, signal, sys\n"
        f"from dpcomp.core.database.database import {names}\n"
        "from dpcomp.core.database.kind import DatabaseKind\n"
        "from dpcomp.core.errors import DpcompError\n"
        f"KIND = {KIND!r}\n{script}",
    ]


def run(script, *arguments):
    return subprocess.run([*interpreter(script), *map(str, arguments)], capture_output=True, text=True)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_was_written_is_there_again_and_nothing_else_lies_in_the_folder(tmp_path):
    path = tmp_path / "some.db"
    with closing(created(path)) as database:
        write(database)
        pragmas = {}
        with database.reading() as connection:
            for name in ("journal_mode", "synchronous", "secure_delete", "application_id", "user_version"):
                pragmas[name] = connection.execute(f"PRAGMA {name}").fetchone()[0]
    assert pragmas == {
        "journal_mode": "truncate", "synchronous": 2, "secure_delete": 1, "application_id": 12345678, "user_version": 4,
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [path]
    with closing(open_database(path, KIND)) as database:
        assert count(database) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_change_that_raises_is_no_change(tmp_path):
    for database in (created(tmp_path / "some.db"), memory_database(KIND, lambda _: None)):
        before = count(database)
        with pytest.raises(ZeroDivisionError):
            write_and_fail(database)
        assert count(database) == before
        write(database)
        assert count(database) == before + 1
        database.close()
        with pytest.raises(DpcompError, match="was closed"):
            write(database)


def test_a_process_may_go_to_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    database = created("some.db")
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    write(database)
    database.close()
    assert looked(tmp_path / "some.db") == 2


def test_only_its_owner_may_read_a_file_from_its_birth(tmp_path):
    before = os.umask(0)
    try:
        database = created(tmp_path / "some.db")
        write(database)
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes == {"some.db": 0o600, "some.db-journal": 0o600}
    database.close()


@pytest.mark.parametrize("name", ["some.db", "link.db", "../{}/some.db"])
def test_one_holder_at_a_time_whatever_else_opens_and_closes_the_file(tmp_path, name):
    path = tmp_path / "some.db"
    database = created(path)
    (tmp_path / "link.db").symlink_to(path)
    path.read_bytes()
    with closing(sqlite3.connect(path)) as other:
        other.execute("SELECT * FROM notes").fetchall()
    assert looked(path) == 1
    again = tmp_path / name.format(tmp_path.name)
    with pytest.raises(DpcompError, match="open in another process, or twice in this process"):
        open_database(again, KIND)
    script = "try:\n    open_database(sys.argv[1], KIND)\nexcept DpcompError as error:\n    print(error)"
    assert "open in another process" in run(script, again).stdout
    script = "with look_at_database(sys.argv[1], KIND) as c: print(len(c.execute('SELECT * FROM notes').fetchall()))"
    assert run(script, again).stdout == "1\n"
    with closing(sqlite3.connect(path, timeout=0)) as other, pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("DELETE FROM notes")
    write(database)
    database.close()
    with closing(open_database(again, KIND)) as database:
        assert count(database) == 2


def test_two_names_of_a_file_are_refused(tmp_path):
    created(tmp_path / "some.db").close()
    (tmp_path / "other.db").hardlink_to(tmp_path / "some.db")
    for act in (open_database, lambda path, kind: looked(path)):
        with pytest.raises(DpcompError, match="2 names"):
            act(tmp_path / "some.db", KIND)


def test_a_look_sees_whole_changes_while_they_are_made(tmp_path):
    path, counts, end = tmp_path / "some.db", [], threading.Event()
    database = created(path)

    def look():
        while not end.is_set():
            with look_at_database(path, KIND) as connection:
                counts.append(connection.execute("SELECT COUNT(*), MAX(number) FROM notes").fetchone())

    def touch():
        while not end.is_set():
            path.read_bytes()

    threads = [threading.Thread(target=work) for work in (look, touch)]
    for thread in threads:
        thread.start()
    changes = 0
    while len(counts) < 30 and changes < 300:  # without a pause, and still readers are let in
        changes += 1
        with database.changing() as connection:
            for _ in range(2):
                connection.execute("INSERT INTO notes (text) VALUES (?)", ("x" * 3000,))
    end.set()
    for thread in threads:
        thread.join()
    database.close()
    assert len(counts) >= 30 and all(number == largest + 1 and number % 2 == 1 for number, largest in counts)
    assert looked(path) == 1 + 2 * changes


def test_a_reader_that_stays_makes_a_change_fail_and_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    path = tmp_path / "some.db"
    database = created(path)
    with look_at_database(path, KIND), pytest.raises(DpcompError, match="a reader has held"):
        write(database)
    write(database)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM notes").fetchall()
        with pytest.raises(DpcompError, match="a reader has held"):
            write(database)
        reader.execute("COMMIT")
    write(database)
    assert count(database) == 3
    database.close()


KILLED = """
database = open_database(sys.argv[1], KIND)
with database.changing() as connection:
    connection.execute("PRAGMA cache_size = 1")  # pages reach the file before the change is complete
    connection.execute("PRAGMA cache_spill = 1")
    connection.execute("UPDATE notes SET text = 'lost' || text")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def half_changed(path):
    """A file whose last change was cut short by a kill, with the journal that takes it back."""
    database = created(path)
    with database.changing() as connection:
        connection.executemany("INSERT INTO notes (text) VALUES (?)", [("x" * 3000,)] * 100)
    database.close()
    before = path.read_bytes()
    assert run(KILLED, path).returncode == -signal.SIGKILL
    assert path.read_bytes() != before
    return before


def texts(connection):
    return connection.execute("SELECT COUNT(*) FROM notes WHERE text LIKE 'lost%'").fetchone()[0]


def test_a_change_that_was_cut_short_is_rolled_back_by_the_next_holder_and_hidden_from_looks(tmp_path):
    path = tmp_path / "some.db"
    before = half_changed(path)
    left = contents(tmp_path)
    with look_at_database(path, KIND) as connection:
        assert (texts(connection), connection.execute("SELECT COUNT(*) FROM notes").fetchone()[0]) == (0, 101)
    assert contents(tmp_path) == left  # a look changes nothing
    with closing(open_database(path, KIND)) as database, database.reading() as connection:
        assert texts(connection) == 0
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes()[100:] == before[100:]


def test_a_creation_that_was_cut_short_can_be_made_again(tmp_path):
    path = tmp_path / "some.db"
    script = (
        "def fill(connection):\n"
        "    connection.execute('PRAGMA cache_size = 1')\n"
        "    connection.executemany('INSERT INTO notes (text) VALUES (?)', [('x' * 3000,)] * 100)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "create_database(sys.argv[1], KIND, fill)"
    )
    assert run(script, path).returncode == -signal.SIGKILL
    assert path.stat().st_size > 0
    created(path).close()
    path.write_bytes(b"")
    with pytest.raises(DpcompError, match=r"is empty.*Ask for a new one"):
        open_database(path, KIND)
    path.chmod(0o644)
    created(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert looked(path) == 1
    with pytest.raises(DpcompError, match="exists already"):
        created(path)


CHILD_THAT_ENDS = """
database = create_database(sys.argv[1], KIND, lambda _: None)
if child := os.fork():
    os.waitpid(child, 0)
    with database.changing() as connection:
        connection.execute("INSERT INTO notes VALUES (7, 'still held')")
    try:
        open_database(sys.argv[1], KIND)
    except DpcompError:
        print("still locked")
else:
    for act in (database.changing, database.reading):
        try:
            with act():
                print("used")
        except DpcompError as error:
            print(error, flush=True)
    database.close()
"""


def test_a_forked_child_can_neither_use_nor_release_a_database(tmp_path):
    ran = run(CHILD_THAT_ENDS, tmp_path / "some.db")
    assert ran.stdout.count("was opened by another process") == 2 and ran.stdout.endswith("still locked\n"), ran.stderr
    assert looked(tmp_path / "some.db") == 1


CHILD_THAT_STAYS = """
import time
database = create_database(sys.argv[1], KIND, lambda _: None)
if child := os.fork():
    os.write(1, b"%d\\n" % child)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""


def test_a_forked_child_that_outlives_its_parent_keeps_no_lock(tmp_path):
    path = tmp_path / "some.db"
    with subprocess.Popen([*interpreter(CHILD_THAT_STAYS), str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert process.wait() == -signal.SIGKILL
            await_unlocked(path)
        finally:
            os.kill(child, signal.SIGKILL)


def await_unlocked(path):
    """Open a database once a child has given up its copy of the lock, which it does as soon as it runs."""
    for _ in range(600):
        try:
            return open_database(path, KIND).close()
        except DpcompError:
            time.sleep(0.1)
    raise AssertionError("the child keeps the lock")


def test_a_fork_waits_for_the_change_of_another_thread(tmp_path):
    script = (
        "import threading, time\n"
        "database, within = create_database(sys.argv[1], KIND, lambda _: None), threading.Event()\n"
        "def change():\n"
        "    with database.changing() as connection:\n"
        "        connection.execute('INSERT INTO notes VALUES (1, NULL)')\n"
        "        within.set(); time.sleep(0.3)\n"
        "thread = threading.Thread(target=change); thread.start(); within.wait()\n"
        "if child := os.fork():\n"
        "    os.waitpid(child, 0)\n"
        "    thread.join()\n"
        "else:\n"
        "    os._exit(database._connection.in_transaction)\n"
    )
    assert run(script, tmp_path / "some.db").returncode == 0
    assert looked(tmp_path / "some.db") == 1


def foreign(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


STRANGERS = {
    "text": lambda path: path.write_bytes(b"not a database, but somebody's notes\n" * 50),
    "short": lambda path: path.write_bytes(b"x"),
    "empty": lambda path: path.touch(),
    "mails": lambda path: foreign(path, "CREATE TABLE mails (a)", "INSERT INTO mails VALUES (1)"),
    "write-ahead": lambda path: foreign(path, "PRAGMA journal_mode = WAL", "CREATE TABLE mails (a)"),
    "another application": lambda path: foreign(path, "PRAGMA application_id = 77", SCHEMA),
    "no tables": lambda path: foreign(path, "PRAGMA user_version = 4"),
    "same tables": lambda path: foreign(path, "PRAGMA user_version = 4", SCHEMA),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path, stranger):
    path = tmp_path / "some.db"
    STRANGERS[stranger](path)
    before = contents(tmp_path)
    for act in (lambda: open_database(path, KIND), lambda: looked(path)):
        with pytest.raises(DpcompError, match="is no notebook"):
            act()
        assert contents(tmp_path) == before
    if stranger != "empty":
        with pytest.raises(DpcompError, match="exists already"):
            created(path)
        assert contents(tmp_path) == before


@pytest.mark.parametrize("number", [0, 3, 5])
def test_another_format_is_refused_by_its_number(tmp_path, number):
    for name, statements in {
        "marked.db": ("PRAGMA application_id = 12345678", SCHEMA),
        "unmarked.db": ("CREATE TABLE old_notes (a)",),
        "log.db": ("PRAGMA journal_mode = WAL", "CREATE TABLE old_notes (a)"),
    }.items():
        path = tmp_path / name
        foreign(path, *statements, f"PRAGMA user_version = {number}")
        before = contents(tmp_path)
        for act in (lambda path=path: open_database(path, KIND), lambda path=path: looked(path)):
            with pytest.raises(DpcompError, match=f"notebook format {number}, not 4: use the version of dpcomp"):
                act()
        assert contents(tmp_path) == before


def test_a_file_that_another_program_put_into_write_ahead_mode_is_refused(tmp_path):
    path = tmp_path / "some.db"
    created(path).close()
    foreign(path, "PRAGMA journal_mode = WAL")
    with pytest.raises(DpcompError, match="PRAGMA journal_mode = DELETE"):
        open_database(path, KIND)
    foreign(path, "PRAGMA journal_mode = DELETE")
    open_database(path, KIND).close()


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("pipe", "folder", "dangling"):
        for act in (lambda path: open_database(path, KIND), looked, created):
            with pytest.raises(DpcompError, match=name):
                act(tmp_path / name)


def test_a_path_where_nothing_is_gets_an_error_with_what_is_similar(tmp_path):
    created(tmp_path / "client-7.db").close()
    for act in (lambda path: open_database(path, KIND), looked):
        with pytest.raises(DpcompError, match=r"no notebook at .*cleint-7\.db; the folder has client-7\.db. Ask for a"):
            act(tmp_path / "cleint-7.db")
        with pytest.raises(DpcompError, match="no such folder"):
            act(tmp_path / "no" / "client-7.db")
    with pytest.raises(DpcompError, match="does its folder exist"):
        created(tmp_path / "no" / "client-7.db")
    assert [file.name for file in tmp_path.iterdir()] == ["client-7.db"]


@pytest.mark.parametrize("how", ["removed", "replaced", "damaged"])
def test_a_file_that_is_gone_or_another_takes_no_change(tmp_path, how):
    path, backup = tmp_path / "some.db", tmp_path / "backup.db"
    database = created(path)
    backup.write_bytes(path.read_bytes())
    write(database)
    if how == "removed":
        path.unlink()
    elif how == "replaced":
        backup.replace(path)
    if how in ("removed", "replaced"):
        with pytest.raises(DpcompError, match=how):
            write(database)
    database.close()
    if how == "damaged":
        path.write_bytes(path.read_bytes()[:4096])
        with pytest.raises(DpcompError, match=r"damaged|cannot be read"):
            open_database(path, KIND)


def test_a_full_disk_refuses_the_change_and_takes_it_later(tmp_path):
    path = tmp_path / "some.db"
    database = created(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
        with pytest.raises(
            DpcompError, match=rf"{path.name} cannot be written .*nothing was changed. Is the disk full"
        ):
            write(database, "x" * 10_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(DpcompError, match="cannot be written"):
            created(tmp_path / "other.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert looked(path) == count(database) == 1
    write(database, "x" * 10_000)
    database.close()
    assert looked(path) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_change_that_cannot_be_rolled_back_ends_the_use_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    database = created(tmp_path / "some.db")
    real = database._connection

    class Failing:
        in_transaction = True

        def execute(self, statement, *values):
            if statement in ("COMMIT", "ROLLBACK"):
                raise sqlite3.OperationalError("disk I/O error")
            return real.execute(statement, *values)

    database._connection = Failing()
    with pytest.raises(DpcompError, match="cannot be written"):
        write(database)
    with pytest.raises(DpcompError, match="close it and open it again"):
        write(database)
    with pytest.raises(DpcompError, match="have taken"):
        looked(tmp_path / "some.db")
    database.close()
    with closing(open_database(tmp_path / "some.db", KIND)) as database:
        assert count(database) == 1


def test_a_folder_that_may_not_be_written_is_refused_before_any_change(tmp_path, monkeypatch):
    path = tmp_path / "some.db"
    created(path).close()
    before = contents(tmp_path)
    real = os.access
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path and real(place, mode))
    with pytest.raises(DpcompError, match="may not write in its folder"):
        open_database(path, KIND)
    assert looked(path) == 1
    assert contents(tmp_path) == before


def test_a_database_in_memory_is_nobody_elses():
    for _ in range(2):
        with closing(memory_database(KIND, lambda _: None)) as database:
            write(database)
            assert count(database) == 1

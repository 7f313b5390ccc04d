"""Ledgers with many charges, written as a ledger writes them, without a sync for each."""

import sqlite3
from contextlib import closing

import dpcomp as dp
from dpcomp.privacy.ledger import ledger_file
from dpcomp.privacy.ledger.cost_text import cost_as_text


def fill(path, charges):
    """Append (address, steps, cost) to a ledger that is closed."""
    with closing(sqlite3.connect(path)) as database:
        triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            database.execute(f"DROP TRIGGER {name}")
        mark = ledger_file.read_head(database, str(path)).mark

        def rows():
            nonlocal mark
            for number, (address, steps, cost) in enumerate(charges, mark.count + 1):
                fields = (str(address.run), address.client, address.round, steps, *cost_as_text(cost))
                when = 1_800_000_000 + number
                digest = ledger_file._digest(mark.digest, ["charges", number, when, *fields])
                mark = dp.LedgerMark(count=number, digest=digest)
                yield (number, when, *fields, digest)

        database.executemany("INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows())
        database.execute("UPDATE head SET count = ?, digest = ?", (mark.count, mark.digest))
        for _, sql in triggers:
            database.execute(sql)
        database.commit()

"""A process that charges a ledger until it is killed, while its threads hash the file and copy it."""

import hashlib
import shutil
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import dpcomp as dp

PIPELINE = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1))
NAME = "ledger.db"


def live(folder: str, line: Connection, life: int) -> None:
    """Charge, spend the permit, and say so; the ledger of the first life is created, those of others are opened."""
    path, spent = Path(folder) / NAME, 0
    ledger = dp.Ledger.create(path) if life == 0 else dp.Ledger(path)
    before = len(dp.Ledger.read(path).entries)

    def hash_the_file() -> None:
        while True:
            hashlib.sha256(path.read_bytes())

    def copy_the_file() -> None:
        for number in range(10**6):
            # The copy must hold what was said before it began.
            copy = path.with_name(f"backup-{life}-{number}-{before + spent}")
            shutil.copyfile(path, copy.with_name("half"))
            copy.with_name("half").rename(copy)
            time.sleep(0.01)

    for work in (hash_the_file, copy_the_file):
        threading.Thread(target=work, daemon=True).start()
    for number in range(10**6):
        permit = ledger.charge(PIPELINE.cost, dp.Address(5, number % 3, life * 10**6 + number))
        permit.spend(PIPELINE.cost, seeded=False)
        spent += 1
        line.send(permit.address)

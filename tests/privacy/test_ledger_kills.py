"""Killed at random moments, copied, hashed and read meanwhile, a ledger never says less than was released."""

import multiprocessing
import sqlite3
import time
from contextlib import closing, suppress

import numpy as np
import pytest

import dpcomp as dp
from tests.privacy.killed_ledger import NAME, PIPELINE, live


def live_and_die(folder, life, rng, released):
    """Let a process charge for a random time, with readers, and kill it; `released` grows by what it said."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=live, args=(str(folder), theirs, life), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(600), "the process charges nothing"
    released.add(ours.recv())
    end = time.monotonic() + float(rng.exponential(0.03))
    while True:
        while ours.poll():
            released.add(ours.recv())
        record = dp.Ledger.read(folder / NAME)
        assert released <= {entry.address for entry in record.entries}
        with closing(sqlite3.connect(folder / NAME)) as foreign:
            assert foreign.execute("SELECT COUNT(*) FROM charges").fetchone()[0] >= len(released)
        if time.monotonic() > end:
            break
    process.kill()
    process.join()
    assert process.exitcode == -9, "the process ended by itself"
    with suppress(EOFError):
        while True:
            released.add(ours.recv())
    ours.close()


def check(folder, kills, seed):
    multiprocessing.get_context("forkserver").set_forkserver_preload(["dpcomp.federated", "dpcomp.pipeline"])
    path, rng, released, complete, refused = folder / NAME, np.random.default_rng(seed), set(), 0, 0
    for life in range(kills):
        live_and_die(folder, life, rng, released)
        looked = dp.Ledger.read(path)  # before anybody repairs what the kill has left
        with dp.Ledger(path) as ledger:
            assert ledger.mark == looked.mark
            assert all(ledger.charged(address) for address in released)
            spent = max(sum(address.client == client for address in released) for client in range(3))
            assert ledger.guarantee(1e-5).epsilon >= PIPELINE.guarantee(spent, 1e-5).epsilon
            assert len(looked.entries) <= len(released) + life + 1  # a kill costs a charge at most
        for copy in folder.glob("backup-*"):
            try:
                entries = dp.Ledger.read(copy).entries
            except dp.DpcompError:
                refused += 1
            else:
                complete += 1
                assert len(entries) >= int(copy.name.split("-")[-1])
            copy.unlink()
        (folder / "half").unlink(missing_ok=True)
        assert [file.name for file in folder.iterdir()] == [NAME]
    assert complete > kills / 2, "hardly any copy was complete"
    return len(released), complete, refused


def test_a_ledger_survives_kills_copies_and_readers(tmp_path):
    check(tmp_path, 12, seed=0)


@pytest.mark.slow
def test_a_ledger_survives_two_hundred_kills(tmp_path):
    print(check(tmp_path, 200, seed=1))

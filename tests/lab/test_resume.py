import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from dpcomp.lab.cli import main
from dpcomp.lab.results.results_file import REPORT, results_of
from dpcomp.lab.sweep.plan import standing_of
from dpcomp.lab.sweep.sweep import sweep
from dpcomp.lab.sweep.trial import LOCK
from dpcomp.lab.tasks import SHIPPED_TASKS
from tests.lab.test_sweep import config_in, finished, trained

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "import sys; from dpcomp.lab.cli import main; sys.exit(main(sys.argv[1:]))", "sweep")


@pytest.fixture
def config(tmp_path):
    return config_in(tmp_path / "one")


@pytest.fixture(scope="module")
def swept_once(tmp_path_factory):
    """A config whose six trials are finished, and a folder with all that was beside it then."""
    base = tmp_path_factory.mktemp("swept")
    (base / "used").mkdir()
    config = config_in(base / "used" / "one")  # which names this folder, so that the trials are those of this path
    assert main(["sweep", str(config)]) == 0
    shutil.copytree(base / "used", base / "kept")
    return config, base / "kept"


@pytest.fixture
def swept(swept_once):
    """A config whose six trials are finished, as if no test had been there before."""
    config, kept = swept_once
    shutil.rmtree(config.parents[1])
    shutil.copytree(kept, config.parents[1])
    return config


def test_a_sweep_killed_in_the_middle_ends_as_one_that_was_not_and_trains_nothing_twice(tmp_path, swept):
    killed = config_in(tmp_path / "killed")
    child = subprocess.Popen([*COMMAND, str(killed)], cwd=ROOT)
    while len(finished(killed)) < 2:
        assert child.poll() is None
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    before = finished(killed)
    assert 2 <= len(before) < 6
    assert main(["sweep", str(killed)]) == 0
    after = finished(killed)
    assert after.items() >= before.items()
    assert len(after) == 6
    assert 6 <= trained(killed) <= 7  # the one that the signal met began twice, and ended once
    assert swept.with_suffix(".csv").read_bytes() == killed.with_suffix(".csv").read_bytes()
    assert not [path for path in killed.parent.rglob("*") if path.name == LOCK or path.suffix in (".part", ".running")]


@pytest.mark.slow
def test_sigterm_ends_a_sweep_with_its_processes_and_keeps_what_is_finished(tmp_path):
    ended = config_in(tmp_path / "ended")
    ended.write_text(ended.read_text().replace("rounds = 2", "rounds = 40"), encoding="utf-8")
    child = subprocess.Popen([*COMMAND, str(ended), "--jobs", "2"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not finished(ended):
        assert child.poll() is None
        time.sleep(0.05)
    workers = _children_of(child.pid)
    assert workers
    child.terminate()
    _, said = child.communicate(timeout=60)
    assert child.returncode == 143
    assert "ended by SIGTERM" in said
    kept = finished(ended)
    assert 1 <= len(kept) < 6
    assert ended.with_suffix(".jsonl").read_text().count("\n") == len(kept)  # folded in
    deadline = time.monotonic() + 30
    while left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _children_of(parent: int) -> list[int]:
    """Return the processes that a process started, as Linux tells."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.read_text().split(" ", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(rest.rpartition(")")[2].split()[1]) == parent:
            found.append(int(pid))
    return found


def test_a_report_that_is_torn_is_not_taken_for_a_finished_one(swept):
    config = swept
    before, results = finished(config), results_of(config)
    torn, *others = results.path.read_bytes().splitlines(keepends=True)
    name = next(iter(before))
    results.path.write_bytes(b"".join(others))
    results.folder_of(name).mkdir(parents=True)
    (results.folder_of(name) / REPORT).write_bytes(torn[: len(torn) // 2])
    sweep([config], SHIPPED_TASKS, progress=False)
    assert trained(config) == 7
    after = finished(config)
    assert after[name]["curves"]["test_accuracy"] == before[name]["curves"]["test_accuracy"]
    assert [after[other] == before[other] for other in before] == [other != name for other in before]


def test_another_value_keeps_what_is_finished_and_so_does_another_config(swept, capsys):
    config = swept
    before = finished(config)
    config.write_text(config.read_text().replace("[0.1, 0.05]", "[0.2, 0.1, 0.05]"), encoding="utf-8")
    again = sweep([config], SHIPPED_TASKS, progress=False)
    assert [len(outcome.reports) for outcome in again.outcomes] == [2, 2, 2]
    assert finished(config).items() >= before.items()
    assert trained(config) == 9
    text = config.read_text()
    config.write_text(
        text.replace("delta = 1e-4", "delta = 1e-3").replace("[0.2, 0.1, 0.05]", "[0.2]"), encoding="utf-8"
    )
    assert main(["sweep", str(config)]) == 0
    assert trained(config) == 12
    printed = capsys.readouterr().err
    assert "6 results do not count: the config has no such trial (any more)" in printed
    assert "3 results do not count: the config differs from theirs in delta" in printed
    config.write_text(text, encoding="utf-8")
    standing = standing_of(config)
    assert standing.finished == before | standing.finished and len(standing.finished) == 9
    assert len(standing.left_out) == 3
    sweep([config], SHIPPED_TASKS, progress=False)
    assert trained(config) == 12


def test_what_another_process_holds_is_waited_for_and_not_trained_twice(config):
    name, found = "fraction=0.1/learning_rate=2/seed-0", []
    held = results_of(config).folder_of(name)
    held.mkdir(parents=True)
    with FileLock(held / LOCK):
        other = threading.Thread(
            target=lambda: found.append(sweep([config], SHIPPED_TASKS, progress=False)), daemon=True
        )
        other.start()
        while len(finished(config)) < 3:  # the other points' first seeds
            time.sleep(0.05)
        time.sleep(0.2)
        assert other.is_alive()
        assert name not in finished(config)
    other.join(timeout=60)
    assert not found[0].failures
    assert len(finished(config)) == trained(config) == 6


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_work(config):
    both = [
        subprocess.Popen([*COMMAND, str(config), "--jobs", "2"], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)
    ]
    printed = [child.communicate()[0] for child in both]
    assert [child.returncode for child in both] == [0, 0]
    assert printed[0] == printed[1]
    assert trained(config) == 6

"""The file of results: reports are folded into it by several processes, which may be killed at any moment."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpcomp.core.errors import ConfigError
from dpcomp.lab.results.results_file import FORMAT, ResultsFile, results_of

ROOT = Path(__file__).parents[2]


def a_result(number, **config):
    return {
        "format": FORMAT,
        "trial": f"point/seed-{number}",
        "config": config,
        "seed": number,
        "curves": {"round": [1, 2]},
    }


# Writes results of its own numbers and folds after every third, for ever.
FOLDER = """
import itertools, sys
from pathlib import Path
from dpcomp.lab.results.results_file import FORMAT, ResultsFile

file, first, step = ResultsFile(path=Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
there = {report["seed"] for report in file.read()}
for number in itertools.count(first, step):
    if number not in there:
        trial = f"point/seed-{number}"
        file.write({"format": FORMAT, "trial": trial, "config": {}, "seed": number, "padding": "x" * 5000})
        print(number, flush=True)
    if number % 3 == 0:
        file.fold()
"""


def started(file, first, step):
    command = [sys.executable, "-c", FOLDER, str(file.path), str(first), str(step)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_nothing_is_lost_or_counted_twice_by_processes_that_fold_at_once_and_are_killed(tmp_path):
    file, written, rng = ResultsFile(path=tmp_path / "some.jsonl"), set(), random.Random(0)
    for _ in range(6):
        children = [started(file, first, 2) for first in (0, 1)]
        for child in children:
            assert child.stdout.readline()  # it has written one more
        time.sleep(0.02 + 0.1 * rng.random())
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
        for child in children:
            written |= {int(line) for line in child.communicate()[0].splitlines()}
        found = [report["seed"] for report in file.read()]
        assert len(found) == len(set(found))
        assert written <= set(found)
    before = file.read()
    file.fold()
    assert file.read() == before
    for draft in file.running.rglob("*.part"):  # of a report that was not whole yet: its trial runs again
        file.write(a_result(int(draft.parent.name.removeprefix("seed-"))))
    file.fold()
    assert [path.name for path in tmp_path.iterdir()] == ["some.jsonl"]


@pytest.mark.parametrize("moment", ["before the file", "after the file", "after the first report"])
def test_a_fold_that_is_broken_off_is_done_by_the_next(tmp_path, monkeypatch, moment):
    file = ResultsFile(path=tmp_path / "some.jsonl")
    file.replace([a_result(3)])
    for number in range(3):
        file.write(a_result(number))
    expected = [a_result(number) for number in range(4)]
    real, unlinked = Path.unlink, []

    def unlink(path, missing_ok=False):
        if path.name == "report.json":
            unlinked.append(path)
            if len(unlinked) > (moment == "after the first report"):
                raise KeyboardInterrupt
        real(path, missing_ok=missing_ok)

    def replace(file, reports):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        if moment == "before the file":
            broken.setattr(ResultsFile, "replace", replace)
        else:
            broken.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            file.fold()
    assert file.read() == expected
    for _ in range(2):
        file.fold()
        assert file.read() == expected
        assert [path.name for path in tmp_path.iterdir()] == ["some.jsonl"]


def test_lines_and_keys_are_sorted_and_a_trial_of_another_config_is_another_result(tmp_path):
    file = ResultsFile(path=tmp_path / "some.jsonl")
    for report in (a_result(1, delta=2), a_result(0, z=1, a=1), a_result(1, delta=1)):
        file.write(report)
        file.fold()
    lines = file.path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == ('{"config":{"a":1,"z":1},"curves":{"round":[1,2]},"format":3,"seed":0,"trial":"point/seed-0"}')
    assert [report["config"] for report in file.read()] == [{"z": 1, "a": 1}, {"delta": 1}, {"delta": 2}]
    file.write(a_result(1, delta=1) | {"curves": {}})  # trained twice: what was counted stays
    file.fold()
    assert file.path.read_text(encoding="utf-8").splitlines() == lines


def test_what_else_lies_beside_a_report_stays(tmp_path):
    file = ResultsFile(path=tmp_path / "some.jsonl")
    file.write(a_result(0))
    file.folder_of("point/seed-1").mkdir()
    (file.folder_of("point/seed-1") / "error.txt").write_text("why")
    (file.folder_of("other/seed-1")).mkdir(parents=True)
    file.fold()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        *("some.jsonl", "some.running", "some.running/point", "some.running/point/seed-1"),
        "some.running/point/seed-1/error.txt",
    ]


@pytest.mark.parametrize("line", ["<<<<<<< HEAD", '{"format": 1}', "[]", '{"format":3,"trial":"a","config":{}}'])
def test_a_damaged_file_is_named_and_nothing_is_folded_into_it(tmp_path, line):
    file = ResultsFile(path=tmp_path / "some.jsonl")
    file.replace([a_result(0)])
    with file.path.open("a", encoding="utf-8") as opened:
        opened.write(line + "\n")
    before = file.path.read_bytes()
    file.write(a_result(1))
    for act in (file.read, file.fold):
        with pytest.raises(ConfigError, match=r"some\.jsonl, line 2, is no result"):
            act()
    assert file.path.read_bytes() == before
    assert (file.folder_of("point/seed-1") / "report.json").exists()


def test_results_lie_where_the_project_says_or_else_beside_the_config(tmp_path):
    config = tmp_path / "own" / "configs" / "deeper" / "some.toml"
    config.parent.mkdir(parents=True)
    assert results_of(config).path == config.with_suffix(".jsonl")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'theirs'\n")
    assert results_of(config).path == config.with_suffix(".jsonl")
    (tmp_path / "own" / "pyproject.toml").write_text('[tool.dpcomp]\nconfigs = "configs"\nresults = "kept"\n')
    assert results_of(config).path == tmp_path / "own" / "kept" / "deeper" / "some.jsonl"
    assert results_of(tmp_path / "own" / "configs" / "a_study").path == tmp_path / "own" / "kept" / "a_study.jsonl"
    outside = tmp_path / "own" / "scratch" / "some.toml"
    assert results_of(outside).path == outside.with_suffix(".jsonl")
    assert (
        results_of(Path("experiments/configs/top_k/cifar10.toml")).path == ROOT / "results" / "top_k" / "cifar10.jsonl"
    )


@pytest.mark.parametrize("table", ['configs = "a"', 'configs = "a"\nresults = 3', 'configs = "a"\nresult = "b"'])
def test_a_table_that_says_something_else_is_refused(tmp_path, table):
    (tmp_path / "pyproject.toml").write_text(f"[tool.dpcomp]\n{table}\n")
    with pytest.raises(ConfigError, match=r"pyproject\.toml: \[tool\.dpcomp\] is"):
        results_of(tmp_path / "some.toml")

"""The page on Flower: its changes fit a copy of the quickstart, are few, and the app that results is private."""

import contextlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from flwr.app import Context, RecordDict

import dpcomp as dp
from dpcomp.adapters.flower import exchange, strategy
from tests.adapters.flower_ends import InProcess
from tests.adapters.test_flower import Clock
from tests.docs.pages import blocks_of
from tests.examples.test_scripts import changed_lines

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "flower.md"
DIFFS = {block.file: block.text for block in blocks_of(PAGE) if block.language == "diff"}
CONFIG = {"batch-size": 32, "local-epochs": 1, "learning-rate": 0.1, "num-server-rounds": 3, "fraction-evaluate": 0.5}


def changed(text, diff):
    """The text after the hunks of a diff, each of which must stand in it once."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines()
        before = "\n".join(line[1:] for line in lines if line[:1] in (" ", "-", ""))
        after = "\n".join(line[1:] for line in lines if line[:1] in (" ", "+", ""))
        assert text.count(before) == 1, f"this does not stand once in the file:\n{before}"
        text = text.replace(before, after)
    return text


def code(text):
    return [line for line in text.splitlines() if line]


@pytest.fixture
def app(tmp_path, monkeypatch):
    """A folder with the app after the changes of the page, and with its terms."""
    shutil.copytree(Path(__file__).parent / "quickstart", tmp_path / "quickstart")
    for name, diff in DIFFS.items():
        path = tmp_path / name
        path.write_text(changed(path.read_text(encoding="utf-8"), diff), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (agree,) = (block.text for block in blocks_of(PAGE) if block.file == "agree.py")
    with contextlib.redirect_stdout(None):
        exec(agree, {})
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "quickstart"]:
        del sys.modules[name]


def test_the_page_changes_few_lines_and_says_how_many():
    folder, count = Path(__file__).parent, 0
    for name, diff in DIFFS.items():
        before = (folder / name).read_text(encoding="utf-8")
        count += changed_lines(code(before), code(changed(before, diff)))
    (told,) = re.findall(r"(\d+) lines of three files", PAGE.read_text(encoding="utf-8"))
    assert count == int(told) <= 20


def test_the_page_tells_the_times_and_bytes_that_were_measured():
    record = json.loads((ROOT / "docs" / "benchmarks" / "flower_rounds.json").read_text(encoding="utf-8"))
    told = re.findall(r"^\| .* s \|.*\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    for (name, row), line in zip(record["apps"].items(), told, strict=True):
        assert name in line
        ratio = row.get("÷ plain SGD")
        of_plain = "" if ratio is None else f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"
        numbers = [f"{row[f'{way}_nodes_bytes_a_node_and_round']:,}" for way in ("from", "to")]
        assert [cell.strip() for cell in line.split("|")[2:-1]] == [
            f"{row['seconds_a_round']:.1f} s",
            of_plain,
            *numbers,
        ]
    own = record["apps"]["dpcomp"]
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"are {own['received_bytes_a_node_and_round']} of the {own['from_nodes_bytes_a_node_and_round']:,}" in text
    assert f"and {own['sent_bytes_a_node_and_round']} of those to it" in text


def test_the_changed_app_learns_privately(app, tmp_path, monkeypatch):
    for module in (exchange, strategy):
        monkeypatch.setattr(module, "time", Clock())
    from quickstart import client_app, server_app

    grid = InProcess(tmp_path, client_app.app.terms, nodes=(2**63, 5))

    def answer(node, message):
        config = {"dpcomp-folder": str(tmp_path / str(node)), "partition-id": int(node == 5), "num-partitions": 2}
        reply = client_app.app(message, Context(1, node, config, RecordDict(), CONFIG))
        grid.received.append((node, reply))
        return reply

    grid.answer = answer
    server_app.app(grid, Context(1, 1, {}, RecordDict(), CONFIG))
    terms = client_app.app.terms
    assert (tmp_path / "final_model.pt").exists()
    for node in (2**63, 5):
        ledger = dp.Ledger.read(tmp_path / str(node) / "ledger.db")
        assert ledger.guarantee(1e-5).epsilon == terms.guarantee(1e-5).epsilon
    for _, reply in grid.received:
        assert set(reply.content) == {"dpcomp"}  # no arrays, and no metrics

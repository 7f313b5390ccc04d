"""The page about formats has the numbers and fields of the code."""

import json
import re
import sqlite3
import struct
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

import dpcomp as dp
from dpcomp.codec import standalone
from dpcomp.federated.messages import HELLO, RECEIPT, REPLY, WITHDRAWAL, Hello, Reply, Withdrawal
from dpcomp.federated.server import journal
from dpcomp.lab.results import results_file
from dpcomp.privacy.ledger import ledger_file
from dpcomp.wire import checkpoint
from dpcomp.wire.frame import PAYLOAD, Frame
from dpcomp.wire.headers import FIRST_BYTE
from dpcomp.wire.short_header import SHORT, ShortHeader

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
FORMATS = {
    "payload": (PAYLOAD, Frame),
    "hello": (HELLO, Hello),
    "reply": (REPLY, Reply),
    "withdrawal": (WITHDRAWAL, Withdrawal),
}


def section(name):
    return re.search(rf"^## {name}$(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL | re.IGNORECASE).group(1)


@pytest.mark.parametrize("name", FORMATS)
def test_the_fields_of_a_message_are_those_of_its_record(name):
    _, record = FORMATS[name]
    hints = get_type_hints(record, include_extras=True)
    expected = [(item.name, struct.calcsize("<" + hints[item.name].__metadata__[0])) for item in fields(record)]
    found = re.findall(r"^\| `(\w+)` \| (\d+) \|", section(name), flags=re.MULTILINE)
    assert [(field, int(size)) for field, size in found] == expected


def test_the_fields_of_a_short_header_are_those_of_its_record():
    sizes = [struct.calcsize("<" + part) for part in re.findall(r"\d*[A-Za-z]", SHORT.format.removeprefix("<"))]
    found = re.findall(r"^\| `(\w+)` \| (\d+) \|", section("short header"), flags=re.MULTILINE)
    assert [(field, int(size)) for field, size in found] == list(zip(ShortHeader._fields, sizes, strict=True))
    assert f"or `{RECEIPT:02x}` as a receipt" in PAGE
    assert f"`{FIRST_BYTE:02x}` with a [short header](#short-header)" in PAGE


@pytest.mark.parametrize("name", FORMATS)
def test_the_number_of_a_message_is_that_of_its_first_bytes(name):
    magic = FORMATS[name][0]._magic
    row = re.search(rf"^\| \[{name}\]\(#{name}\) \| `([0-9a-f ]+)` .*?\| (\d+) \|", PAGE, flags=re.MULTILINE)
    assert bytes.fromhex(row.group(1)) == magic
    assert int(row.group(2)) == magic[-1]


def test_the_payloads_header_has_the_length_that_the_page_says():
    assert f"The full header is {PAYLOAD.header_bytes} bytes long" in PAGE
    assert f"a payload has a header of {SHORT.size} bytes" in PAGE


def test_the_fields_of_a_payload_of_a_codec_alone_are_those_of_the_code():
    assert re.search(
        rf"^\| \[payload of a codec alone\].* \| `{standalone.FIRST_BYTE:02x}` \| 1 \|", PAGE, re.MULTILINE
    )
    sizes = re.findall(r"^\| [a-z ]+ \| (\d+) \|", section("payload of a codec alone"), flags=re.MULTILINE)
    assert sum(map(int, sizes)) == standalone.HEADER_BYTES
    assert standalone.FIRST_BYTE == 192 + 1


def test_the_checkpoints_number_is_that_of_the_code():
    row = re.search(r"^\| \[checkpoint\]\(#checkpoint\) \| `(.*?)` \| (\d+) \|", PAGE, flags=re.MULTILINE)
    assert row.group(1) == checkpoint.FORMAT
    assert checkpoint.FORMAT.endswith(f" {row.group(2)}")


@pytest.mark.parametrize(
    ("name", "number"), [("ledger", ledger_file.FORMAT), ("journal", journal.FORMAT), ("result", results_file.FORMAT)]
)
def test_the_number_of_a_file_is_that_of_the_code(name, number):
    row = re.search(rf"^\| \[{name}\]\(#{name}\) \| .*? \| (\d+) \|", PAGE, flags=re.MULTILINE)
    assert int(row.group(1)) == number


def test_the_tables_of_a_ledger_are_those_of_the_code(tmp_path):
    dp.Ledger.create(tmp_path / "some.db").close()
    database = sqlite3.connect(tmp_path / "some.db")
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    expected = {
        table: [column for _, column, *_ in database.execute(f"PRAGMA table_info({table})")] for table in tables
    }
    database.close()
    rows = re.findall(r"^\| `(\w+)` \| (`.*?`) \| ", section("ledger"), flags=re.MULTILINE)
    assert {table: re.findall(r"`(\w+)`", columns) for table, columns in rows} == expected


def test_the_keys_of_a_result_are_those_of_the_tracked_results():
    keys = re.findall(r"^\| `(\w+)` \| ", section("result"), flags=re.MULTILINE)
    for line in (ROOT / "results" / "demo.jsonl").read_text(encoding="utf-8").splitlines():
        assert json.loads(line).keys() | {"recorded_in"} == set(keys)

"""Every block of every page of the documentation runs, and prints what the page says it prints."""

from pathlib import Path

import pytest
import torch

from tests.docs.pages import blocks_of, run_page

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    # Models of this size are ten times slower on two threads than on one, if other processes keep the cores busy.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes that a page starts
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_block_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    run_page(page)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\n1 / 0\n```\n", ZeroDivisionError),
        ("```toml\nkey =\n```\n", ValueError),
        ("```python\nprint(1)\n```\n\n<!-- output -->\n```text\n2\n```\n", AssertionError),
        ("```sh\ndpcomp epsilon nowhere.toml\n```\n", AssertionError),
        ("<!-- not run: -->\n```python\n1 / 0\n```\n", AssertionError),
        ("```\nno language\n```\n", AssertionError),
        ("```python title=unquoted.py\nvalue = 3\n```\n", AssertionError),
    ],
)
def test_a_page_that_does_not_run_is_noticed(text, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(error):
        run_page(page)


def test_files_output_and_what_is_not_run_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        '```python title="written.py"\nvalue = 3\n```\n\n'
        "```python\nimport written\nprint(written.value, 'and more')\n```\n\n"
        "It prints\n\n<!-- output -->\n```text\n3 ...\n```\n\n"
        "<!-- not run: it would fail -->\n```python\n1 / 0\n```\n",
        encoding="utf-8",
    )
    run_page(page)
    assert [block.file for block in blocks_of(page)] == ["written.py", "", "", ""]
    assert [block.word for block in blocks_of(page)] == ["", "", "output", "not run"]

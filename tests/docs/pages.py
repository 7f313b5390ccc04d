"""Run the fenced blocks of a page of the documentation, in order and in one namespace, in the current folder.

A block's language says what is done with it:

    python   is executed
    toml     is parsed
    sh       each line that begins with `dpcomp` is run as that command, in this process
    text     is for readers
    diff     is for readers; a test of the page's own applies it

A title, as in ```python title="mine.py", is a file that the block is written to; such a block is not executed. An HTML
comment on the line above a block changes what is done, too:

    <!-- output -->              the block is what the block before it printed; `...` stands for anything
    <!-- not run: reason -->     the block is shown only
"""

import contextlib
import doctest
import io
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from markdown_it import MarkdownIt

LANGUAGES = {"python", "toml", "sh", "text", "diff"}
INFO = re.compile(r'(?P<language>\w*)(?: title="(?P<file>[^"]+)")?\s*$')
COMMENT = re.compile(r"<!--\s*(?P<word>output|not run)(?::\s*(?P<value>.*?))?\s*-->\s*$")
LAX = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language, file and text, the line of the page on which the text begins, and its comment."""

    language: str
    text: str
    line: int
    file: str = ""
    word: str = ""
    value: str = ""


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page, from top to bottom."""
    comment: re.Match[str] | None = None
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            comment = COMMENT.search(token.content.strip())
        elif token.type == "fence":
            assert token.map is not None
            word, value = comment.group("word", "value") if comment else ("", "")
            line, info = token.map[0] + 2, INFO.match(token.info)
            assert info, f'{page}:{line}: a block of {token.info!r}; write a language, and perhaps title="file"'
            language, file = info.group("language", "file")
            yield Block(language=language, text=token.content, line=line, file=file or "", word=word, value=value or "")
            comment = None
        elif token.type.endswith("_open"):
            comment = None


def run_page(page: Path) -> None:
    """Run every block of a page, as the module's docstring says. Raises what a block raises, and AssertionError."""
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for what a block defines
    printed = ""
    try:
        for block in blocks_of(page):
            where = f"{page}:{block.line}"
            assert block.language in LANGUAGES, f"{where}: a block of language {block.language!r}; use {LANGUAGES}"
            if block.word == "not run":
                assert block.value, f"{where}: say why it is not run"
            elif block.file and block.language != "diff":
                Path(block.file).write_text(block.text, encoding="utf-8")
            elif block.word == "output":
                same = doctest.OutputChecker().check_output(block.text, printed, LAX)
                assert same, f"{where}: the page says\n{block.text}\nand the block before it printed\n{printed}"
            elif block.language == "python":
                # Empty lines before it, so that a traceback names the line of the page.
                code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
                with contextlib.redirect_stdout(io.StringIO()) as output:
                    exec(code, vars(module))
                printed = output.getvalue()
            elif block.language == "toml":
                tomllib.loads(block.text)
            elif block.language == "sh":
                printed = _run_commands(block.text, where)
    finally:
        del sys.modules[module.__name__]


def _run_commands(text: str, where: str) -> str:
    from dpcomp.lab.cli import main

    printed = io.StringIO()
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["dpcomp"]:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                status = main(words[1:])
            assert status == 0, f"{where}: {line!r} ended with {status}:\n{printed.getvalue()}"
    return printed.getvalue()

"""Every example in a docstring of dpcomp runs, prints what it says it prints, and can be shown on the site."""

import doctest
import importlib
import pkgutil
import re

import pytest

import dpcomp
from dpcomp.core.errors import MissingExtra

LAX = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples():
    names = ["dpcomp", *(module.name for module in pkgutil.walk_packages(dpcomp.__path__, "dpcomp."))]
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in names:
        if not name.endswith("__main__"):
            try:
                module = importlib.import_module(name)
            except MissingExtra:  # the examples of an extra that is not installed
                continue
            yield from (example for example in finder.find(module, name) if example.examples)


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name)
def test_the_example_prints_what_it_says(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.DocTestRunner(optionflags=LAX).run(example)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name)
def test_the_example_stands_in_a_section_that_the_site_shows_as_code(example):
    before = example.docstring.split(">>>")[0]
    assert re.findall(r"^ *([A-Z]\w+):$", before, flags=re.MULTILINE)[-1:] == ["Examples"]  # Google's style

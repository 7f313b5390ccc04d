"""The examples in the docstrings of analysis run, and print what they say."""

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import analysis


def documented(module):
    """Every definition of a module whose docstring holds an example: its name, its docstring, and its line."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Module)
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        if text and ">>>" in text:
            yield getattr(node, "name", module.__name__), text, getattr(node, "lineno", 0)


MODULES = [importlib.import_module(module.name) for module in pkgutil.walk_packages(analysis.__path__, "analysis.")]
EXAMPLES = [
    pytest.param(module, name, text, line, id=f"{module.__name__}.{name}")
    for module in MODULES
    for name, text, line in documented(module)
]


@pytest.mark.parametrize(("module", "name", "text", "line"), EXAMPLES)
def test_an_example_prints_what_it_says(module, name, text, line):
    example = doctest.DocTestParser().get_doctest(text, dict(vars(module)), name, module.__file__, line)
    report = []
    assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)


def test_examples_are_collected():
    assert {"gaussian_retention", "temporal_index_bits"} <= {parameters.values[1] for parameters in EXAMPLES}

"""The paper: its numbers are those of the results, its references exist, its figures are drawn."""

import re
from pathlib import Path

import pytest

from dpcomp.core.errors import ConfigError
from experiments.data.tasks import TASKS
from experiments.publish import paper
from experiments.publish.numbers import numbers
from experiments.publish.paper import quoted_in, write_numbers

ROOT = Path(__file__).parents[2]
PAPER, CONFIGS = ROOT / "paper", ROOT / "experiments" / "configs"
TEXT = (PAPER / "paper.tex").read_text(encoding="utf-8")


@pytest.fixture(autouse=True, scope="module")
def known():
    """All numbers by name, computed once: that takes longer than all that the tests do with them."""
    computed = numbers(CONFIGS, TASKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "numbers", lambda configs, tasks: computed)
        yield computed


def test_the_numbers_are_those_of_the_results(tmp_path):
    (tmp_path / "paper.tex").write_text(TEXT, encoding="utf-8")
    assert write_numbers(CONFIGS, tmp_path, TASKS).read_bytes() == (PAPER / "numbers.tex").read_bytes()


def test_no_number_is_not_a_number(known):
    assert [name for name in quoted_in(PAPER) if "nan" in known[name] or "inf" in known[name]] == []


def test_a_number_that_no_result_gives_is_refused_with_the_nearest(tmp_path):
    (tmp_path / "paper.tex").write_text(r"\val{scrambling.seed}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"quotes 'scrambling\.seed'.*scrambling\.seeds"):
        write_numbers(CONFIGS, tmp_path, TASKS)


def test_every_reference_is_cited_and_every_citation_is_a_reference():
    groups = re.findall(r"\\cite(?:t|p|alp)?(?:\[[^\]]*\])*\{([^}]*)\}", TEXT)
    cited = {key.strip() for keys in groups for key in keys.split(",")}
    references = re.findall(r"^@\w+\{(\w+),", (PAPER / "refs.bib").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(references) == len(set(references))
    assert set(references) == cited


def test_every_figure_is_drawn_and_told_of():
    drawn = {path.stem for path in (ROOT / "docs" / "figures").glob("*.png")}
    shown = re.findall(r"\\includegraphics(?:\[[^\]]*\])?\{(\w+)\}", TEXT)
    assert set(shown) == drawn
    labels = set(re.findall(r"\\label\{(fig:\w+)\}", TEXT))
    assert labels == set(re.findall(r"\\ref\{(fig:\w+)\}", TEXT))


def test_no_result_is_typed_by_hand():
    """Decimals in the text are densities and sparsities; results are quoted by name."""
    body = TEXT.split(r"\section{Six claims}")[1].split(r"\section{Related work}")[0]
    body = re.sub(r"\\val\{[^}]*\}|\\includegraphics(\[[^\]]*\])?\{[^}]*\}", "", body)
    assert set(re.findall(r"\d+\.\d+", body)) <= {"0.1", "99.9"}

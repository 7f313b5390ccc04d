"""The privacy rules that docstrings, tests and pages cite, and the tests that the rules cite, exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "privacy-rules.md"
FOLDERS = ("dpcomp", "analysis", "experiments", "benchmarks", "tests", "docs")
# Such as "PRIVACY_RULES 2 and 3", "PRIVACY_RULES, rule zero" and "PRIVACY_RULES rules 9, 11 and hazard 8".
CITATION = re.compile(
    r"PRIVACY_RULES,?(?P<list>(?:[\s#]*(?:,|\band\b|\bto\b)?[\s#]*(?:(?:rule|hazard)s?\s+)?(?:zero|\d+)\b)+)"
)
NUMBER = re.compile(r"(?P<kind>rule|hazard)?s?\s*(?P<number>zero|\d+)\b")


def cited(text):
    """The anchors that a text cites; a number without a word is of the word before it, at first a rule."""
    anchors = []
    for citation in CITATION.finditer(text):
        kind = "rule"
        for found in NUMBER.finditer(citation["list"]):
            kind = found["kind"] or kind
            anchors.append(f"{kind}-{found['number']}")
    return anchors


def sources():
    texts = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(path for path in texts if path != Path(__file__))]


def anchors():
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(r'id="((?:rule|hazard)-\w+)"', text) + re.findall(r"\{ *#((?:rule|hazard)-\w+) *\}", text)


def test_the_page_has_every_rule_and_every_hazard_once():
    expected = ["rule-zero", *(f"rule-{n}" for n in range(1, 24)), *(f"hazard-{n}" for n in range(1, 45))]
    assert anchors() == expected


def test_every_citation_of_a_privacy_rule_leads_to_the_page():
    known, wrong, number = set(anchors()), [], 0
    for path in sources():
        for anchor in cited(path.read_text(encoding="utf-8")):
            number += 1
            if anchor not in known:
                wrong.append((str(path.relative_to(ROOT)), anchor))
    assert wrong == []
    assert number >= 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(PRIVACY_RULES 16).", ["rule-16"]),
        ("(PRIVACY_RULES, rule zero)", ["rule-zero"]),
        ("PRIVACY_RULES 2 and 3.", ["rule-2", "rule-3"]),
        ("PRIVACY_RULES\n    hazard 17", ["hazard-17"]),
        ("PRIVACY_RULES rules 9, 11 and hazards 8 and 28", ["rule-9", "rule-11", "hazard-8", "hazard-28"]),
        ("PRIVACY_RULES and the table", []),
    ],
)
def test_citations_are_read_in_all_their_forms(text, expected):
    assert cited(text) == expected


def test_every_link_to_a_rule_leads_to_the_page():
    known = set(anchors())
    links = [
        anchor
        for page in (ROOT / "docs").rglob("*.md")
        for anchor in re.findall(r"\]\([^)]*privacy-rules\.md#([\w-]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert links
    assert set(links) <= known


def test_every_test_that_a_page_names_exists():
    known = {"test_accuracy", "test_loss"}  # columns of a run
    for path in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        known |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    named = {}
    for page in (ROOT / "docs").rglob("*.md"):
        for name in re.findall(r"`((?:test_|Test)\w+)(?:\.py)?`", page.read_text(encoding="utf-8")):
            named.setdefault(name, page.name)
    assert named
    assert {name: page for name, page in named.items() if name not in known} == {}


def test_every_path_that_a_page_names_exists():
    missing = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for path in re.findall(
            r"`((?:dpcomp|analysis|experiments|benchmarks|tests|docs|results|paper)/[\w./-]*)`",
            page.read_text(encoding="utf-8"),
        ):
            if not (ROOT / path).exists():
                missing.append((page.name, path))
    assert missing == []

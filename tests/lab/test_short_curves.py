"""The short forms of curves in a file of results."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpcomp.lab.results.results_file import ResultsFile
from dpcomp.lab.results.short_curves import lengthen, shorten

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=3)
)
REPEATED = st.lists(st.tuples(VALUES, st.integers(1, 9)), max_size=6)


@given(REPEATED)
def test_a_curve_is_read_as_it_was_written_type_for_type(parts):
    curve = [value for value, count in parts for _ in range(count)]
    written = json.dumps(shorten(curve))
    assert json.dumps(lengthen(json.loads(written))) == json.dumps(curve)
    assert len(written) <= len(json.dumps(curve)) + len(curve)  # which has a blank after each comma


@given(st.integers(-5, 5), st.integers(0, 50))
def test_numbers_that_count_up_are_read_as_they_were_written(first, count):
    curve = [*range(first, first + count)]
    assert lengthen(json.loads(json.dumps(shorten(curve)))) == curve


def test_a_long_run_takes_few_bytes():
    evaluated = [None] * 1199 + [0.5]
    assert len(json.dumps(shorten(evaluated * 6))) < 200
    assert shorten([*range(1, 7201)]) == {"range": [1, 7200]}


@pytest.mark.parametrize(
    "form", [None, 3, "text", {}, {"runs": [1]}, {"runs": [1, 0]}, {"runs": [1, True]}, {"range": [1, 2], "runs": []}]
)
def test_what_is_no_curve_is_refused(form):
    with pytest.raises(ValueError, match="is no curve"):
        lengthen(form)


def test_a_file_of_the_format_before_is_read_and_written_anew(tmp_path):
    old = {"format": 2, "trial": "a/seed-0", "config": {}, "seed": 0, "curves": {"round": [1, 2], "loss": [None, 0.5]}}
    file = ResultsFile(path=tmp_path / "a.jsonl")
    file.path.write_text(json.dumps(old) + "\n", encoding="utf-8")
    assert file.read() == [{**old, "format": 3}]
    file.replace(file.read())
    assert json.loads(file.path.read_text(encoding="utf-8"))["format"] == 3
    assert file.read() == [{**old, "format": 3}]

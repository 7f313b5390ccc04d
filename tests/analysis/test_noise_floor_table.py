"""The table of what compressors lose beside more noise."""

import pandas as pd
import pytest

from analysis.figures.noise_floor import draw
from analysis.tables.noise_floor import Code, above_line, code_of, explained

TABLE = pd.DataFrame(
    {
        "method": ["0 more", "1 more", "own 1 %", "own 6 %, 2 bits"],
        "dense": [True, True, False, False],
        "error": [0.0, 1.0, 0.5, 0.25],
        "difference": [0.0, -2.0, -1.2, -0.4],
        "half": [0.0, 0.5, 0.5, float("nan")],
        "foretold": [0.0, -2.0, -1.0, -0.5],
    }
)


def test_what_is_explained_is_the_share_of_the_variance():
    assert explained(TABLE) == pytest.approx(1 - (0.2**2 + 0.1**2) / (0.4**2 + 0.4**2))


def test_what_is_above_the_line_is_taken_seed_by_seed():
    noise = {"0": {0: 0.80, 1: 0.70}, "1": {0: 0.78, 1: 0.68}}
    above = above_line({0: 0.77, 1: 0.70}, {0: 0.80, 1: 0.70}, 0.5, noise)
    assert above == pytest.approx({0: -0.02, 1: 0.01})


def test_methods_are_read_by_their_names():
    assert code_of("own 0.5 %, 2 bits") == Code(2, 0.005, own_supports=True)
    assert code_of("shared 1 %") == Code(1, 0.01, own_supports=False)
    assert code_of("dense, 1 bit") == Code(1, 1.0, own_supports=False)
    assert [code_of(name) for name in ("dense", "dense, momentum", "top 1 %, feedback")] == [None] * 3


def test_every_method_is_named_in_the_figure():
    (legend,) = draw(TABLE).legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense, more noise", "own 6 %, 2 bits", "own 1 %"]

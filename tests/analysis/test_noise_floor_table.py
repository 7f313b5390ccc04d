"""The table of what compressors lose beside more noise."""

import pandas as pd
import pytest

from analysis.figures.noise_floor import draw
from analysis.tables.noise_floor import NAME, explained

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


def test_methods_are_read_by_their_names():
    assert [NAME.fullmatch(name).groups(default="1") for name in ("own 0.5 %, 2 bits", "shared 1 %")] == [
        ("own", "0.5", "2"),
        ("shared", "1", "1"),
    ]
    assert NAME.fullmatch("top 1 %, feedback") is None


def test_every_method_is_named_in_the_figure():
    texts = {text.get_text() for text in draw(TABLE).axes[0].texts}
    assert texts == {"own 1 %", "own 6 %, 2 bits"}

"""Pairs of vectors to compare, with ties and zeros, and their ranking by its definition."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -3.0])


def finite(dtype):
    return st.floats(allow_nan=False, allow_infinity=False, width=8 * np.dtype(dtype).itemsize)


@st.composite
def pairs(draw, most=24):
    """Two vectors of one length: of few values, of any, constant, or zero."""
    d, dtype = draw(st.integers(1, most)), draw(st.sampled_from([np.float32, np.float64]))
    vectors = st.one_of(
        arrays(dtype, d, elements=TIED),
        arrays(dtype, d, elements=finite(dtype)),
        TIED.map(lambda x: np.full(d, x, dtype)),
    )
    return draw(vectors), draw(vectors)


@st.composite
def pairs_and_k(draw):
    clean, noisy = draw(pairs())
    return clean, noisy, draw(st.integers(0, len(clean)))


def ranked(vector):
    return sorted(range(len(vector)), key=lambda position: (-abs(vector[position]), position))

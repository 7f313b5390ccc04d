"""The arrays in signatures are checked in the first calls of each test; see tests/conftest.py."""

import jaxtyping
import numpy as np
import pytest

from dpcomp.privacy.gaussian import on_grid_of
from tests.conftest import CHECKED_CALLS

WRONG = np.zeros((2, 2))  # where a vector is expected


@pytest.mark.parametrize("test", ["one", "the next"])
def test_the_first_calls_of_each_test_are_checked(test):
    for _ in range(min(CHECKED_CALLS, 20)):
        with pytest.raises(jaxtyping.TypeCheckError):
            on_grid_of(WRONG, 1.0)
    if CHECKED_CALLS < 20:
        assert on_grid_of(WRONG, 1.0).shape == (2, 2)

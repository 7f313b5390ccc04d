"""The fixture that calls functions as in use, without the checks of shapes."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked_shapes():
    """As in use, where nothing checks the signatures."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)

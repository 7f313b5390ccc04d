"""While the tests run, the shapes and types of arrays are checked in all signatures of the project."""

import faulthandler
import functools
import os
import sys
from typing import Any

import jaxtyping
import pytest
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

# Models of this size are many times slower on two threads than on one, if another worker keeps the cores busy. The
# processes that a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A test that a busy machine slows down is not wrong.
settings.register_profile("without a clock", deadline=None)
settings.load_profile("without a clock")

# How many calls of a function are checked in each test: all of them in `make test-slow`, and the first few in the fast
# tests, since a check costs more than most functions that loops call.
CHECKED_CALLS = sys.maxsize if os.environ.get("DPCOMP_CHECK_EVERY_CALL") else 8
calls: dict[int, int] = {}  # of each function in this test; not in the functions, whose contents some tests watch


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let every test check the first calls of each function anew; and let slow ones take their time."""
    calls.clear()
    if item.get_closest_marker("slow"):
        faulthandler.cancel_dump_traceback_later()


def first_calls(checked: Any, plain: Any) -> Any:
    """Return a function that checks its first calls in each test, and whose later calls are plain."""
    number = id(plain)

    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        before = calls.get(number, 0)
        if before == CHECKED_CALLS:
            return plain(*args, **kwargs)
        calls[number] = before + 1
        return checked(*args, **kwargs)

    return call


with_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as everywhere in Python


def check(function: Any) -> Any:
    """Check a call's arguments and result, as far as they are arrays.

    Other arguments are checked by the code itself, whose own errors the tests look at.
    """
    function.__annotations__ = arrays_of(function)
    return with_types(function)


def arrays_of(function: Any) -> dict[str, Any]:
    """Return the hints of a function's signature that name arrays."""
    hints = getattr(function, "__annotations__", {})
    return {name: hint for name, hint in hints.items() if "ndarray" in str(hint) or "Tensor" in str(hint)}


def jaxtyped_if_arrays(*, typechecker: Any) -> Any:
    """Decorate functions with an array in their signature alone: jaxtyping's wrapper takes longer than most others do.

    Constructors are left alone too, which convert what they get.
    """

    def decorate(function: Any) -> Any:
        if isinstance(function, type) or function.__name__ == "__init__" or not arrays_of(function):
            return function
        return first_calls(jaxtyped(typechecker=typechecker)(function), function)

    return decorate


jaxtyped, jaxtyping.jaxtyped = jaxtyping.jaxtyped, jaxtyped_if_arrays  # which the modules below are decorated with
install_import_hook(("dpcomp", "analysis", "experiments", "tests.oracles"), "tests.conftest.check")

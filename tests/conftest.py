"""While the tests run, the shapes and types of arrays are checked in all signatures of the project."""

from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

with_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as everywhere in Python


def check(function: Any) -> Any:
    """Check a call's arguments and result, where the signature has an array in it.

    Other arguments are checked by the code itself, whose own errors the tests look at; so are those of constructors,
    which convert what they get.
    """
    if function.__name__ == "__init__":
        return function
    hints = getattr(function, "__annotations__", {})
    arrays = {name: hint for name, hint in hints.items() if "ndarray" in str(hint) or "Tensor" in str(hint)}
    if not arrays:
        return function
    function.__annotations__ = arrays
    return with_types(function)


install_import_hook(("dpcomp", "analysis", "experiments", "tests.oracles"), "tests.conftest.check")

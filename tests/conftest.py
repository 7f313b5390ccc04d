"""While the tests run, the shapes and types in all signatures of the project are checked."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as everywhere in Python
install_import_hook(("dpcomp", "analysis", "experiments", "tests.oracles"), "tests.conftest.check")

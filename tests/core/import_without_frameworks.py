"""Import dpcomp and all that a client or server needs, on a machine that has no framework.

Run as a script; it exits with 1 and names the import chain if a module asks for a framework.
"""

import importlib
import pkgutil
import sys
from importlib.abc import MetaPathFinder

BLOCKED = {"torch", "opacus", "jax", "pandas"}
FREE = (
    "dpcomp.display",
    "dpcomp.core",
    "dpcomp.privacy",
    "dpcomp.codec",
    "dpcomp.sparsify",
    "dpcomp.wire",
    "dpcomp.pipeline",
    "dpcomp.federated",
    "dpcomp.terms",
    "dpcomp.adapters.http",
)


class Blocking(MetaPathFinder):
    """Refuses the import of a framework, as if it were not installed."""

    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{fullname} is blocked: dpcomp and dpcomp.federated must not need it")
        return None


def main() -> None:
    assert not BLOCKED & set(sys.modules), "a framework was imported before the check began"
    sys.meta_path.insert(0, Blocking())
    for name in ("dpcomp", *FREE):
        package = importlib.import_module(name)
        if name in FREE:
            for module in pkgutil.walk_packages(package.__path__, f"{name}."):
                importlib.import_module(module.name)
    dpcomp = importlib.import_module("dpcomp")
    for name in dir(dpcomp):  # also what is imported when it is first asked for
        getattr(dpcomp, name)
    print(f"imported without {', '.join(sorted(BLOCKED))}")


if __name__ == "__main__":
    main()

"""The tasks of this project: a module each, which holds how its data set is obtained, and the task.

A module defines `task`, a function that returns the task; configs name the task as the module is named, or call it:
`task = { fashion_mnist = { validation = 5000 } }` holds out so many training examples to choose settings by. A module
that has a data set of its own also defines `data_set`, a function of a folder in torchvision's layout or None; if the
data are obtained from elsewhere, a RECIPE says how.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from dpcomp.lab.tasks.classification import Classification
from dpcomp.lab.tasks.examples import DataSet
from dpcomp.lab.tasks.handwritten_digits import SHIPPED_TASKS, digits_data_set

_MODULES = {module.name: import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)}


def _digits(_: Path | None) -> DataSet:
    return digits_data_set()


TASKS: Mapping[str, Callable[..., Classification]] = {
    **SHIPPED_TASKS,
    **{name: module.task for name, module in _MODULES.items()},
}
DATA_SETS: Mapping[str, Callable[[Path | None], DataSet]] = {
    "digits": _digits,
    **{name: module.data_set for name, module in _MODULES.items() if hasattr(module, "data_set")},
}

"""Arguments: what a script calls the model with, each traced to what the loader delivered."""

from collections.abc import Iterable, Mapping
from numbers import Number
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpcomp.core.errors import NotPrivate
from dpcomp.training.pytorch.draws import same_values
from dpcomp.training.pytorch.rows.structures import Path, is_column, leaves, same_column

FIXED = (type(None), bool, str, torch.dtype, torch.device)

REMEDY = (
    "Make what is constant an attribute of the model before make_private, and give what depends on an example as a "
    "tensor with an entry an example, from the data set"
)


class Arguments:
    """Refuses calls whose arguments could tie the examples of a batch.

    **Privacy:** each row is a function of its example alone only if the arguments that all rows share say nothing of
    the batch (PRIVACY_RULES hazard 29). Tensors and numbers are parts of the batch that the loader delivered, the same
    part in every batch; all else is the same in every batch since `make_private`.
    """

    def __init__(self):
        self._calls: dict[int, _Call] = {}

    def trace(
        self,
        call: tuple[tuple[Any, ...], dict[str, Any]],
        inputs: Any,
        *,
        view: int = 0,
        any_tensor: bool = False,
        same: Mapping[int, Tensor] = MappingProxyType({}),
    ) -> dict[Path, Path]:
        """Trace the arguments of a pass to the inputs that the loader delivered for its examples.

        Args:
            call: The positional arguments and those by name.
            inputs: What the loader delivered for the examples of the pass, without their targets.
            view: Which of several passes over the same examples it is.
            any_tensor: Whether tensors may be others, as those of augmented views are.
            same: By the identity of a tensor, a part of the inputs that is known to have its values.

        Returns:
            By the path of an argument in the call, the path of the tensor or number that it is in the inputs.

        Raises:
            NotPrivate: Naming the argument that was not delivered, or that changed.
        """
        given, delivered = leaves(call), leaves(inputs)
        if view not in self._calls:
            self._calls[view] = _Call(given)
        known = self._calls[view]
        known.refuse_changed(given)
        origins: dict[Path, Path] = {}
        for path, value in given.items():
            if isinstance(value, FIXED) or (isinstance(value, Tensor) and any_tensor):
                continue
            equal = [origin for origin, part in delivered.items() if same.get(id(value)) is part or _is(value, part)]
            if not equal:
                raise NotPrivate(_undelivered(path, value))
            origins[path] = known.narrow(path, equal)
        return origins


class _Call:
    """What has to stay from batch to batch in the calls of a model.

    Args:
        given: The arguments of the first call.
    """

    def __init__(self, given: dict[Path, Any]):
        self._names = _names(given)
        self._fixed = {path: value for path, value in given.items() if isinstance(value, FIXED)}
        self._origins: dict[Path, list[Path]] = {}

    def refuse_changed(self, given: dict[Path, Any]) -> None:
        fixed = {path: value for path, value in given.items() if isinstance(value, FIXED)}
        if _names(given) != self._names:
            raise NotPrivate(
                f"the model is called with {sorted(_names(given))}, and was with {sorted(self._names)} in an earlier "
                "batch: arguments that come and go could be chosen by a look at a batch, and move the rows of all its "
                f"examples. Give the same arguments with every batch. {REMEDY}"
            )
        for path in {**self._fixed, **fixed}:
            now, before = fixed.get(path, "absent"), self._fixed.get(path, "absent")
            if now != before or (path in fixed) != (path in self._fixed):
                raise NotPrivate(
                    f"{_name(path)} of the model is {now!r}, and was {before!r} in an earlier batch: chosen by a look "
                    f"at a batch, it moves the rows of all its examples. Give the same with every batch. {REMEDY}"
                )

    def narrow(self, path: Path, equal: list[Path]) -> Path:
        """Return the part of the batch that an argument was in all batches."""
        before = self._origins.get(path, equal)
        both = [origin for origin in before if origin in equal]
        if not both:
            raise NotPrivate(
                f"{_name(path)} of the model is part {list(equal[0])} of the batch, and was part {list(before[0])} of "
                "an earlier batch: which part it is could be chosen by a look at a batch, and moves the rows of all "
                "its examples. Give the same part of every batch"
            )
        self._origins[path] = sorted(both, key=lambda origin: origin[-1:] != path[-1:])  # the same name first
        return self._origins[path][0]


def _is(value: Any, part: Any) -> bool:
    if isinstance(value, Tensor):
        return isinstance(part, Tensor) and part.ndim > 0 and value.ndim > 0 and same_values(value, part)
    if isinstance(part, (Tensor, *FIXED)):
        return False
    if is_column(value):
        return is_column(part) and same_column(value, part)
    return isinstance(value, Number) and isinstance(part, Number) and bool(value == part)


def _undelivered(path: Path, value: Any) -> str:
    if isinstance(value, Tensor):
        return (
            f"the model got a tensor of shape {tuple(value.shape)} that is not one of the batch that was drawn, as "
            f"{_name(path)}, so its rows may be those of other examples. Pass on what the loader gave; change examples "
            "in the data set or in the model (such as a first layer that augments), and declare several augmented "
            "views of a batch with views=k"
        )
    if isinstance(value, (Number, np.ndarray)):
        what = repr(value) if isinstance(value, Number) else f"an array of shape {value.shape}"
        return (
            f"{_name(path)} of the model is {what}, which the loader did not deliver with this batch: a number that "
            f"is computed from a batch, such as its maximum or its length, moves the rows of all its examples. {REMEDY}"
        )
    return (
        f"{_name(path)} of the model is a {type(value).__name__}, which cannot be compared with what the loader "
        f"delivered: {REMEDY[0].lower()}{REMEDY[1:]}"
    )


def _name(path: Path) -> str:
    inner = "".join(f"[{part!r}]" for part in path[2:])
    return f"argument {path[1]!r}{inner}"


def _names(given: Iterable[Path]) -> set[str]:
    return {str(path[1]) for path in given}

"""Arguments: what a script calls the model with, each held to the call with which make_private tried it."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpcomp.core.errors import NotPrivate
from dpcomp.training.pytorch.draws import same_values
from dpcomp.training.pytorch.forms import Form
from dpcomp.training.pytorch.rows.structures import (
    Call,
    Path,
    call_of,
    is_column,
    mapped_leaves,
    named_part,
    parts,
    same_column,
)

Constant = None | bool | int | float | str | torch.dtype | torch.device
CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)

REMEDY = (
    "Give the model the inputs of each batch, all of them and no others, as make_private does; make what is constant "
    "an attribute of the model before make_private, or declare it, make_private(..., constants={'name': value}); and "
    "give what depends on an example as a tensor with an entry an example, from the data set"
)


@dataclass(frozen=True)
class _Origin:
    """The place of a part of the inputs, in the call that was tried."""

    path: Path


def tried_call(inputs: Any, constants: Mapping[str, Constant]) -> Call:
    """Return the call with which a model is tried, with places in the batch instead of its values.

    Args:
        inputs: A batch of examples as the model gets them.
        constants: Further arguments by name.

    Raises:
        TypeError: A constant is none of `CONSTANTS`.
        ValueError: A constant has the name of an input.
    """
    for name, value in constants.items():
        if not isinstance(name, str) or type(value) not in CONSTANTS:
            raise TypeError(
                f"constants has {name!r} of type {type(value).__name__}: give names with None, booleans, numbers, "
                "strings, dtypes or devices, and make all else an attribute of the model before make_private"
            )
    marked = mapped_leaves(lambda path, part: part if part is None else _Origin(path), inputs)
    if both := sorted(constants.keys() & call_of(marked).kwargs.keys()):
        raise ValueError(f"constants has {both}, which each batch has too: leave them out of one of both")
    return call_of(marked, constants)


class Arguments:
    """Refuses calls of a model whose arguments could tie the examples of a batch.

    **Privacy:** each row is a function of its example alone only if the arguments that all rows share say nothing of
    the batch (PRIVACY_RULES hazard 29). So each call is the one with which `make_private` tried the model, from its
    first on: the same parts of the batch for the same parameters, and else what was declared to be constant or is the
    default of a parameter. Tensors are cast and reshaped as in the first pass.

    Args:
        forward: The model's forward, whose parameters may be given by position or by name.
        tried: What `tried_call` returned.
    """

    def __init__(self, forward: Callable[..., Any], tried: Call):
        try:
            parameters = inspect.signature(forward).parameters.values()
        except (TypeError, ValueError):  # it tells none
            parameters = ()
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self._positional = [parameter.name for parameter in parameters if parameter.kind in by_position]
        self._defaults = {
            parameter.name: dict(parts(parameter.default, (parameter.name,)))
            for parameter in parameters
            if parameter.default is not inspect.Parameter.empty
        }
        self._names = self._given(tried)[1]
        self._forms: dict[Path, Form] = {}  # of the first pass
        self._tried = {path: value for path, (_, value) in self._given(tried)[0].items()}

    def trace(
        self,
        call: Call,
        inputs: Any,
        *,
        any_tensor: bool = False,
        same: Mapping[int, Tensor] = MappingProxyType({}),
    ) -> dict[Path, Path]:
        """Trace the arguments of a pass to the inputs that the loader delivered for its examples.

        Args:
            call: The arguments.
            inputs: What the loader delivered for the examples of the pass, without their targets.
            any_tensor: Whether tensors may be others, as those of augmented views are.
            same: By the identity of a tensor, a part of the inputs that is known to have its values.

        Returns:
            By the path of an argument in the call, the path of the tensor or column that it is in the inputs.

        Raises:
            NotPrivate: Naming the argument that is another than in the trial, or cast or reshaped in another way than
                in the first pass.
        """
        (given, names), delivered = (
            self._given(call),
            dict(parts(dict(inputs) if isinstance(inputs, Mapping) else inputs)),
        )
        if given.keys() != self._tried.keys():
            raise NotPrivate(self._other_arguments(given, names))
        origins: dict[Path, Path] = {}
        for path, (place, value) in given.items():
            tried = self._tried[path]
            if not isinstance(tried, _Origin):
                if value is not tried and not (type(value) is type(tried) in CONSTANTS and _alike(value, tried)):
                    raise NotPrivate(_other_value(path, value, _described(tried)))
                if place is not None and is_column(value):  # it would be cut with the examples
                    raise NotPrivate(_other_value(path, value, "not given"))
                continue
            if isinstance(value, Tensor) and any_tensor:
                continue
            part = delivered.get(tried.path)
            if not (same.get(id(value)) is part is not None or _is(value, part)):
                raise NotPrivate(_undelivered(path, value, tried.path))
            if isinstance(value, Tensor) and isinstance(part, Tensor):
                form = Form.of(value, part)
                if how := self._forms.setdefault(path, form).differs(form):
                    raise NotPrivate(_other_form(path, how))
            if place is not None:
                origins[place] = tried.path
        return origins

    def _given(self, call: Call) -> tuple[dict[Path, tuple[Path | None, Any]], list[str]]:
        """Return the arguments by parameter, with their place in the call and what was not given; and the names."""
        given: dict[Path, tuple[Path | None, Any]] = {}
        names: set[Any] = set(call.kwargs)
        for number, argument in enumerate(call.args):
            name = self._positional[number] if number < len(self._positional) else number
            names.add(name)
            given |= {(name, *path): ((0, number, *path), value) for path, value in parts(argument)}
        for name, argument in call.kwargs.items():
            given |= {(name, *path): ((1, name, *path), value) for path, value in parts(argument)}
        for name, default in self._defaults.items():
            if name not in names:
                given |= {path: (None, value) for path, value in default.items()}
        return given, sorted(map(str, names))

    def _other_arguments(self, given: Iterable[Path], names: list[str]) -> str:
        if names != self._names:
            return (
                f"the model is called with {names}, and make_private tried it with {self._names}: which arguments are "
                f"given could be chosen by a look at a batch, and moves the rows of all its examples. {REMEDY}"
            )
        path = min(self._tried.keys() ^ set(given), key=str)
        return f"{_name(path[:1])} of the model has other parts than when make_private tried it. {REMEDY}"


def _alike(value: Any, tried: Any) -> bool:
    return value == tried and repr(value) == repr(tried)  # 0.0 equals -0.0


def _is(value: Any, part: Any) -> bool:
    if isinstance(value, Tensor):
        return isinstance(part, Tensor) and same_values(value, part)
    return is_column(value) and is_column(part) and same_column(value, part)


def _other_value(path: Path, value: Any, before: str) -> str:
    return (
        f"{_name(path)} of the model is {_described(value)}, and was {before} when make_private tried it: chosen by a "
        f"look at a batch, it moves the rows of all its examples. {REMEDY}"
    )


def _other_form(path: Path, how: str) -> str:
    return (
        f"{_name(path)} of the model {how} in the first pass: a cast or a shape that is chosen by a look at a "
        "batch moves the rows of all its examples. Cast and reshape every batch alike, in the data set, collate_fn or "
        "the model"
    )


def _undelivered(path: Path, value: Any, origin: Path) -> str:
    part = named_part("the inputs", origin)
    if isinstance(value, Tensor):
        return (
            f"the model got a tensor of shape {tuple(value.shape)} that is not one of the batch that was drawn, as "
            f"{_name(path)}, which is {part} of a batch, so its rows may be those of other examples. Pass on what the "
            "loader gave; change examples in the data set or in the model (such as a first layer that augments), and "
            "declare several augmented views of a batch with views=k"
        )
    return _other_value(path, value, f"{part} of the batch")


def _described(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{'a tensor' if isinstance(value, Tensor) else 'an array'} of shape {tuple(value.shape)}"
    return repr(value) if isinstance(value, CONSTANTS) else f"a {type(value).__name__}"


def _name(path: Path) -> str:
    return named_part(f"argument {path[0]!r}", path[1:])

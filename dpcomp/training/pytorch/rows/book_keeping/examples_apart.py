"""Layer uses: how a model uses its trained layers, if all that it does keeps the examples of a batch apart."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpcomp.training.pytorch.rows.book_keeping.batch_axis import (
    UNIFORM,
    BatchAxis,
    ExamplesMeet,
    FollowedExamples,
    memory_of,
)
from dpcomp.training.pytorch.rows.book_keeping.formulas import refusal, trained
from dpcomp.training.pytorch.rows.book_keeping.own_code import NothingRead, refuse_own_backward, unread
from dpcomp.training.pytorch.rows.generators import kept_generators, seed_unforeseeably
from dpcomp.training.pytorch.rows.passes import floating
from dpcomp.training.pytorch.rows.structures import Call, call_of, count, picked, tensors

# In the batches that are followed before training: lengths that few tables have, above and below those that are tried.
EXAMPLES = (11, 41)


@dataclass(frozen=True)
class LayerUse:
    """How a model uses one of its trained layers.

    Args:
        name: Of the layer.
        axis: Where the examples lie in its input.
        overwritten: Whether its output is changed in place, as by `ReLU(inplace=True)`.
    """

    name: str
    axis: BatchAxis
    overwritten: bool


def layer_uses(module: nn.Module, inputs: Any) -> tuple[LayerUse, ...] | str:
    """Return how a model uses its trained layers, or why book-keeping cannot serve it.

    A copy of the model is called on two batches, and every operation is followed.

    Args:
        module: The model.
        inputs: A batch of examples as the model gets them.
    """
    for name, layer in module.named_modules():
        if trained(layer) and (why := refusal(layer)):
            return f"layer {name!r} ({type(layer).__name__}) {why}"
    named = [name for name, value in module.named_parameters(remove_duplicate=False) if value.requires_grad]
    if len(named) > len([value for value in module.parameters() if value.requires_grad]):
        return "two layers share a parameter"
    subject = copy.deepcopy(module)
    if not subject.training:
        subject.train()  # which returns what an own method does
    try:
        few, more = (_followed(subject, call_of(inputs), n) for n in EXAMPLES)
    except ExamplesMeet as meeting:
        return str(meeting)
    except Exception as error:
        return f"its forward pass cannot be followed ({type(error).__name__})"
    return few if few == more else f"it uses its layers in another way with {EXAMPLES[1]} examples"


def _followed(module: nn.Module, call: Call, n: int) -> tuple[LayerUse, ...]:
    """Call a model, follow every operation, and return how it uses its trained layers.

    Args:
        module: The model, in training.
        call: Positional arguments of a batch, and those by name.
        n: The number of examples to call it with: those of the batch in turns.

    Raises:
        ExamplesMeet: Naming the operation and the layer.
    """
    batch = picked(call, torch.arange(n) % count(call))
    args, kwargs = unread(batch)
    with kept_generators():
        seed_unforeseeably()  # so that a seed that the model sets shows
        following = _Following(module, batch, n)
        try:
            with torch.enable_grad(), following.hooks(), following:
                outputs = module(*args, **kwargs)
            following.check_outputs(outputs)
        except ExamplesMeet as meeting:
            raise ExamplesMeet(f"{meeting} may tie examples{following.where}") from meeting
    return following.uses()


def most_apart(module: nn.Module, call: Call, uses: tuple[LayerUse, ...]) -> int:
    """Follow a model through a batch that is larger than those before, and return up to how many examples stay apart.

    It is called with some more examples than the batch has, so that a batch which is larger again comes seldom: a
    number of which few axes have the length, since a table of that length would look as if it belonged to the examples.

    Args:
        module: The model, in training.
        call: Positional arguments of the batch, and those by name.
        uses: How it uses its trained layers.

    Returns:
        The number of examples, which is that of the batch or larger.

    Raises:
        ExamplesMeet: Naming the operation and the layer.
    """
    n = count(call)
    length = _prime_from(n + n // 8)
    try:
        found = _followed(module, call, length)
    except ExamplesMeet:  # at two lengths it would be no coincidence
        length = _prime_from(length + 1)
        found = _followed(module, call, length)
    if found != uses:
        raise ExamplesMeet("a layer is used in another way than with fewer examples")
    return length


def _prime_from(least: int) -> int:
    number = max(least, EXAMPLES[0])
    while any(number % divisor == 0 for divisor in range(2, math.isqrt(number) + 1)):
        number += 1
    return number


class _Following:
    """The layers in which the pass is, and what it did to their parameters and outputs."""

    def __init__(self, subject: nn.Module, batch: Any, n: int):
        self._named = {layer: name for name, layer in subject.named_modules() if trained(layer)}
        self._owner = {memory_of(value): layer for layer in self._named for value in layer.parameters(recurse=False)}
        self._inside: list[nn.Module] = []
        self._axes: dict[nn.Module, BatchAxis] = {}
        self._outputs: dict[int, nn.Module] = {}
        self._overwritten: set[nn.Module] = set()
        self.where = ""
        self.mode = FollowedExamples([part for part in tensors(batch) if part.ndim], n, self._look)
        self._nothing_read = NothingRead(self.mode)

    def __enter__(self) -> None:
        self.mode.__enter__()
        self._nothing_read.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._nothing_read.__exit__(*error)
        self.mode.__exit__(*error)

    def hooks(self) -> Any:
        stack = _Handles()
        for layer in self._named:
            stack.handles.append(layer.register_forward_pre_hook(self._enter, with_kwargs=True))
            stack.handles.append(layer.register_forward_hook(self._leave))
        return stack

    def _look(self, name: str, given: list[Tensor], written: list[Tensor]) -> None:
        inside = self._inside[-1] if self._inside else None
        self.where = f", in layer {self._named[inside]!r}" if inside else ""
        for part in given:
            owner = self._owner.get(memory_of(part))
            if owner is not None and owner is not inside:
                raise ExamplesMeet(f"{name} with a parameter of layer {self._named[owner]!r}, outside of it,")
        for part in written:
            if (layer := self._outputs.get(memory_of(part))) is not None:
                self._overwritten.add(layer)

    def _enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            raise ExamplesMeet(f"layer {self._named[layer]!r}, which is not called with one tensor,")
        axis = self.mode.axis_of(args[0])
        if axis is None or axis is UNIFORM:
            raise ExamplesMeet(f"layer {self._named[layer]!r}, whose input does not depend on the batch,")
        if layer in self._axes:
            raise ExamplesMeet(f"layer {self._named[layer]!r}, which is used twice,")
        self._axes[layer] = axis
        self._inside.append(layer)

    def _leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._inside.pop()
        if self.mode.axis_of(output) != self._axes[layer]:
            raise ExamplesMeet(f"layer {self._named[layer]!r}, which moves the examples to another axis,")
        self._outputs[memory_of(output)] = layer

    def check_outputs(self, outputs: Any) -> None:
        for part in floating(outputs):
            axis = self.mode.axis_of(part)
            if axis is None or axis is UNIFORM or axis.axis != 0:
                raise ExamplesMeet("an output without an entry an example")
        refuse_own_backward(floating(outputs))

    def uses(self) -> tuple[LayerUse, ...]:
        return tuple(
            LayerUse(name=self._named[layer], axis=axis, overwritten=layer in self._overwritten)
            for layer, axis in self._axes.items()
        )


class _Handles:
    def __init__(self):
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        for handle in self.handles:
            handle.remove()

"""Isolated: per-example gradients of each example alone, by a map over the examples."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import grad, vmap

from dpcomp.core.checks import whole_number
from dpcomp.core.errors import NotPrivate
from dpcomp.core.layout import Layout
from dpcomp.training.pytorch.rows.engine import Loss
from dpcomp.training.pytorch.rows.own_functions import own_functions
from dpcomp.training.pytorch.rows.parameters import Places, trainable
from dpcomp.training.pytorch.rows.passes import Pass
from dpcomp.training.pytorch.rows.structures import Call, columns, count, mapped, repeated, rows, tensors


@dataclass(frozen=True, kw_only=True)
class Isolated:
    """Take each example's gradient alone: a batch of one goes through model and loss, mapped over the examples.

    Parameters are arguments of the function that is differentiated (`vmap(grad)`).
    A model that `vmap` does not accept is differentiated example by example in a loop: slower, and the same rows.

    **Privacy:** row i is a function of example i, the parameters and its own random numbers by construction, whatever
    layers, memory layout and loss do to a batch. A `torch.autograd.Function` with a `vmap` of its own, which would get
    all examples, makes it a loop.

    Args:
        chunk_size: The examples whose gradients are held at a time.

    Raises:
        ValueError: `chunk_size` is below 1.
    """

    chunk_size: int = 64

    def __post_init__(self):
        whole_number(self.chunk_size, "Isolated(chunk_size)", least=1)

    def attach(self, module: nn.Module, loss: Loss, inputs: Any) -> "IsolatedRows":
        """Return what makes the rows of a module."""
        return IsolatedRows(module, loss, self.chunk_size)


class IsolatedRows:
    """Rows by `vmap(grad)`, or by a loop where `vmap` does not accept the module.

    Args:
        module: The model, in training.
        loss: The mean loss of a batch.
        rows_at_once: The examples that are mapped over at a time.
    """

    assumption = "each example's gradient was taken alone"
    keeps: frozenset[str] = frozenset()

    def __init__(self, module: nn.Module, loss: Loss, rows_at_once: int):
        self._module, self._loss = module, loss
        self._parameters: dict[str, Tensor] = dict(trainable(module))
        self._places = Places(module)
        self.rows_at_once: int | None = rows_at_once
        self.in_a_loop = False
        self.copies = 1  # 2 for a module that gives a batch of one another form, as a bare squeeze() does

    def forward(self, one: Pass) -> Any:
        """Return the outputs, at which a backward pass stops unless inputs or public rows need it to go on."""
        one.alone = True
        if one.public:
            return self._with_a_parameter_a_row(one)
        args, kwargs = one.given
        if any(part.requires_grad for part in tensors(one.call)):
            fixed: dict[str, Tensor] = {name: value.detach() for name, value in self._parameters.items()}
            return self._places.call(fixed, args, kwargs)
        with torch.no_grad():
            outputs = self._module(*args, **kwargs)
        # The rows are made anew from the inputs, so raw gradients need never lie on the parameters.
        return mapped(lambda part: part.detach().requires_grad_() if part.is_floating_point() else part, outputs)

    def rows(self, one: Pass, targets: Any, start: int, stop: int) -> tuple[Tensor, ...]:
        """Return the rows of some examples, as `Rows.rows` says."""
        if one.leaves is not None:
            found = [leaf.grad for leaf in one.leaves.values()]
            return tuple(
                torch.zeros_like(leaf[start:stop]) if gradient is None else gradient[start:stop] * one.n
                for leaf, gradient in zip(one.leaves.values(), found, strict=True)
            )
        examples = rows((one.call, targets), start, stop)
        with one.in_its_precision():
            if not self.in_a_loop and not columns(examples):  # the map takes no strings
                try:
                    return self._mapped(examples)
                except Exception:
                    self.in_a_loop = True  # vmap refuses what depends on values, and layers without a rule for it
            return self._looped(examples)

    def leave_wrong_map(self, one: Pass, targets: Any) -> None:
        """Use the loop from now on if the map gives other gradients of some examples, or may, as a layer's rule may."""
        if self.in_a_loop or one.random:
            return
        examples = rows((one.call, targets), 0, 3)
        if self._has_own_rule(rows(examples, 0, 1)):
            self.in_a_loop = True
            return
        mapped_rows, looped_rows = self.rows(one, targets, 0, 3), self._looped(examples)
        for i in range(len(looped_rows[0])):  # a small row beside a large one has a scale of its own
            scale = max(float(part[i].nan_to_num(0.0, 0.0, 0.0).abs().max()) for part in looped_rows)
            self.in_a_loop |= any(
                not torch.allclose(a[i], b[i], rtol=0, atol=1e-3 * scale, equal_nan=True)
                for a, b in zip(mapped_rows, looped_rows, strict=True)
            )

    def _has_own_rule(self, example: Any) -> bool:
        """Return whether a function in model or loss has a rule of its own for `vmap`, which gets all examples."""
        with torch.enable_grad():
            loss = self._loss_of_one(self._parameters, repeated(example, self.copies))
        kinds = [getattr(node, "_forward_cls", None) for node in own_functions([loss])]
        return any(getattr(kind, "vmap", None) is not Function.vmap for kind in kinds)

    def units(self, one: Pass, layout: Layout) -> None:
        """Return None: this engine makes rows."""

    def refuse_other_passes(self, reached: int) -> None:
        """Refuse gradients on the parameters: the rows are made anew, so whatever made these would be dropped.

        Raises:
            NotPrivate: Naming the parameters.
        """
        if names := [name for name, value in self._parameters.items() if value.grad is not None]:
            raise NotPrivate(
                f"the script's backward pass reached {names} past the outputs of the model, and such gradients are not "
                "in the rows: for a weight penalty use weight_decay= of the optimiser; call the model itself, not its "
                "layers; and call optimizer.zero_grad() after backward passes of other losses"
            )

    def arranged(self, call: Call) -> Call:
        """Return the arguments as they are."""
        return call

    def paused(self) -> AbstractContextManager[None]:
        """Change nothing: the module has no hooks."""
        return nullcontext()

    def forget(self, *, unfinished: bool) -> None:
        """Do nothing: no row outlives its step."""

    def _loss_of_one(self, parameters: dict[str, Tensor], alone: Any) -> Tensor:
        """Return the loss of an example, of which a batch holds as many copies as the model needs."""
        (args, kwargs), targets = alone
        outputs = self._places.call(parameters, args, kwargs)
        return self._loss(outputs, targets)

    def _mapped(self, examples: Any) -> tuple[Tensor, ...]:
        leaves = list(tensors(examples))
        parameters = {name: value.detach() for name, value in self._parameters.items()}

        def loss(values: dict[str, Tensor], *parts: Tensor) -> Tensor:
            alone = mapped(lambda part: part.unsqueeze(0).expand(self.copies, *part.shape), rebuilt(examples, parts))
            return self._loss_of_one(values, alone)

        axes = tuple(0 if leaf.ndim else None for leaf in leaves)
        with _fallbacks_allowed():
            gradients = vmap(grad(loss), in_dims=(None, *axes), randomness="different")(parameters, *leaves)
        return tuple(gradient.detach() for gradient in gradients.values())

    def _looped(self, examples: Any) -> tuple[Tensor, ...]:
        named = self._parameters
        found: list[list[Tensor]] = []
        for i in range(count(examples)):
            with torch.enable_grad():
                loss = self._loss_of_one(named, repeated(rows(examples, i, i + 1), self.copies))
            found.append(gradients_of([loss], list(named.values()), [None]))
        return tuple(torch.stack(column) for column in zip(*found, strict=True))

    def _with_a_parameter_a_row(self, one: Pass) -> Any:
        """Return outputs whose gradients reach a copy of each parameter a row, under any loss."""
        one.leaves = {
            name: value.detach().expand(one.n, *value.shape).clone().requires_grad_()
            for name, value in self._parameters.items()
        }
        parts = list(tensors(one.call))

        def output(values: dict[str, Tensor], alone: Call) -> Any:
            return mapped(lambda part: part.squeeze(0), self._places.call(values, *alone))

        def outputs(values: dict[str, Tensor], *given: Tensor) -> Any:
            return output(values, mapped(lambda part: part.unsqueeze(0), rebuilt(one.call, given)))

        if self.in_a_loop or columns(one.call):
            each = [
                output({name: leaf[i] for name, leaf in one.leaves.items()}, rows(one.call, i, i + 1))
                for i in range(one.n)
            ]
            found = zip(*(tensors(row) for row in each), strict=True)
            return rebuilt(each[0], [torch.stack(parts_of_all) for parts_of_all in found])
        axes = tuple(0 if part.ndim else None for part in parts)
        with _fallbacks_allowed():
            return vmap(outputs, in_dims=(0, *axes), randomness="different")(one.leaves, *parts)


def gradients_of(outputs: list[Tensor], parameters: list[Tensor], cotangents: list[Any]) -> list[Tensor]:
    """Return the gradients of outputs with respect to parameters; zeros where an output does not depend on them."""
    if not any(output.requires_grad for output in outputs):
        return [torch.zeros_like(parameter) for parameter in parameters]
    found = torch.autograd.grad(outputs, parameters, cotangents, allow_unused=True)
    return [
        torch.zeros_like(parameter) if gradient is None else gradient.detach()
        for parameter, gradient in zip(parameters, found, strict=True)
    ]


@contextmanager
def _fallbacks_allowed() -> Iterator[None]:
    """Silence torch's warning that a kernel without a rule for `vmap` is called example by example."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


def rebuilt(structure: Any, parts: Any) -> Any:
    """Return a structure with other tensors in the places of its own."""
    following = iter(parts)
    return mapped(lambda _: next(following), structure)

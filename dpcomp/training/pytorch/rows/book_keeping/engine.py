"""BookKeeping: norms and clipped sums from layer inputs and output gradients, for models that keep examples apart."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dpcomp.core.errors import NotPrivate
from dpcomp.core.layout import Layout
from dpcomp.privacy.units.factored_units import FactoredUnits
from dpcomp.training.pytorch.channels_last import set_channels_last, takes_channels_last, with_channels_last
from dpcomp.training.pytorch.rows.batch_sizes import BatchSizes
from dpcomp.training.pytorch.rows.book_keeping.batch_axis import ExamplesMeet
from dpcomp.training.pytorch.rows.book_keeping.booked_units import Booked, BookedUnits
from dpcomp.training.pytorch.rows.book_keeping.examples_apart import EXAMPLES, LayerUse, layer_uses, most_apart
from dpcomp.training.pytorch.rows.book_keeping.formulas import trained
from dpcomp.training.pytorch.rows.book_keeping.layer_terms import LayerTerms
from dpcomp.training.pytorch.rows.book_keeping.own_code import unread
from dpcomp.training.pytorch.rows.engine import Loss
from dpcomp.training.pytorch.rows.isolated import Isolated, IsolatedRows
from dpcomp.training.pytorch.rows.parameters import layout_of, trainable
from dpcomp.training.pytorch.rows.passes import Pass
from dpcomp.training.pytorch.rows.structures import Call, call_of
from dpcomp.training.pytorch.steps.step_code import modes_around, saved_tensors_hooks_around

REMEDY = "give engine=Isolated(), which takes the gradient of each example alone"


@dataclass(frozen=True, kw_only=True)
class BookKeeping:
    """Take clipped sums from the inputs and the output gradients of layers, without a gradient an example.

    One backward pass goes to the outputs of layers and none to their weights. Norms come from these factors in closed
    form or from rows that are made layer by layer, and the weighted sum from the same products. Convolutions run with
    channels last, whatever the layout of the model.

    It serves models of `Linear`, `Conv1d` to `Conv3d`, `ConvTranspose1d` to `3d`, `Embedding`, `GroupNorm`,
    `LayerNorm`, `RMSNorm` and `InstanceNorm` layers, each used once in a pass, whose other operations are known to keep
    examples apart, as a trace of the forward pass shows. A pass that takes values of the batch out of torch
    (`x.numpy()`, `x.tolist()`), or runs code of Python in its backward pass, is not served. Mixed precision runs on
    `Isolated()`.

    Source: Bu et al. 2023, "Differentially Private Optimization on Large Model at Small Cost", sections 3 and 4.

    **Privacy:** a row is the product of its example's own layer inputs and output gradients. The operations of the
    forward pass are followed in a trial, and again in training as soon as a batch is larger than those of its lengths
    that were: a batch in which examples may meet gets the rows of `Isolated()`. One secretly drawn row of each
    micro-batch is held to the gradient of its example alone (PRIVACY_RULES hazards 29, 31 and 34): nothing else shows
    what depends on the number of examples without an operation that could tie them, as `x * (1 / len(x))` does. A norm
    reads low by no more than 4·10⁻⁶.
    """

    def attach(self, module: nn.Module, loss: Loss, inputs: Any) -> "BookedRows":
        """Follow a module through a batch, and return what makes its sums.

        Raises:
            NotPrivate: A layer has no formula, or an operation is not known to keep examples apart.
        """
        uses = layer_uses(module, inputs)
        if isinstance(uses, str):
            raise NotPrivate(f"book-keeping does not serve this model: {uses}. {REMEDY[0].upper()}{REMEDY[1:]}")
        found = BookedRows(module, loss, uses, channels_last=takes_channels_last(module, inputs))
        found.apart.add(call_of(inputs), max(EXAMPLES))
        return found


class BookedRows:
    """Layer inputs and output gradients of passes, from which rows and sums are made.

    A pass that does what no trial did, such as calling a layer twice, gets the rows of `Isolated()`. So does one that
    is larger than all that were followed, if examples may meet in it; and one inside a mode of torch, or inside hooks
    on what is saved for the backward pass, which could change any operation without being followed.

    Args:
        module: The model, in training.
        loss: The mean loss of a batch.
        uses: How it uses its trained layers.
        channels_last: Whether images go through it with channels last in memory.

    Attributes:
        isolated: What makes the rows of passes that are not booked.
        apart: The largest batches in which examples stay apart, as the operations of the model show.
    """

    assumption = "rows of per-example gradients, and that the loss is their examples' mean, were checked, not proven"
    rows_at_once: int | None = None
    keeps: frozenset[str] = frozenset()

    def __init__(self, module: nn.Module, loss: Loss, uses: tuple[LayerUse, ...], *, channels_last: bool):
        self._module, self.isolated = module, IsolatedRows(module, loss, Isolated().chunk_size)
        self.copies = 1
        self.apart, self._tied, self._uses = BatchSizes(), BatchSizes(), uses
        self._parameters = trainable(module)
        places = {id(value): place for place, value in enumerate(self._parameters.values())}
        self._layers: dict[nn.Module, _LayerPlan] = {}
        self._open: dict[nn.Module, _Entry | None] | None = None
        handles = vars(module).setdefault("autograd_grad_sample_hooks", [])  # where `remove_hooks` looks for them
        for use in uses:
            layer = module.get_submodule(use.name)
            own = tuple(places[id(getattr(layer, name))] for name in trained(layer))
            self._layers[layer] = _LayerPlan(use=use, places=own)
            handles.append(layer.register_forward_hook(self._book))
        self._layout = layout_of(module)
        self._shapes = [value.shape for value in self._parameters.values()]
        _let_freed_memory_be_used_again()
        self._channels_last = channels_last
        if channels_last:
            set_channels_last(module)

    def forward(self, one: Pass) -> Any:
        """Return the outputs, from which a backward pass reaches the outputs of layers, and no weights."""
        self.isolated.copies = self.copies
        if one.autocast is not None or one.doubled or changed_from_outside() or not self._stays_apart(one):
            return self.isolated.forward(one)
        args, kwargs = unread(self.arranged(one.given))
        self._open = book = {}
        for parameter in self._parameters.values():
            parameter.requires_grad_(False)
        try:
            outputs = self._module(*args, **kwargs)
        except ExamplesMeet:  # it reads what it did not read when it was followed
            outputs = book = None
        finally:
            self._open = None
            for parameter in self._parameters.values():
                parameter.requires_grad_(True)
        if book is None:
            return self.isolated.forward(one)
        one.book = book
        return outputs

    def _stays_apart(self, one: Pass) -> bool:
        """Return whether the examples of a pass stay apart: one larger than those of its lengths is followed first."""
        if self.apart.cover(one.call):
            return True
        if self._tied.reach(one.call):
            return False
        try:
            with self.paused():
                most = most_apart(self._module, self.arranged(one.call), self._uses)
        except ExamplesMeet as meeting:
            self._tied.add(one.call)
            logging.getLogger("dpcomp").warning(
                "batches of %d examples and more take each example's gradient alone (Isolated()), which is slower than "
                "BookKeeping(): %s",
                one.n,
                meeting,
            )
            return False
        except Exception:  # of the model, as its own pass will say
            return False
        self.apart.add(one.call, most)
        return True

    def _book(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Note what a layer got, and have its output's gradient noted."""
        if self._open is None:
            return None
        if layer in self._open or len(args) != 1:
            self._open[layer] = None  # used in another way than in the trial
            return None
        if not output.requires_grad:  # from here on gradients are needed
            leaf = output.detach().requires_grad_()
            self._open[layer] = _Entry(args[0].detach(), args[0]._version, leaf)
            return leaf.clone() if self._layers[layer].use.overwritten else leaf
        self._open[layer] = entry = _Entry(args[0].detach(), args[0]._version)
        output.register_hook(entry.receive)
        return None

    def units(self, one: Pass, layout: Layout) -> FactoredUnits | None:
        """Return the examples of a pass by their norms and sums; None if the pass needs rows."""
        return self._units(one, layout)

    def rows(self, one: Pass, targets: Any, start: int, stop: int) -> tuple[Tensor, ...]:
        """Return the rows of some examples, as `Rows.rows` says."""
        units = self._units(one, self._layout)
        if units is not None:
            return units.rows_of(start, stop)
        if one.public and one.leaves is None:
            raise NotPrivate(
                "a pass of public rows used a layer in another way than the trial did, so its rows are not known: "
                f"{REMEDY}"
            )
        return self.isolated.rows(one, targets, start, stop)

    def _units(self, one: Pass, layout: Layout) -> BookedUnits | None:
        booked = None if one.book is None else self._booked(one)
        if booked is None:
            return None
        like = next(iter(self._parameters.values())).detach()
        return BookedUnits(layout=layout, booked=booked, shapes=self._shapes, n=one.n, scale=float(one.n), like=like)

    def _booked(self, one: Pass) -> list[Booked] | None:
        """Return what each layer got and gave; None if a layer was used in another way than in the trial."""
        booked: list[Booked] = []
        for layer, entry in (one.book or {}).items():
            if entry is None or entry.inputs._version != entry.version:
                return None
            gradient = entry.gradient
            if gradient is None:
                continue
            plan, inputs = self._layers[layer], entry.inputs
            axis = plan.use.axis
            if axis.axis:
                inputs, gradient = inputs.movedim(axis.axis, 0), gradient.movedim(axis.axis, 0)
            if inputs.shape[0] != one.n * axis.inner or gradient.shape[0] != inputs.shape[0]:
                return None
            booked.append(Booked(layer, plan.places, inputs, gradient, entry.made))
        return booked

    def refuse_other_passes(self, reached: int) -> None:
        """Refuse gradients on the parameters, as `Isolated()` does."""
        self.isolated.refuse_other_passes(reached)

    def arranged(self, call: Call) -> Call:
        """Return the arguments with channels last where the module takes them so."""
        return with_channels_last(call) if self._channels_last else call

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the model be used without booking anything."""
        held, self._open = self._open, None
        try:
            yield
        finally:
            self._open = held

    def forget(self, *, unfinished: bool) -> None:
        """Do nothing: what is booked is kept with its pass."""


@dataclass(frozen=True, eq=False)
class _LayerPlan:
    use: LayerUse
    places: tuple[int, ...]


@dataclass(eq=False)
class _Entry:
    """What a layer got in a pass, and the gradients that reached its output.

    Args:
        inputs: What it got.
        version: How often that had been written.
        leaf: Its output, if gradients begin there.
        made: The terms of all examples, if they are kept for a sum.
    """

    inputs: Tensor
    version: int
    leaf: Tensor | None = None
    received: Tensor | None = None
    made: list[LayerTerms] = field(default_factory=list)

    def receive(self, gradient: Tensor) -> None:
        self.received = gradient.detach() if self.received is None else self.received + gradient.detach()

    @property
    def gradient(self) -> Tensor | None:
        return self.received if self.leaf is None else self.leaf.grad


def changed_from_outside() -> bool:
    """Return whether modes or hooks are active that could change operations of a pass, or what is saved of them."""
    return saved_tensors_hooks_around() or bool(modes_around())


def _let_freed_memory_be_used_again() -> None:
    """Raise glibc's thresholds for giving memory back to the system, as freeing one large block does.

    A step frees and takes the same tens of megabytes each time. Given back and asked for anew, every page of them is
    cleared by the system, which takes a quarter of a step. The thresholds grow to 32 and 64 MiB, and no further
    (mallopt(3), M_MMAP_THRESHOLD).
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)

"""Pass: what a step needs to know of one forward pass of the model and of the backward pass that followed it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dpcomp.training.pytorch.rows.generators import States, kept_generators, set_random_states
from dpcomp.training.pytorch.rows.structures import Call, count, mapped, repeated, tensors


def floating(outputs: Any) -> list[Tensor]:
    """Return the floating-point tensors of a structure, in order."""
    return [part for part in tensors(outputs) if part.is_floating_point()]


@dataclass(eq=False, kw_only=True)
class Pass:
    """One forward pass in training, as recorded.

    Args:
        args: What the model was called with.
        kwargs: What it was called with by name.
        public: Whether the inputs were declared to hold no private data.
        random_states: The states of the global generators when it began.
        autocast: The type of the mixed precision; None without.
        doubled: Whether the model is given its single example twice, since it gives a batch of one another form.
        random: Whether the pass drew from them.
        outputs: The model's outputs, without gradients.
        cotangents: By the number of a floating-point output, the gradient of the script's loss with respect to it.
        order: Which backward pass reached it, from 0; None if none did.
        leaves: With the isolated engine, and public inputs only: a copy of each parameter a row, whose gradients are
            the rows.
        alone: Whether its rows are made by a pass of each example alone.
        book: With the book-keeping engine: by layer, what it got and the gradients that reached its output.

    Attributes:
        n: The number of rows.
        device: Where the inputs lie.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    public: bool
    random_states: States
    autocast: torch.dtype | None
    doubled: bool = False
    random: bool = False
    outputs: Any = None
    cotangents: dict[int, Tensor] = field(default_factory=dict)
    order: int | None = None
    leaves: dict[str, Tensor] | None = None
    alone: bool = False
    book: dict[nn.Module, Any] | None = None
    n: int = field(init=False)
    device: torch.device = field(init=False)

    def __post_init__(self):
        parts = tensors(self.call)
        self.n, self.device = count(parts), parts[0].device if parts else torch.device("cpu")

    @property
    def call(self) -> Call:
        """The arguments of the call."""
        return Call(self.args, self.kwargs)

    @property
    def given(self) -> Call:
        """The arguments that the module gets."""
        return repeated(self.call, 2) if self.doubled else self.call

    def watch(self, outputs: Any, next_order: Callable[[], int]) -> None:
        """Note the outputs, and from now on the gradients that reach them; the first one takes the next number."""
        self.outputs = mapped(torch.Tensor.detach, outputs)
        for number, part in enumerate(floating(outputs)):
            if part.requires_grad:
                part.register_hook(self._reached_by(number, next_order))

    def _reached_by(self, number: int, next_order: Callable[[], int]) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            if self.order is None:
                self.order = next_order()
            gradient = gradient.detach()
            held = self.cotangents.get(number)
            self.cotangents[number] = gradient if held is None else held + gradient

        return note

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw again what the pass drew: the generators are at the state at which it began, and afterwards restored."""
        with kept_generators():
            set_random_states(self.random_states)
            yield

    def in_its_precision(self) -> AbstractContextManager[Any]:
        """Use the mixed precision that the pass used."""
        if self.autocast is None:
            return without_autocast(self.device)
        return torch.autocast(self.device.type, dtype=self.autocast)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Use no mixed precision on a device for a while."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()  # as a rule: to make and enter the other takes as long as a layer
    return torch.autocast(device.type, enabled=False)

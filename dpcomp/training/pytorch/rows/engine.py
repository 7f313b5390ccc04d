"""Engine: the seam between a model in training and the per-example gradients that a step clips."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from dpcomp.core.layout import Layout
from dpcomp.privacy.units.factored_units import FactoredUnits
from dpcomp.training.pytorch.rows.passes import Pass
from dpcomp.training.pytorch.rows.structures import Call

Loss = Callable[[Any, Any], Tensor]  # the mean loss of a batch, of outputs and targets


class Rows(Protocol):
    """Turns the passes of a model into rows: row i is the gradient of example i."""

    assumption: str
    rows_at_once: int | None  # how many are made at a time; None for all rows of a pass
    copies: int  # of an example in a batch of its own
    keeps: frozenset[str]  # names of attributes that it writes on layers

    def forward(self, one: Pass) -> Any:
        """Return the model's outputs for a pass in training, prepared so that a backward pass leaves what `rows` needs.

        Raises:
            NotPrivate: The pass before this one is not finished.
        """
        ...

    def rows(self, one: Pass, targets: Any, start: int, stop: int) -> tuple[Tensor, ...]:
        """Return the rows from `start` to before `stop` of a pass, an (n, …) tensor a trainable parameter.

        Args:
            one: A pass that a backward pass has reached.
            targets: The targets of its examples; None for public inputs.
            start: The first row.
            stop: The row after the last one.

        Raises:
            NotPrivate: The pass has other rows than examples.
        """
        ...

    def units(self, one: Pass, layout: Layout) -> FactoredUnits | None:
        """Return the examples of a pass by their norms and weighted sums; None where the engine makes rows only.

        Args:
            one: A pass that a backward pass has reached.
            layout: The layers of the model.
        """
        ...

    def refuse_other_passes(self, reached: int) -> None:
        """Refuse gradients of passes that were not recorded, where `reached` passes were.

        Raises:
            NotPrivate: There are some.
        """
        ...

    def arranged(self, call: Call) -> Call:
        """Return the arguments of a call in the layout of memory in which the module gets them."""
        ...

    def paused(self) -> AbstractContextManager[None]:
        """Let the model be used for a while without leaving a trace of it."""
        ...

    def forget(self, *, unfinished: bool) -> None:
        """Drop what finished passes left, and with `unfinished` also what the others left."""
        ...


class Engine(Protocol):
    """A way to per-example gradients: `BookKeeping()`, `Isolated()` or `Opacus()`."""

    def attach(self, module: nn.Module, loss: Loss, inputs: Any) -> Rows:
        """Prepare a module, and return what makes its rows.

        Args:
            module: The model.
            loss: The mean loss of a batch.
            inputs: A batch of examples as the model gets them.

        Raises:
            NotPrivate: The engine cannot make rows of this module.
        """
        ...

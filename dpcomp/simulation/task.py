"""What a federation learns."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Task(Protocol):
    """A supervised task: public facts, data, a model and a loss."""

    @property
    def name(self) -> str:
        """What the reports call it."""
        ...

    @property
    def population(self) -> int:
        """The number of training examples that the world knows of: a public constant, not `len(data)`."""
        ...

    def train(self) -> tuple[Tensor, Tensor]:
        """Inputs (n, …) and targets (n,); private, to be parted among clients."""
        ...

    def test(self) -> tuple[Tensor, Tensor]:
        """Inputs (n, …) and targets (n,) that are public."""
        ...

    def model(self, seed: int) -> nn.Module:
        """A fresh module with public first weights."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The plain mean over a batch of what each example loses; nothing in it ties examples together."""
        ...

"""SupervisedTask: what the PyTorch trainer asks of a task."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class SupervisedTask(Protocol):
    """A data set, a model and a loss, as tensors and a module on the CPU.

    Examples:
        A task of 60 made-up examples in two classes:

        >>> import torch
        >>> class Signs:
        ...     name, population = "signs", 60
        ...     def train(self):
        ...         inputs = torch.linspace(-1, 1, 60)[:, None]
        ...         return inputs, (inputs[:, 0] > 0).long()
        ...     def test(self):
        ...         return self.train()
        ...     def model(self, seed):
        ...         with torch.random.fork_rng(devices=[]):
        ...             torch.manual_seed(seed)
        ...             return torch.nn.Linear(1, 2)
        ...     def loss(self, outputs, targets):
        ...         return torch.nn.functional.cross_entropy(outputs, targets)
        >>> isinstance(Signs(), SupervisedTask)
        True
    """

    @property
    def name(self) -> str:
        """The name of the task in progress bars and reports."""
        ...

    @property
    def population(self) -> int:
        """The number of training examples as a public constant: it is not computed from the private data."""
        ...

    def train(self) -> tuple[Tensor, Tensor]:
        """Return the private inputs (n, …) and integer targets (n,), which are cut among the clients."""
        ...

    def test(self) -> tuple[Tensor, Tensor]:
        """Return public inputs (m, …) and integer targets (m,) to evaluate on."""
        ...

    def model(self, seed: int) -> nn.Module:
        """Return a fresh module, whose first weights are a function of the public seed."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of the examples' losses over a batch, as a scalar.

        **Privacy:** each example's loss must depend on that example alone: no class weights computed from the batch, no
        `ignore_index`, no contrast between examples.
        """
        ...

"""SupervisedTask: what the PyTorch trainer asks of a task."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class SupervisedTask(Protocol):
    """A data set, a model and a loss, as tensors and a module on the CPU.

    Any object with these six members is such a task; it need not inherit from this class:

    | member | what it is |
    |---|---|
    | `name` | the name of the task in progress bars and reports |
    | `population` | the public number of training examples |
    | `train()` | the private (n, …) inputs and (n,) integer targets |
    | `test()` | public (m, …) inputs and (m,) integer targets to evaluate on |
    | `model(seed)` | a fresh `torch.nn.Module` from (b, …) inputs to (b, classes) outputs |
    | `loss(outputs, targets)` | the mean loss of a batch, as a scalar tensor |

    A task that also has `validation()` is a `dpcomp.training.HoldsOut`, and is evaluated on these examples too.

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
        """Return a fresh module from (b, …) inputs to (b, classes) outputs; the public seed decides its first weights.

        It is called several times in a simulation, and must return a new module with the same weights each time.
        """
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of the examples' losses over a batch of (b, classes) outputs and (b,) targets, as a scalar.

        **Privacy:** each example's loss must depend on that example alone: no class weights computed from the batch, no
        `ignore_index`, no contrast between examples.
        """
        ...

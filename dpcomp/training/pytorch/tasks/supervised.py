"""SupervisedTask: what the PyTorch trainer asks of a task."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class SupervisedTask(Protocol):
    """A data set, a model and a loss, as arrays or a Dataset and a module on the CPU.

    Any object with these six members is such a task; it need not inherit from this class:

    | member | what it is |
    |---|---|
    | `name` | the name of the task in progress bars and reports |
    | `population` | the public number of training examples |
    | `train()` | the private examples |
    | `test()` | public examples to evaluate on; there may be none |
    | `model(seed)` | a fresh `torch.nn.Module` from inputs to outputs, both (b, …) |
    | `loss(outputs, targets)` | the mean loss of a batch, as a scalar tensor |

    Examples are (n, …) inputs and (n, …) targets, tensors or arrays of NumPy. Several inputs are a tuple, with which
    the model is called by position, or a dict, with which it is called by name. A dict with the key "labels" holds
    inputs and targets. Or they are a map-style Dataset or a list of examples, which are collated.

    What it may have besides:

    | member | what it is |
    |---|---|
    | `metrics(outputs, targets)`, or `metric_sums`, `metrics_of_sums` | what is measured: `dpcomp.training.metrics` |
    | `validation()` | public examples to choose settings by: `dpcomp.training.HoldsOut` |
    | `client_ids()` | the column that `ByClientId()` of `dpcomp.simulation` parts the examples by |
    | `collate(examples)` | a batch of a list of examples, such as a padded one: a row depends on its example alone |

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
        ...         return torch.nn.Linear(1, 2)
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

    def train(self) -> Any:
        """Return the private examples, which are cut among the clients."""
        ...

    def test(self) -> Any:
        """Return public examples to evaluate on, in the form of `train()`; arrays of length 0, or None, for none."""
        ...

    def model(self, seed: int) -> nn.Module:
        """Return a fresh module; the public seed decides its first weights.

        It is called several times in a simulation, each time with torch's global generator seeded alike, so a module
        that draws its weights from it has the same ones each time.
        """
        ...

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Return the mean of the examples' losses over a batch of outputs and targets, as a scalar.

        **Privacy:** each example's loss must depend on that example alone: no class weights computed from the batch, no
        `ignore_index`, no contrast between examples.
        """
        ...


@runtime_checkable
class Collates(Protocol):
    """What a task may have besides: how a batch is made of examples, where stacking does not do."""

    def collate(self, examples: list[Any]) -> Any:
        """Return a batch of one example or more.

        The last part of a tuple, or "labels" of a dict, are the targets, and the rest is what the model is called with.

        **Privacy:** with `unit="example"`, the row of an example must be what it is alone: what is padded is masked.
        """
        ...


def collate_of(task: object) -> Callable[[list[Any]], Any] | None:
    """Return the collate function of a task; None if it has none."""
    return task.collate if isinstance(task, Collates) else None

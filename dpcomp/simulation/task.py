"""Task: what a federation learns."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Task(Protocol):
    """The public facts that `simulate` asks of a task.

    The trainer asks for more, such as data, a model, a loss and perhaps metrics: for `PyTorch` these are the members of
    `dpcomp.training.pytorch.SupervisedTask`.
    """

    @property
    def name(self) -> str:
        """The name of the task in the progress bar."""
        ...

    @property
    def population(self) -> int:
        """The number of training examples as a public constant: it is not computed from the private data."""
        ...

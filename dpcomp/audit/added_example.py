"""AddedExample: a task with one example more, the canary."""

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace


@dataclass(frozen=True, kw_only=True, eq=False)
class AddedExample:
    """A task whose training set has one example more; all else is that of the task, its public population included.

    Args:
        task: A `SupervisedTask`, or another task whose `train()` returns inputs and targets.
        example: The input of the example, without a batch axis.
        target: Its target.
    """

    task: Any
    example: Any
    target: Any

    def train(self) -> tuple[Any, Any]:
        """Return the task's inputs and targets, with those of the example at the end."""
        inputs, targets = self.task.train()
        xp = array_namespace(inputs)
        example = xp.asarray(self.example, dtype=inputs.dtype)
        target = xp.asarray(self.target, dtype=targets.dtype)
        return xp.concat([inputs, example[None]]), xp.concat([targets, target[None]])

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.task.name

    @property
    def population(self) -> int:
        """The public number of examples, which does not change with one of them."""
        return self.task.population

    def test(self) -> tuple[Any, Any]:
        """Return what the task tests on."""
        return self.task.test()

    def model(self, seed: int) -> Any:
        """Return a fresh model of the task."""
        return self.task.model(seed)

    def loss(self, outputs: Any, targets: Any) -> Any:
        """Return the task's loss."""
        return self.task.loss(outputs, targets)

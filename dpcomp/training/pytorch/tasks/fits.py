"""Whether the model, the loss and the examples of a task fit each other: tried before anything is spent."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from dpcomp.core.checks import missing_members, whole_number
from dpcomp.core.errors import named_error
from dpcomp.training.pytorch.rows.structures import call_of, tensors
from dpcomp.training.pytorch.tasks.evaluation import said
from dpcomp.training.pytorch.tasks.examples import Examples, spread
from dpcomp.training.pytorch.tasks.supervised import SupervisedTask


def first_model(task: SupervisedTask, seed: int) -> nn.Module:
    """Return a fresh model, whose draws from torch's global generator the seed decides; the generator is left alone.

    Raises:
        TypeError: The task gives no module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = task.model(seed)
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"model({seed}) of the task {task.name!r} returned {type(module).__name__}: return a torch.nn.Module, with "
            "new weights each time"
        )
    return module


def check_members(task: object) -> None:
    """Refuse what is no task.

    Raises:
        TypeError: It is a class, or lacks members of `SupervisedTask`.
    """
    if isinstance(task, type):
        raise TypeError(f"the task is the class {task.__name__}: give an instance of it, {task.__name__}(...)")
    if missing := missing_members(task, SupervisedTask):
        raise TypeError(
            f"PyTorch cannot train {task!r}, which has no {' and no '.join(missing)}: give a task with all members "
            "of dpcomp.training.pytorch.SupervisedTask"
        )


def check_task(
    task: SupervisedTask, module: nn.Module, examples: Examples, labels: Shaped[np.ndarray, "n ..."]
) -> None:
    """Raise where the population is no number, or model and loss do not take the training examples.

    Args:
        task: Gives the loss.
        module: Its model, on the device of the examples; it is left in evaluation mode.
        examples: All training examples.
        labels: Their targets, as `Examples.labels` returns them.

    Raises:
        TypeError, ValueError: Naming the member of the task, the shapes that do not fit, and what to change.
    """
    name = f"the task {task.name!r}"
    whole_number(task.population, f"population of {name}", least=1)
    if not len(examples):
        raise ValueError(f"train() of {name} returned no examples: give those of all clients together")
    positions = _tried(labels)
    try:
        inputs, targets = examples.batch(positions)
    except Exception as error:
        raise ValueError(
            f"a batch of {len(positions)} examples of train() of {name} cannot be made: {named_error(error)}. Examples "
            "of different shapes need a member collate(examples) of the task, such as one that pads"
        ) from error
    what = said(inputs, targets, "inputs")
    module.eval()
    args, kwargs = call_of(inputs)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            outputs = module(*args, **kwargs)
        except Exception as error:
            raise ValueError(
                f"the model of {name} fails on {what} of train(): {named_error(error)}"
                f"{_other_precision(inputs, module)}. Let model(seed) return a module that takes these inputs"
            ) from error
        _check_loss(task, outputs, targets)


def _check_loss(task: SupervisedTask, outputs: Any, targets: Any) -> None:
    name, what = f"the loss of the task {task.name!r}", said(outputs, targets)
    try:
        loss = task.loss(outputs, targets)
    except Exception as error:
        raise ValueError(
            f"{name} fails on {what}{_range(targets)} of train(): {named_error(error)}. Let model(seed) return "
            "outputs, and train() targets, that the loss takes"
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"type {type(loss).__name__}"
        raise ValueError(f"{name} returned a value of {given} on {what}: return the mean over the batch, one tensor")
    if _broadcasts(task, outputs, targets, float(loss)):
        one_less = ("the model return", "torch.nn.Flatten(0), outputs[:, 0]", "train() return targets[:, None]")
        if outputs.ndim == 1:
            one_less = ("train() return targets of", "targets[:, 0]", "the model return outputs[:, None]")
        raise ValueError(
            f"{name} compares every output with every target: {what} are broadcast against each other. Let "
            f"{one_less[0]} one axis less ({one_less[1]}), or {one_less[2]}"
        )


def _broadcasts(task: SupervisedTask, outputs: Any, targets: Any, loss: float) -> bool:
    """Return whether (n, 1) and (n,) meet, outputs and targets or the reverse, with another loss than (n,) and (n,)."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or targets.ndim < 1 or len(targets) < 2:
        return False
    number = len(targets)
    if {tuple(outputs.shape), tuple(targets.shape)} != {(number,), (number, 1)} or not targets.is_floating_point():
        return False
    try:
        apart = float(task.loss(outputs.reshape(number), targets.reshape(number)))
    except Exception:  # it takes two axes only, and so it knows of the second
        return False
    return not np.isclose(loss, apart, rtol=1e-4, equal_nan=True)


def _tried(labels: Shaped[np.ndarray, "n ..."]) -> list[int]:
    """Return positions all over the examples, and those of the smallest and the largest class number."""
    positions = set(spread(len(labels)))
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        positions |= {int(labels.argmin()), int(labels.argmax())}
    return sorted(positions)


def _range(targets: Any) -> str:
    if not isinstance(targets, Tensor) or targets.is_floating_point() or not targets.numel():
        return ""
    return f" from {int(targets.min())} to {int(targets.max())}"


def _other_precision(inputs: Any, module: nn.Module) -> str:
    given = {part.dtype for part in tensors(inputs) if part.is_floating_point()}
    own = {parameter.dtype for parameter in module.parameters()}
    if not given or given <= own:
        return ""
    (other,) = list(given - own)[:1]
    return f" (the inputs are {other}, the parameters {', '.join(map(str, own))}: convert the inputs)"

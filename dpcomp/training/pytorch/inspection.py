"""Inspection of modules: those that mix examples, or whose buffers keep data, are refused."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dpcomp.core.errors import NotPrivate
from dpcomp.privacy.clip import unit_norms
from dpcomp.training.pytorch.parameters import trainable

TRIAL_EXAMPLES = 4
TOLERANCE = 1e-3  # of the largest gradient: what float32 may lose between a batch and its parts


class PrivateModel(GradSampleModule):
    """A module that passed inspection, with Opacus' hooks for per-example gradients; `private_model` makes it.

    After a backward pass, row i of each parameter's `grad_sample` is the gradient of example i.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output.

        Raises:
            NotPrivate: The pass before this one is not finished, so Opacus would add up rows of different examples.
        """
        if torch.is_grad_enabled():
            waiting = any(vars(layer).get("activations") for layer in self.modules())
            rows = {len(as_list(vars(parameter).get("grad_sample"))) for parameter in trainable(self).values()}
            if waiting or len(rows) > 1:
                raise NotPrivate(
                    "an earlier forward pass had no backward pass, or one that missed some parameters, so gradients "
                    "of different examples would be added up. Look at outputs under torch.no_grad(), take "
                    "optimizer.step() first, or, where a batch was given up, optimizer.discard()"
                )
        return super().forward(*args, **kwargs)


def private_model(module: nn.Module, example: Tensor) -> PrivateModel:
    """Inspect a module, and give it Opacus' hooks for per-example gradients.

    Use it with a loss that is the plain mean over the batch of each example's loss: without class weights and without
    `ignore_index`, which make the loss of one example depend on the others.

    **Privacy:** a clip bounds what one example adds to a sum only if row i of the gradients depends on example i alone.
    The module is checked by the types of its layers and by a trial on made-up examples.

    Args:
        module: The model.
        example: One input, without a batch axis; only its shape and type are used.

    Returns:
        The wrapped module, for `PrivateOptimizer`.

    Raises:
        NotPrivate: The module mixes examples, or keeps them in a buffer.

    Examples:
        >>> import torch
        >>> from dpcomp.training.pytorch import private_model
        >>> private_model(torch.nn.BatchNorm1d(4), torch.zeros(4))
        Traceback (most recent call last):
        ...
        dpcomp.core.errors.NotPrivate: layer '' (BatchNorm1d) normalises over the batch: ...
    """
    check_layers(module)
    check_by_trial(module, example)
    return PrivateModel(module, batch_first=True, loss_reduction="mean")


def check_layers(module: nn.Module) -> None:
    """Refuse all kinds of batch normalisation, tracked instance statistics, and what Opacus' validators refuse.

    Raises:
        NotPrivate: Naming the layer.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            raise NotPrivate(
                f"layer {name!r} ({type(layer).__name__}) normalises over the batch: an example moves the gradients "
                "of all others, also with affine=False or frozen weights. Use GroupNorm or LayerNorm"
            )
        if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
            raise NotPrivate(
                f"layer {name!r} ({type(layer).__name__}) writes statistics of the data to a buffer, without noise. "
                "Set track_running_stats=False"
            )
    errors = [*ModuleValidator.validate(module, strict=False), *GradSampleModule.validate(module, strict=False)]
    if errors:
        raise NotPrivate(f"Opacus cannot train this module privately: {'; '.join(map(str, errors))}")


def check_by_trial(module: nn.Module, example: Tensor) -> None:
    """Compute gradients of made-up examples, and refuse a module in which they depend on each other.

    An example's gradient must not change when another example is replaced or removed; then removing one moves the
    clipped sum by at most the clip norm. Replacing is tried with the same random numbers, so that dropout masks stay;
    removing, if the module draws random numbers, with layers without parameters in evaluation mode. No buffer may
    change.

    Args:
        module: The model; a copy is tried.
        example: One input without a batch axis, whose shape and type the made-up ones have.

    Raises:
        NotPrivate: Saying what changed, and by how much.
    """
    subject = copy.deepcopy(module).train()
    buffers = {name: buffer.clone() for name, buffer in subject.named_buffers()}
    wrapped = GradSampleModule(subject, loss_reduction="sum", strict=False)
    ends = (0, TRIAL_EXAMPLES - 1)  # what leaks forwards in the batch shows at one end, backwards at the other
    with torch.random.fork_rng(devices=[]), hooks_on_inputs():
        torch.manual_seed(0)
        batch, other = _made_up(example)
        whole = _gradients(wrapped, batch)
        now = dict(subject.named_buffers())
        changed = [name for name in now if name not in buffers or not torch.equal(now[name], buffers[name])]
        if changed:
            raise NotPrivate(
                f"buffers {changed} change in a training step: they keep data without noise. Remove them, or do not "
                "write them in a forward pass"
            )
        if _moved(whole, _gradients(wrapped, batch)) > TOLERANCE:
            raise NotPrivate(
                "the same batch has other gradients the second time: a layer keeps earlier batches, or its random "
                "numbers are not torch's. Remove that state, and draw with torch's global generator"
            )
        for i in ends:
            replaced = _gradients(wrapped, torch.cat([batch[:i], other[None], batch[i + 1 :]]))
            _refuse_moved(_without(whole, i), _without(replaced, i), "replacing")
        if _moved(whole, _gradients(wrapped, batch, seed=1)) > TOLERANCE:
            for layer in subject.modules():
                layer.training = bool(list(layer.parameters(recurse=False)))
            whole = _gradients(wrapped, batch)
            if _moved(whole, _gradients(wrapped, batch, seed=1)) > TOLERANCE:
                return  # dropout that no mode turns off: the masks of a smaller batch would be others
        for i in ends:
            removed = _gradients(wrapped, torch.cat([batch[:i], batch[i + 1 :]]))
            _refuse_moved(_without(whole, i), removed, "removing")


@contextmanager
def hooks_on_inputs() -> Iterator[None]:
    """Silence torch's warning, in backward passes of a private model, that the inputs need no gradients."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def as_list(grad_sample: Tensor | list[Tensor] | None) -> list[Tensor]:
    """Return the per-example gradients that Opacus left on a parameter, one tensor for each backward pass."""
    if grad_sample is None:
        return []
    return grad_sample if isinstance(grad_sample, list) else [grad_sample]


def _made_up(example: Tensor) -> tuple[Tensor, Tensor]:
    """Return a batch, and one more example that differs from the first and the last of the batch."""
    shape = (TRIAL_EXAMPLES, *example.shape)
    if example.dtype.is_floating_point:
        return torch.randn(shape).to(example), torch.randn(example.shape).to(example)
    batch = torch.randint(0, 2, shape)
    batch[-1] = batch[0]
    return batch.to(example), (1 - batch[0]).to(example)


def _gradients(module: GradSampleModule, batch: Tensor, *, seed: int = 0) -> dict[str, Tensor]:
    """Return the per-example gradients of each parameter, (n, coordinates), by name."""
    module.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    torch.stack([_loss(output) for output in _tensors(module(batch))]).sum().backward()
    samples = {name: as_list(vars(parameter).get("grad_sample")) for name, parameter in trainable(module).items()}
    rows = {name: found.flatten(1) for name, passes in samples.items() for found in passes}
    for name, found in rows.items():
        if len(found) != len(batch):
            raise NotPrivate(
                f"parameter {name!r} sees {len(found)} rows where the batch has {len(batch)} examples, so an example "
                "would count as several, or several as one. Keep examples apart on the first axis of every layer"
            )
    return rows


def _loss(output: Tensor) -> Tensor:
    """Return a sum over examples of a non-linear function; in a linear one, what mixed outputs share could cancel."""
    weights = torch.arange(1, 1 + output.shape[-1]).to(output).cos() if output.ndim > 1 else 1.0
    return (output * weights).double().sin().sum()


def _moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Return the largest change of an example's gradient, in units of the largest gradient."""
    if before.keys() != after.keys():
        return float("inf")
    largest = float(unit_norms(tuple(before.values())).max()) if before else 0.0
    if not 0 < largest < float("inf"):
        raise NotPrivate(
            f"normal inputs give gradients of norm {largest}: a trial shows nothing at these weights. Use other first "
            "weights"
        )
    return float(unit_norms(tuple(after[name] - rows for name, rows in before.items())).max()) / largest


def _refuse_moved(before: dict[str, Tensor], after: dict[str, Tensor], what: str) -> None:
    excess = _moved(before, after)
    if not excess <= TOLERANCE:
        raise NotPrivate(
            f"{what} one of {TRIAL_EXAMPLES} examples moves the gradients of others, by {excess:.3g} of the largest in "
            "a trial: a layer mixes examples. Normalise and attend within an example only"
        )


def _without(rows: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {name: torch.cat([found[:i], found[i + 1 :]]) for name, found in rows.items()}


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in a module's output, also those in lists, tuples and mappings."""
    if isinstance(output, Tensor) and output.dtype.is_floating_point:
        yield output
    elif isinstance(output, (Mapping, list, tuple)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)

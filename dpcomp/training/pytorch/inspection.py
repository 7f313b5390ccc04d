"""Refuses modules in which one example's gradient depends on another, or whose buffers remember the data."""

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
    """A module that passed inspection, with Opacus' hooks: a row of `grad_sample` is one example of one pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output.

        Raises:
            NotPrivate: the pass before this one is not through. Opacus would add up rows of different examples.
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
    """The module with Opacus' hooks for per-sample gradients of a mean loss, once it has passed inspection.

    `example` is one input, without a batch axis; only its shape and type are used. The loss is the plain mean
    over the batch of what each example loses: neither class weights nor `ignore_index`, which tie examples together.

    Raises:
        NotPrivate: the module mixes examples, or remembers them in a buffer.
    """
    check_by_name(module)
    check_by_trial(module, example)
    return PrivateModel(module, batch_first=True, loss_reduction="mean")


def check_by_name(module: nn.Module) -> None:
    """Refuse batch normalisation in whatever disguise, tracked instance statistics, and what Opacus' validators refuse.

    Raises:
        NotPrivate: naming the layer.
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
    """Train a copy on made-up examples of the shape of `example`, and look at what one of them moves.

    An example's gradient must stay what it is when another is replaced or removed: then removing one moves the
    clipped sum by at most the clip norm. Replacing is tried with the same random numbers, so that dropout stays in
    place; removing, where the module draws any, without layers that have no parameters. No buffer may change.

    Raises:
        NotPrivate: what moved, and by how much.
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
            raise NotPrivate(f"buffers {changed} change in a training step: they remember the data without noise")
        if _moved(whole, _gradients(wrapped, batch)) > TOLERANCE:
            raise NotPrivate(
                "the same batch has other gradients the second time: a layer remembers batches, or its random numbers "
                "are not torch's"
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
    """Backward passes of a private model, without torch's warning that inputs need no gradients: they need none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def as_list(grad_sample: Tensor | list[Tensor] | None) -> list[Tensor]:
    """What Opacus left on a parameter: nothing, the rows of one backward pass, or a list of them."""
    if grad_sample is None:
        return []
    return grad_sample if isinstance(grad_sample, list) else [grad_sample]


def _made_up(example: Tensor) -> tuple[Tensor, Tensor]:
    """A batch, and one more example that differs from all, or at least from both ends of the batch."""
    shape = (TRIAL_EXAMPLES, *example.shape)
    if example.dtype.is_floating_point:
        return torch.randn(shape).to(example), torch.randn(example.shape).to(example)
    batch = torch.randint(0, 2, shape)
    batch[-1] = batch[0]
    return batch.to(example), (1 - batch[0]).to(example)


def _gradients(module: GradSampleModule, batch: Tensor, *, seed: int = 0) -> dict[str, Tensor]:
    """Name → per-sample gradients, (n, coordinates of the parameter)."""
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
    """A sum over examples of one function, not linear: what a linear one sees of outputs tied together may cancel."""
    weights = torch.arange(1, 1 + output.shape[-1]).to(output).cos() if output.ndim > 1 else 1.0
    return (output * weights).double().sin().sum()


def _moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """The largest change of an example's gradient, in units of the largest gradient."""
    if before.keys() != after.keys():
        return float("inf")
    largest = float(unit_norms(tuple(before.values())).max()) if before else 0.0
    if not 0 < largest < float("inf"):
        raise NotPrivate(f"normal inputs give gradients of norm {largest}: a trial shows nothing at these weights")
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
    """The floating-point tensors of a module's output, however it wraps them."""
    if isinstance(output, Tensor) and output.dtype.is_floating_point:
        yield output
    elif isinstance(output, (Mapping, list, tuple)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)

"""Refuses modules in which one example's gradient depends on another, or whose buffers remember the data."""

import copy

import torch
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dpcomp.errors import NotPrivate
from dpcomp.training.parameters import trainable

TRIAL_EXAMPLES = 4
TOLERANCE = 1e-3  # of the clip norm: what float32 may lose between a batch and its parts


def check_by_name(module: nn.Module) -> None:
    """Opacus' validator, and every batch normalisation in whatever disguise.

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
    errors = ModuleValidator.validate(module, strict=False)
    if errors:
        raise NotPrivate(f"Opacus cannot train this module privately: {'; '.join(map(str, errors))}")


def check_by_trial(module: nn.Module, example: torch.Tensor, clip_norm: float) -> None:
    """Train a copy on made-up examples of the shape of `example`, and look at what one of them moves.

    The clipped sum of a batch must be the sum of its examples' own clipped gradients, so that removing one
    moves it by at most the clip norm; and no buffer may change. Where two runs differ (dropout), layers
    without parameters of their own are tried in evaluation mode.

    Raises:
        NotPrivate: what moved, and by how much.
    """
    subject = copy.deepcopy(module).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch = _made_up(example)
        before = {name: buffer.clone() for name, buffer in subject.named_buffers()}
        with torch.no_grad():
            subject(batch)
        changed = [name for name, buffer in subject.named_buffers() if not torch.equal(buffer, before[name])]
        if changed:
            raise NotPrivate(f"buffers {changed} change in a forward pass: they remember the data without noise")
        wrapped = GradSampleModule(subject, loss_reduction="sum", strict=False)
        random = not torch.equal(_clipped_sum(wrapped, batch, clip_norm), _clipped_sum(wrapped, batch, clip_norm))
        if random:
            for layer in subject.modules():
                layer.training = bool(list(layer.parameters(recurse=False)))
        whole = _clipped_sum(wrapped, batch, clip_norm)
        for i in range(len(batch)):
            others = _clipped_sum(wrapped, torch.cat([batch[:i], batch[i + 1 :]]), clip_norm)
            alone = _clipped_sum(wrapped, batch[i : i + 1], clip_norm)
            excess = float(torch.linalg.vector_norm(whole - others - alone)) / clip_norm
            if not excess <= TOLERANCE:
                raise NotPrivate(
                    f"removing one of {len(batch)} examples moves the others' clipped gradients, by {excess:.3g} clip "
                    "norms in a trial: a layer mixes examples. Normalise and attend within an example only"
                )


def _made_up(example: torch.Tensor) -> torch.Tensor:
    shape = (TRIAL_EXAMPLES, *example.shape)
    if example.dtype.is_floating_point:
        # Hooks on the first layer fire without a warning when the inputs have gradients too.
        return torch.randn(shape, dtype=example.dtype).requires_grad_()
    return torch.randint(0, 2, shape, dtype=example.dtype)


def _clipped_sum(module: GradSampleModule, batch: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """The clipped sum for a loss that weighs the outputs of each example with fixed numbers."""
    for parameter in module.parameters():
        parameter.grad_sample = None
    output = module(batch).flatten(1).double()
    weights = torch.cos(torch.arange(output.shape[1], dtype=torch.float64))
    (output * weights).sum().backward()
    rows = [p.grad_sample.flatten(1).double() for p in trainable(module).values() if p.grad_sample is not None]
    units = torch.cat(rows, dim=1)
    norms = torch.linalg.vector_norm(units, dim=1, keepdim=True)
    return (units * (clip_norm / (norms + 1e-6)).clamp(max=1.0)).sum(dim=0)

"""Formulas: from a layer's inputs and output gradients to its terms, for the layers that have one."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpcomp.training.pytorch.rows.book_keeping.layer_terms import (
    FewPositions,
    LayerTerms,
    OuterProducts,
    RowTerms,
    TableTerms,
)

FEW = 8  # positions up to which Gram matrices and a product in float64 take less time than rows

Formula = Callable[[Any, Tensor, Tensor, int], LayerTerms]


def trained(layer: nn.Module) -> list[str]:
    """Return the names of a layer's own trainable parameters, in order."""
    return [name for name, value in layer._parameters.items() if value is not None and value.requires_grad]


def terms(layer: nn.Module, inputs: Tensor, gradients: Tensor, k: int) -> LayerTerms:
    """Return the terms of a layer for k examples.

    Args:
        layer: A layer of a type in `FORMULAS`, with a trainable parameter.
        inputs: What it got: the examples lie on the first axis, in equal blocks.
        gradients: The gradients of its outputs, alike.
        k: The number of examples.
    """
    return FORMULAS[type(layer)](layer, inputs, gradients, k)


def refusal(layer: nn.Module) -> str:
    """Say why a layer with trainable parameters has no formula; an empty text if it has one."""
    if type(layer) not in FORMULAS:
        return "has no formula"
    if vars(layer).get("forward") or layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "has hooks or a forward of its own"
    if isinstance(layer, nn.Embedding) and (layer.scale_grad_by_freq or layer.sparse or layer.max_norm is not None):
        return "scales gradients or rows by how often they are used"
    if isinstance(layer, nn.modules.conv._ConvNd) and layer.transposed and layer.groups != 1:
        return "is a transposed convolution in groups"
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
        return "keeps statistics"
    return ""


def _linear(layer: nn.Linear, inputs: Tensor, gradients: Tensor, k: int) -> LayerTerms:
    a, g = inputs.reshape(k, -1, layer.in_features), gradients.reshape(k, -1, layer.out_features)
    return _linear_map(trained(layer), a, g, weight_shape=None)


def _linear_map(names: list[str], a: Tensor, g: Tensor, weight_shape: Callable[[Tensor], Tensor] | None) -> LayerTerms:
    """Return the terms of y = Wa + b at the positions of each example.

    Args:
        names: Of "weight" and "bias", those that are trained.
        a: (k, positions, in) inputs.
        g: (k, positions, out) gradients of the outputs.
        weight_shape: Maps (k, out, in) rows to those of the weight; None if they are.
    """
    bias = "bias" in names
    if "weight" not in names:
        return RowTerms([g.sum(dim=1)])
    if weight_shape is None and a.shape[1] == 1:
        return OuterProducts(a[:, 0], g[:, 0], bias)
    if weight_shape is None and a.shape[1] <= FEW:
        return FewPositions(a, g, bias)
    weight = g.transpose(1, 2) @ a
    return RowTerms([weight if weight_shape is None else weight_shape(weight), *([g.sum(dim=1)] if bias else [])])


def _convolution(layer: Any, inputs: Tensor, gradients: Tensor, k: int) -> LayerTerms:
    spatial, names, groups = len(layer.kernel_size), trained(layer), layer.groups
    g = gradients.movedim(1, -1).flatten(1, -2)  # (blocks, positions, out)
    bias = [g.reshape(k, -1, g.shape[2]).sum(dim=1)] if "bias" in names else []
    if "weight" not in names:
        return RowTerms(bias)
    a = patches(_padded(layer, inputs), layer.kernel_size, layer.stride, layer.dilation)
    # (blocks, positions, kernel, in) → (k · groups, positions, kernel · in of the group)
    if groups == 1:
        a, g = a.reshape(k, -1, math.prod(a.shape[-spatial - 1 :])), g.reshape(k, -1, g.shape[2])
        rows = (g.transpose(1, 2) @ a).view(k, layer.out_channels, *layer.kernel_size, layer.in_channels)
    else:
        size = math.prod(layer.kernel_size)
        a = a.reshape(k, -1, size, groups, layer.in_channels // groups)
        a = a.permute(0, 3, 1, 2, 4).flatten(3)
        g = g.reshape(k, -1, groups, layer.out_channels // groups).permute(0, 2, 3, 1)
        rows = (g @ a).view(k, layer.out_channels, *layer.kernel_size, layer.in_channels // groups)
    return RowTerms([rows.movedim(-1, 2), *bias])


def _transposed(layer: Any, inputs: Tensor, gradients: Tensor, k: int) -> LayerTerms:
    """Return the terms of a transposed convolution, whose weight is that of a convolution of its output gradients."""
    names = trained(layer)
    bias = [gradients.movedim(1, -1).reshape(k, -1, layer.out_channels).sum(dim=1)] if "bias" in names else []
    if "weight" not in names:
        return RowTerms(bias)
    pads = [side for width in reversed(layer.padding) for side in (width, width)]
    g = patches(
        functional.pad(gradients, pads) if any(pads) else gradients, layer.kernel_size, layer.stride, layer.dilation
    )
    for axis, length in enumerate(inputs.shape[2:], start=1):
        g = g.narrow(axis, 0, length)
    a = inputs.movedim(1, -1).reshape(k, -1, layer.in_channels)
    g = g.reshape(k, a.shape[1], -1)
    rows = (a.transpose(1, 2) @ g).view(k, layer.in_channels, *layer.kernel_size, layer.out_channels)
    return RowTerms([rows.movedim(-1, 2), *bias])


def _padded(layer: Any, inputs: Tensor) -> Tensor:
    if layer.padding == "valid":
        return inputs
    pads, mode = layer._reversed_padding_repeated_twice, layer.padding_mode
    return functional.pad(inputs, pads, mode="constant" if mode == "zeros" else mode) if any(pads) else inputs


def patches(images: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """Return the patches that a convolution multiplies with its weight, as a view.

    Args:
        images: (n, channels, *size) padded inputs.
        kernel: The size of a patch, an entry an axis.
        stride: From a patch to the next.
        dilation: From an entry of a patch to the next.

    Returns:
        An (n, *positions, *kernel, channels) view, in whose memory the channels lie side by side.
    """
    last = images.movedim(1, -1).contiguous()
    n, *size, channels = last.shape
    by_image, *steps, by_channel = last.stride()
    axes = list(zip(size, kernel, stride, dilation, steps, strict=True))
    positions = [(length - d * (k - 1) - 1) // s + 1 for length, k, s, d, _ in axes]
    return last.as_strided(
        (n, *positions, *kernel, channels),
        (by_image, *(s * step for _, _, s, _, step in axes), *(d * step for _, _, _, d, step in axes), by_channel),
    )


def _scale_and_shift(layer: nn.Module, normalized: Tensor, gradients: Tensor, k: int, shape: torch.Size) -> LayerTerms:
    """Return the terms of a scale and a shift of normalised values, whose axes are the last ones.

    Args:
        layer: The layer, with "weight" and "bias".
        normalized: (blocks, …, *shape) values before the scale.
        gradients: (blocks, …, *shape) gradients of the outputs.
        k: The number of examples.
        shape: That of the parameters.
    """
    parts = {"weight": lambda: gradients * normalized, "bias": lambda: gradients}
    return RowTerms([parts[name]().reshape(k, -1, *shape).sum(dim=1) for name in trained(layer)])


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, gradients: Tensor, k: int) -> LayerTerms:
    normalized = functional.group_norm(inputs, layer.num_groups, None, None, layer.eps)
    return _of_channels(layer, normalized, gradients, k)


def _instance_norm(layer: Any, inputs: Tensor, gradients: Tensor, k: int) -> LayerTerms:
    return _of_channels(layer, functional.instance_norm(inputs, eps=layer.eps), gradients, k)


def _of_channels(layer: nn.Module, normalized: Tensor, gradients: Tensor, k: int) -> LayerTerms:
    channels = normalized.shape[1]
    parts = {"weight": lambda: gradients * normalized, "bias": lambda: gradients}
    return RowTerms(
        [
            parts[name]().flatten(2).sum(dim=2).view(k, -1, channels).sum(dim=1)
            if gradients.ndim > 2
            else parts[name]().view(k, -1, channels).sum(dim=1)
            for name in trained(layer)
        ]
    )


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, gradients: Tensor, k: int) -> LayerTerms:
    shape = torch.Size(layer.normalized_shape)
    return _scale_and_shift(layer, functional.layer_norm(inputs, list(shape), eps=layer.eps), gradients, k, shape)


def _rms_norm(layer: nn.RMSNorm, inputs: Tensor, gradients: Tensor, k: int) -> LayerTerms:
    shape = torch.Size(layer.normalized_shape)
    return _scale_and_shift(layer, functional.rms_norm(inputs, list(shape), eps=layer.eps), gradients, k, shape)


def _embedding(layer: nn.Embedding, inputs: Tensor, gradients: Tensor, k: int) -> LayerTerms:
    places, g = inputs.reshape(k, -1).long(), gradients.reshape(k, -1, layer.embedding_dim)
    if layer.padding_idx is not None:
        g = g * (places != layer.padding_idx)[:, :, None]
    return TableTerms(places, g, (layer.num_embeddings, layer.embedding_dim))


FORMULAS: Mapping[type[nn.Module], Formula] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose1d: _transposed,
    nn.ConvTranspose2d: _transposed,
    nn.ConvTranspose3d: _transposed,
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.Embedding: _embedding,
}

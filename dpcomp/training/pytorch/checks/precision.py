"""Precision: the switches of torch by which its kernels have more digits or fewer, beside autocast."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

# Of float32, by backend and operation. torch before 2.9 has three switches in their place.
_OF_FLOAT32 = [(backend, part) for backend in ("cuda", "mkldnn") for part in ("all", "matmul", "conv", "rnn")]
_OTHERS = (
    "cublas_allow_bf16_reduced_precision_reduction",
    "cublas_allow_fp16_accumulation",
    "cublas_allow_fp16_reduced_precision_reduction",
    "cpu_allow_fp16_reduced_precision_reduction",
    "cudnn_benchmark",
    "cudnn_deterministic",
    "cudnn_enabled",
    "flash_sdp_enabled",
    "math_sdp_allow_fp16_bf16_reduction",
    "math_sdp_enabled",
    "mem_efficient_sdp_enabled",
    "mkldnn_enabled",
)
_BEFORE_2_9 = ("float32_matmul_precision", "cublas_allow_tf32", "cudnn_allow_tf32")


def switches() -> tuple[Any, ...]:
    """Return the present values of the switches, in an order that stays."""
    return tuple(get() for _, get in _GETTERS)


def switched(before: tuple[Any, ...]) -> list[str]:
    """Return the names of the switches that have other values, with both.

    Args:
        before: What `switches` returned.
    """
    return [
        f"{name} (now {now}, then {was})"
        for (name, _), now, was in zip(_GETTERS, switches(), before, strict=True)
        if now != was
    ]


def short_products(device: torch.device) -> str:
    """Return a sentence that names the setting by which products of float32 lose digits; empty without one.

    Args:
        device: Where they are computed.
    """
    if device.type == "cuda":
        names = ("cuda.matmul", "cublas_allow_tf32")
    else:
        names = ("mkldnn.matmul", "float32_matmul_precision")
    values = [get() for name, get in _GETTERS if name in names]
    if not any(value in ("tf32", "bf16", "medium", "high", True) for value in values):
        return ""
    return (
        f". torch.set_float32_matmul_precision or torch.backends has set products of float32 to {values[0]}, whose "
        "roundings alone may be the difference: set it to 'highest' for training"
    )


def _getters() -> list[tuple[str, Callable[[], Any]]]:
    found: list[tuple[str, Callable[[], Any]]] = []
    names = _OTHERS
    of_float32 = getattr(torch._C, "_get_fp32_precision_getter", None)
    if of_float32 is None:
        names += _BEFORE_2_9
    else:
        found += [
            (f"{backend}.{part}", partial(of_float32, backend, part))
            for backend, part in [("generic", "all"), *_OF_FLOAT32]
        ]
    return found + [(name, get) for name in names if (get := getattr(torch._C, f"_get_{name}", None)) is not None]


_GETTERS = _getters()

"""Devices: models and examples may lie on a GPU; codec, noise and ledger work on the host."""

import torch
from torch import Tensor


def device_of(name: str) -> torch.device:
    """Return the device with this name, if the machine has it.

    Args:
        name: "cpu", "cuda" or "cuda:1".

    Raises:
        ValueError: It is no such name, or this machine does not have the device.
    """
    names = 'give "cpu", "cuda" or "cuda:1"'
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={name!r} is not the name of a device: {names}") from error
    if device.type not in ("cpu", "cuda"):  # the clip adds up in float64, which not every other device has
        raise ValueError(f"device={name!r} is not supported for training: {names}")
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = torch.cuda.current_device() if count and device.index is None else device.index or 0
    if index >= count:
        raise ValueError(
            f"device={name!r}: torch {torch.__version__} finds {count} CUDA devices here. Look at nvidia-smi and at "
            'whether this torch was built for CUDA, or give device="cpu"'
        )
    return torch.device("cuda", index)


def to_device(device: torch.device, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return both tensors on the device; a tensor that is there already is not copied."""
    return inputs.to(device), targets.to(device)

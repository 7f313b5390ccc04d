"""Devices: where the data lie, a model trains; vectors cross to the host, where codec, noise and ledger are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def device_of(name: str) -> torch.device:
    """The device of a name, "cpu", "cuda" or "cuda:1", once it is known to be there.

    Raises:
        ValueError: there is none of this name, or this machine has not got it.
    """
    wanted = 'it is "cpu", "cuda" or "cuda:1", …'
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={name!r} is the name of no device: {wanted}") from error
    if device.type not in ("cpu", "cuda"):  # the clip adds up in float64, and not every other device has it
        raise ValueError(f"device={name!r}: nothing is trained there: {wanted}")
    if device.type == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = torch.cuda.current_device() if found and device.index is None else device.index or 0
    if index >= found:
        raise ValueError(
            f"device={name!r}: torch {torch.__version__} finds {found} CUDA devices here. Look at nvidia-smi and at "
            'whether this torch was built for CUDA, or say device="cpu"'
        )
    return torch.device("cuda", index)


def on(device: torch.device, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the device; what is there already is not copied."""
    return inputs.to(device), targets.to(device)


@contextmanager
def lent_generator(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the device's global generator, from which alone layers draw, and give it its own state back behind that."""
    accelerated = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if accelerated else []):
        # Not torch.manual_seed, which seeds the generators of all devices for good.
        generator = torch.cuda.default_generators[device.index] if accelerated else torch.default_generator
        generator.manual_seed(seed)
        yield

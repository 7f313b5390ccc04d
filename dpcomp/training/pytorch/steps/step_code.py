"""Step code: what may run in a step of an optimiser beside torch's own code."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.optim import optimizer as torch_optimizer  # pyright: ignore[reportAttributeAccessIssue]
from torch.overrides import _get_current_function_mode_stack  # pyright: ignore[reportPrivateUsage]
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack  # pyright: ignore[reportPrivateUsage]

from dpcomp.core.errors import NotPrivate

_OF_ALL = tuple(getattr(torch_optimizer, f"_global_optimizer_{when}_hooks") for when in ("pre", "post"))
_OWN = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def refuse_code_around(optimizer: torch.optim.Optimizer) -> None:
    """Refuse hooks on the steps of an optimiser or of all, hooks on what is saved, and modes that see each operation.

    **Privacy:** they run beside the released step, with the parameters and gradients in reach (PRIVACY_RULES hazard
    28).

    Raises:
        NotPrivate: There are some.
    """
    if any(map(vars(optimizer).get, _OWN)):
        raise NotPrivate(
            "the optimiser has step hooks, which could move parameters beside the released step: remove them, or "
            "look at the release with optimizer.attach_step_hook(hook)"
        )
    if any(_OF_ALL):
        raise NotPrivate(
            "torch has step hooks for all optimisers (torch.optim.optimizer.register_optimizer_step_pre_hook or "
            "_post_hook), which could move parameters beside the released step: remove them with handle.remove(), or "
            "look at the release with optimizer.attach_step_hook(hook)"
        )
    if saved_tensors_hooks_around():
        raise NotPrivate(
            "the step runs inside hooks on what is saved for the backward pass (such as "
            "torch.autograd.graph.saved_tensors_hooks or save_on_cpu), which see and could change what rows are made "
            "of: leave them before optimizer.step(); around the forward and backward pass they may stay"
        )
    if modes := modes_around():
        raise NotPrivate(
            f"the step runs inside {', '.join(type(mode).__name__ for mode in modes)}, a mode of torch that could "
            "change any operation of it: leave the mode before optimizer.step()"
        )


def saved_tensors_hooks_around() -> bool:
    """Return whether hooks on what is saved for a backward pass are active."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]
    return hooks is not None


def modes_around() -> list[Any]:
    """Return the active modes that could change each operation of torch, but for that of `torch.set_default_device`."""
    modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
    return [mode for mode in modes if type(mode) is not DeviceContext]


def own_step(optimizer: torch.optim.Optimizer) -> str | None:
    """Return what the guarantee assumes of an optimiser whose code is not torch's; None for one of torch's."""
    kind = type(optimizer)
    if not _of_torch(kind.__module__):
        who = f"{kind.__name__}, an optimiser that is not torch's,"
    elif not all(_of_torch(_written_in(code)) for code in _layers_of(optimizer.step)):
        who = f"the step of {kind.__name__}, an optimiser that is not torch's where its step was replaced or wrapped,"
    else:
        return None
    return f"{who} reads nothing but released gradients and its own state"


def _of_torch(module: Any) -> bool:
    return str(module).partition(".")[0] == "torch"


def _layers_of(function: Any) -> Iterator[Any]:
    """Yield a function, and one after the other those that it wraps (`functools.wraps`)."""
    seen: list[Any] = []
    while function is not None and not any(function is other for other in seen):
        seen.append(function)
        yield function
        function = getattr(function, "__wrapped__", None)


def _written_in(function: Any) -> str | None:
    """Return the module in which a function was written, which `functools.wraps` does not rename; None if unknown."""
    return getattr(function, "__globals__", {}).get("__name__")

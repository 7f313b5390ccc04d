"""Own functions: backward functions and hooks of Python in a backward pass, which torch's operations do not show."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction


def own_functions(outputs: Iterable[Tensor]) -> list[Any]:
    """Return the nodes of Python that a backward pass from some tensors would run, such as a `torch.autograd.Function`.

    Args:
        outputs: The tensors.
    """
    seen: set[Any] = set()
    waiting = [part.grad_fn for part in outputs]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return [node for node in seen if isinstance(node, BackwardCFunction)]

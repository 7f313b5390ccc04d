"""Own random: finds operations that draw from another generator than the global ones, or after these were seeded."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dpcomp.training.pytorch.rows.generators import seeds_of_generators
from dpcomp.training.pytorch.rows.structures import tensors


class RandomSource:
    """Says of each operation whether its random numbers come from torch's global generators as they were lent.

    **Privacy:** numbers of another generator, or after a seed that is taken back behind it (`torch.random.fork_rng`),
    are known, and go by the place in the batch.
    """

    def __init__(self):
        self._seeds = seeds_of_generators()

    def other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return what is wrong with the random numbers of an operation; an empty text for others."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return ""
        if any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
            return "with a generator= of its own"
        return "" if seeds_of_generators() == self._seeds else "after a seed that is set in the pass"


class LookForSeeds(TorchDispatchMode):
    """Notes the operations inside whose random numbers are not of torch's global generators as they were lent.

    Attributes:
        found: What was found, with the shapes that were drawn: those of features that all examples share stay the same
            in a batch of another size.
    """

    def __init__(self):
        super().__init__()
        self._source = RandomSource()
        self.found: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operation, and note what is wrong with its random numbers."""
        other = self._source.other(func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        if other:
            self.found.append((f"{func.overloadpacket.__name__} {other}", [part.shape for part in tensors(out)]))
        return out

"""How many bits each layer gets."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from dpcomp.update import Layout


@runtime_checkable
class Allocator(Protocol):
    """Bits a layer, computed from what both ends know."""

    def allocate(self, layout: Layout) -> tuple[int, ...]:
        """Bits a coordinate, one number a layer."""
        ...


@dataclass(frozen=True)
class Equal:
    """The same number of bits in every layer."""

    bits: int

    def __post_init__(self):
        whole = isinstance(self.bits, (int, np.integer)) and not isinstance(self.bits, bool)
        if not whole or not 2 <= self.bits <= 16:
            raise ValueError(f"{self}: a uniform quantiser has a whole number of bits from 2 to 16")
        object.__setattr__(self, "bits", int(self.bits))

    def allocate(self, layout: Layout) -> tuple[int, ...]:
        """Bits a coordinate, one number a layer."""
        return (self.bits,) * len(layout.shapes)

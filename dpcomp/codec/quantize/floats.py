"""Values as floating-point numbers."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32 as Singles
from jaxtyping import Int32, Int64

from dpcomp.codec.quantize.quantizer import Bounds
from dpcomp.core.public_context import PublicContext


@dataclass(frozen=True)
class _Floats:
    """No levels: every value stands on the wire as it is, in `dtype`."""

    dtype = "<f4"
    side_holds_values = True

    def bounds(self, side: bytes, context: PublicContext) -> Bounds:
        """No layer is coded."""
        nothing = np.zeros(len(context.layout.shapes), dtype=np.int32)
        return Bounds(nothing, nothing)

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """All of the values."""
        return np.dtype(self.dtype).itemsize * int(counts.sum())

    def levels(
        self, values: Singles[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int32[np.ndarray, "m"], bytes]:
        """None, and the values."""
        return np.empty(0, dtype=np.int32), self._rounded(values).tobytes()

    def values(
        self, levels: Int32[np.ndarray, "m"], side: bytes, counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> Singles[np.ndarray, "k"]:
        """The values."""
        return np.frombuffer(side, dtype=self.dtype).astype(np.float32, copy=False)

    def _rounded(self, values: Singles[np.ndarray, "k"]) -> np.ndarray:
        return values.astype(self.dtype, copy=False)


@dataclass(frozen=True)
class Float32(_Floats):
    """Four bytes a value, unchanged."""

    unbiased = True


@dataclass(frozen=True)
class Float16(_Floats):
    """Two bytes a value, rounded to the nearest half precision (biased); beyond ±65,504 it is that."""

    dtype = "<f2"
    unbiased = False

    def _rounded(self, values: Singles[np.ndarray, "k"]) -> np.ndarray:
        largest = np.finfo(self.dtype).max
        return np.clip(values, -largest, largest).astype(self.dtype)

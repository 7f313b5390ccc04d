"""Float formats: values are sent as floating-point numbers, not as levels."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32 as Singles
from jaxtyping import Int32, Int64

from dpcomp.codec.quantize.quantizer import Bounds, equal_bounds
from dpcomp.core.public_context import PublicContext


@dataclass(frozen=True)
class _Floats:
    """A quantiser without levels: the side information is the values, in `dtype`."""

    dtype = "<f4"
    side_holds_values = True

    def bounds(self, side: bytes | memoryview, context: PublicContext) -> Bounds:
        """Return equal bounds: no layer has levels."""
        return equal_bounds(len(context.layout.shapes), 0, 0)

    def side_bytes(self, counts: Int64[np.ndarray, "layers"], context: PublicContext) -> int:
        """Return the bytes of all values."""
        return np.dtype(self.dtype).itemsize * int(counts.sum())

    def levels(
        self, values: Singles[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"], context: PublicContext
    ) -> tuple[Int32[np.ndarray, "m"], memoryview]:
        """Return no levels, and a view of the values as side information."""
        return np.empty(0, dtype=np.int32), self._rounded(values).view(np.uint8).data

    def values(
        self,
        levels: Int32[np.ndarray, "m"],
        side: bytes | memoryview,
        counts: Int64[np.ndarray, "layers"],
        context: PublicContext,
    ) -> Singles[np.ndarray, "k"]:
        """Return the values in the side information as float32."""
        dtype = np.dtype(self.dtype)
        return np.ndarray(len(side) // dtype.itemsize, dtype=dtype, buffer=side).astype(np.float32)

    def _rounded(self, values: Singles[np.ndarray, "k"]) -> np.ndarray:
        return np.ascontiguousarray(values, dtype=self.dtype)


@dataclass(frozen=True)
class Float32(_Floats):
    """Send values as float32: four bytes a value, unchanged. It is what `Codec(quantize=None)` means."""

    unbiased = True
    lossless = True


@dataclass(frozen=True)
class Float16(_Floats):
    """Send values as half precision: two bytes a value, rounded to the nearest.

    The relative error is at most 2⁻¹¹ from 6·10⁻⁵ to 65,504; values beyond are clipped to ±65,504, smaller ones have an
    absolute error of up to 3·10⁻⁸. Biased, if little. `Uniform` is more accurate for the same bytes on a layer whose
    values have one scale.
    """

    dtype = "<f2"
    unbiased = False

    def _rounded(self, values: Singles[np.ndarray, "k"]) -> np.ndarray:
        largest = np.finfo(self.dtype).max
        return np.clip(values, -largest, largest).astype(self.dtype)

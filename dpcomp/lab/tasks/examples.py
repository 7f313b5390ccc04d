"""Examples and data sets: arrays of pixels and labels, as values."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, UInt8

from dpcomp.core.errors import DpcompError


class DataError(DpcompError):
    """A data set can't be had, or is not what it should be; the text says which file or source, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How a model sees a pixel: (pixel / largest - mean) / deviation, mean and deviation by channel.

    **Privacy:** these are public constants. Never compute them from the data that a guarantee covers.
    """

    largest: int = 255
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not 1 <= self.largest <= 255:
            raise ValueError(f"Scaling.largest is {self.largest}; give the largest value of a pixel, 1..255")
        if len(self.mean) != len(self.deviation) or not all(deviation > 0 for deviation in self.deviation):
            raise ValueError(
                f"Scaling has mean {self.mean} and deviation {self.deviation}; give one positive deviation a mean"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Labelled images of one size: `images` (n, h, w) or (n, h, w, 3) in red, green, blue; `labels` (n,).

    The arrays are made read-only, since clients share them. Raises ValueError where they don't fit together.
    """

    images: UInt8[np.ndarray, "n h w *channels"]
    labels: Int64[np.ndarray, " n"]
    scaling: Scaling = Scaling()

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim not in (3, 4):
            raise ValueError(
                f"Examples.images is {self.images.dtype} {self.images.shape}; "
                "give uint8 (n, h, w) or (n, h, w, channels)"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"Examples.labels is {self.labels.dtype} {self.labels.shape}; "
                f"give int64 ({len(self.images)},), one an image"
            )
        for name in ("images", "labels"):
            # A view, so that the caller's own array stays as writable as it was.
            array = getattr(self, name).view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Integer[np.ndarray, " k"]) -> "Examples":
        """Give the examples at these indices, in this order: what a partition hands to a client."""
        return Examples(images=self.images[indices], labels=self.labels[indices], scaling=self.scaling)


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """A named data set with its official split into training and test examples."""

    name: str
    train: Examples
    test: Examples


def digest_of(data_set: DataSet) -> str:
    """Give the SHA-256, in hexadecimal, of shapes, pixels and labels (as uint8) of train, then test."""
    sha = hashlib.sha256()
    for examples in (data_set.train, data_set.test):
        for array in (examples.images, examples.labels.astype(np.uint8)):
            sha.update(f"{array.shape}\n".encode())
            sha.update(_bytes_of(array))
    return sha.hexdigest()


def _bytes_of(array: UInt8[np.ndarray, "..."]) -> Any:
    # hashlib reads a contiguous array in place: CIFAR-10's 180 MB are not copied.
    return np.ascontiguousarray(array).data

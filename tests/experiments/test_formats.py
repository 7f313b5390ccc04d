"""The file formats: what is right is read exactly, what is damaged or hostile is refused."""

import io
import json
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from experiments.data.formats import (
    read_cifar_pickle,
    read_cifar_picture,
    read_cifar_records,
    read_idx,
    read_json_labels,
)

PLANES = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
LABELS = [9, 0, 4]
# The pixel in row 2, column 5 of the second picture: planes are red, green, blue, row by row.
PIXEL = PLANES[1, [2 * 32 + 5, 1024 + 2 * 32 + 5, 2048 + 2 * 32 + 5]].tolist()


def idx_of(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def python_2_pickle(planes, labels):
    """A batch as the official files have it: protocol 2, `numpy.core`, and bytes as Python 2's strings."""
    content = pickle.dumps({"data": planes, "labels": labels}, protocol=3)
    raw = planes.tobytes()
    # BINBYTES and BINSTRING differ in their first byte alone.
    content = content.replace(b"B" + struct.pack("<I", len(raw)) + raw, b"T" + struct.pack("<I", len(raw)) + raw)
    return b"\x80\x02" + content.replace(b"numpy._core", b"numpy.core")[2:]


@pytest.mark.parametrize("shape", [(4,), (2, 3, 5)])
def test_idx(shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(read_idx(idx_of(array)), array)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00\x08",
        b"\x00\x00\x08\x03\x00",
        b"<html>not found</html>",
        b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00",
        idx_of(np.zeros((2, 3), np.uint8))[:-1],
        idx_of(np.zeros((2, 3), np.uint8)) + b"\x00",
        bytes([0, 0, 8, 3]) + b"\xff" * 12,
    ],
)
def test_a_damaged_idx_file_is_refused(content):
    with pytest.raises(ValueError, match="idx file"):
        read_idx(content)


def test_cifar_records():
    content = b"".join(bytes([label]) + planes.tobytes() for label, planes in zip(LABELS, PLANES, strict=True))
    images, labels = read_cifar_records(content)
    assert images.shape == (3, 32, 32, 3) and labels.tolist() == LABELS
    assert images[1, 2, 5].tolist() == PIXEL
    for damaged in (b"", content[:-1], content + b"\x00"):
        with pytest.raises(ValueError, match="records of 3073 bytes"):
            read_cifar_records(damaged)


@pytest.mark.parametrize(
    "content", [python_2_pickle(PLANES, LABELS), pickle.dumps({"data": PLANES, "labels": LABELS}, 4)]
)
def test_cifar_pickle(content):
    images, labels = read_cifar_pickle(content)
    assert images.shape == (3, 32, 32, 3) and labels.tolist() == LABELS
    assert images[1, 2, 5].tolist() == PIXEL


def test_the_pickle_is_that_of_python_2():
    content = python_2_pickle(PLANES, LABELS)
    assert content[:2] == b"\x80\x02" and b"numpy.core.multiarray" in content and b"_core" not in content
    assert b"T" + struct.pack("<I", PLANES.size) in content


class Touch:
    """Pickled, it asks the reader to create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_runs_nothing(tmp_path, protocol):
    victim = tmp_path / "created"
    content = pickle.dumps({"filenames": Touch(victim), "data": PLANES, "labels": LABELS}, protocol)
    with pytest.raises(ValueError, match=r"it names \S+\.open, which"):
        read_cifar_pickle(content)
    assert not victim.exists()
    pickle.loads(content)["filenames"].close()
    assert victim.exists()


@pytest.mark.parametrize(
    "batch",
    [
        {"labels": LABELS},
        {"data": PLANES, "labels": [1, 2]},
        {"data": PLANES, "labels": [1, 2, 256]},
        {"data": PLANES[:, :-1], "labels": LABELS},
        {"data": np.asfortranarray(PLANES), "labels": LABELS},
        {"data": PLANES.astype(np.int16), "labels": LABELS},
        [1, 2],
    ],
)
def test_a_pickle_of_something_else_is_refused(batch):
    with pytest.raises(ValueError, match="get it anew"):
        read_cifar_pickle(pickle.dumps(batch, 4))


def test_every_truncated_pickle_is_refused():
    content = python_2_pickle(PLANES[:1], LABELS[:1])
    for length in (*range(0, 200), len(content) - 1):
        with pytest.raises(ValueError, match="get it anew"):
            read_cifar_pickle(content[:length])


def png_of(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def test_cifar_picture():
    rows = np.ascontiguousarray(PLANES.reshape(3, 3, 1024).transpose(0, 2, 1))
    images = read_cifar_picture(png_of(rows))
    assert images.shape == (3, 32, 32, 3) and images[1, 2, 5].tolist() == PIXEL


def test_another_picture_is_refused():
    with pytest.raises(ValueError, match="this one is L and 1024 wide"):
        read_cifar_picture(png_of(np.zeros((2, 1024), np.uint8)))
    with pytest.raises(ValueError, match="this one is RGB and 32 wide"):
        read_cifar_picture(png_of(np.zeros((2, 32, 3), np.uint8)))
    good = png_of(np.zeros((2, 1024, 3), np.uint8))
    for damaged in (b"", good[:30], good[:-30], good[:45] + b"XX" + good[47:]):
        with pytest.raises(ValueError, match="no PNG that can be read"):
            read_cifar_picture(damaged)


def test_json_labels():
    assert read_json_labels(b"[6, 9, 255]").tolist() == [6, 9, 255]
    for damaged in ([256], [-1], [1.0], [True], {"0": 1}, ["1"]):
        with pytest.raises(ValueError, match=r"list of numbers 0\.\.255"):
            read_json_labels(json.dumps(damaged).encode())
    with pytest.raises(ValueError):
        read_json_labels(b"<html>")

"""To obtain a data set: the order of the sources, the digest, the cache, and the errors."""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest

from dpcomp.lab.tasks.examples import DataError, DataSet, Examples, Scaling, digest_of
from experiments.data import cache
from experiments.data import obtain as obtain_module
from experiments.data.obtain import Origin, obtain
from experiments.data.sources import Folder, Unavailable
from experiments.data.tasks.mnist import RECIPE as MNIST

IDX_FILES = MNIST.origins[0].files


def tiny_examples(n, seed):
    generator = np.random.default_rng(seed)
    return Examples(images=generator.integers(0, 256, (n, 4, 4), dtype=np.uint8), labels=generator.integers(0, 10, n))


TINY = DataSet(name="tiny", train=tiny_examples(7, 0), test=tiny_examples(3, 1))


def tiny_files():
    contents = {}
    for part, examples in (("train", TINY.train), ("t10k", TINY.test)):
        sizes = len(examples).to_bytes(4, "big")
        side = (4).to_bytes(4, "big")
        contents[f"{part}-images-idx3-ubyte"] = b"\0\0\x08\x03" + sizes + side + side + examples.images.tobytes()
        contents[f"{part}-labels-idx1-ubyte"] = b"\0\0\x08\x01" + sizes + examples.labels.astype(np.uint8).tobytes()
    return contents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """A source that serves what it was given, or fails; it counts how often it was asked."""

    contents: dict | None
    asked: list = dataclasses.field(default_factory=list)

    def __str__(self):
        return "the test's source"

    def read(self, names):
        self.asked.append(names)
        if self.contents is None:
            raise Unavailable("no route to host")
        return {name: self.contents[name] for name in names}


def recipe(*sources):
    """MNIST's recipe for the tiny data set, with these sources after the folder."""
    folder = MNIST.origins[0]
    origins = (folder, *(dataclasses.replace(folder, source=source, megabytes=1) for source in sources))
    return dataclasses.replace(MNIST, name="tiny", digest=digest_of(TINY), origins=origins, advice="ask the test")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPCOMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DPCOMP_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in tiny_files().items():
        (raw / name).write_bytes(content)
    return tmp_path / "data"


def assert_tiny(data_set):
    assert digest_of(data_set) == digest_of(TINY)
    np.testing.assert_array_equal(data_set.train.images, TINY.train.images)
    np.testing.assert_array_equal(data_set.test.labels, TINY.test.labels)


def test_a_folder_in_torchvisions_layout_comes_before_any_download(root, monkeypatch, empty_cache):
    download = Served(contents=tiny_files())
    assert_tiny(obtain(recipe(download), root))
    (empty_cache / "tiny.npz").unlink()
    monkeypatch.setenv("DPCOMP_DATA", str(root))
    assert_tiny(obtain(recipe(download)))
    assert not download.asked


def test_a_failed_source_falls_to_the_next_and_the_cache_ends_the_asking(empty_cache, capfd):
    first, second = Served(contents=None), Served(contents=tiny_files())
    assert_tiny(obtain(recipe(first, second)))
    said = capfd.readouterr()
    assert said.out == "" and "tiny: trying the test's source (about 1 MB, once)" in said.err
    assert_tiny(obtain(recipe(first, second)))
    assert (len(first.asked), len(second.asked)) == (1, 1)
    assert capfd.readouterr().err == ""
    assert os.listdir(empty_cache) == ["tiny.npz"]


def test_a_damaged_download_falls_to_the_next(empty_cache):
    wrong = tiny_files() | {"t10k-labels-idx1-ubyte": b"\0\0\x08\x01\0\0\0\x03\1\2\3"}
    broken = tiny_files() | {"t10k-labels-idx1-ubyte": b"<html>"}
    assert_tiny(obtain(recipe(Served(contents=wrong), Served(contents=broken), Served(contents=tiny_files()))))


def test_all_sources_fail(tmp_path):
    wrong = tiny_files() | {"t10k-labels-idx1-ubyte": b"\0\0\x08\x01\0\0\0\x03\1\2\3"}
    with pytest.raises(DataError) as caught:
        obtain(recipe(Served(contents=None), Served(contents=wrong)), tmp_path / "nowhere")
    lines = str(caught.value).splitlines()
    assert lines[0] == "tiny can't be obtained; every source failed:"
    assert re.fullmatch(r"  1\. folder .*nowhere/MNIST/raw: it holds neither train-images-idx3-ubyte nor .*", lines[1])
    assert lines[2] == "  2. the test's source: no route to host"
    assert re.search(f"do not hold tiny: expected SHA-256 {digest_of(TINY)}, found [0-9a-f]{{64}}$", lines[3])
    assert lines[4] == "What to do: ask the test"
    with pytest.raises(DataError, match="none is given as root or in the variable DPCOMP_DATA"):
        obtain(recipe())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}"),
        (lambda content: content[:-1], "can't be decoded: an idx file of shape"),
    ],
)
def test_a_users_damaged_folder_is_an_error_and_no_reason_to_download(root, damage, message):
    path = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    download = Served(contents=tiny_files())
    with pytest.raises(DataError, match=f"MNIST/raw: (?s:.*){message}(?s:.*)Get its files again"):
        obtain(recipe(download), root)
    assert not download.asked


@pytest.mark.parametrize("position", [0.0, 0.001, 0.2, 0.5, 0.8, 0.999])
def test_a_damaged_cache_file_is_named_and_kept(root, empty_cache, position):
    obtain(recipe(), root)
    path = empty_cache / "tiny.npz"
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 0xFF
    path.write_bytes(content)
    try:
        # A damage that changes neither shapes nor values (in the archive's time stamps, say) is none.
        assert_tiny(obtain(recipe(), root))
    except DataError as error:
        assert str(path) in str(error) and digest_of(TINY) in str(error) and "Delete the file" in str(error)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"not an archive"])
def test_an_unreadable_cache_file(root, empty_cache, content):
    empty_cache.mkdir()
    (empty_cache / "tiny.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"tiny\.npz can't be read .* expected SHA-256 .* Delete the file"):
        obtain(recipe(), root)


def test_a_cache_file_with_other_data_names_both_digests(empty_cache):
    other = dataclasses.replace(TINY, test=TINY.train)
    cache.write_cache(empty_cache / "tiny.npz", other)
    with pytest.raises(DataError, match=f"expected SHA-256 {digest_of(TINY)}, found {digest_of(other)}"):
        obtain(recipe())


def test_a_cache_file_is_never_unpickled(empty_cache, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    empty_cache.mkdir()
    np.savez(empty_cache / "tiny.npz", train_images=np.array([Hostile()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="can't be read"):
        obtain(recipe())
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("failing", ["savez", "fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(empty_cache, monkeypatch, failing):
    path = empty_cache / "tiny.npz"
    cache.write_cache(path, TINY)
    before = path.read_bytes()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np if failing == "savez" else os, failing, interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.write_cache(path, dataclasses.replace(TINY, test=TINY.train))
    assert path.read_bytes() == before and os.listdir(empty_cache) == ["tiny.npz"]


def test_a_cache_that_cannot_be_written_costs_no_run(root, monkeypatch, capfd):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(obtain_module, "write_cache", full)
    assert_tiny(obtain(recipe(), root))
    assert "not cached" in capfd.readouterr().err


def test_the_cache_keeps_the_scaling_of_the_recipe(root):
    scaled = dataclasses.replace(recipe(), scaling=Scaling(mean=(0.5,), deviation=(0.25,)))
    assert obtain(scaled, root).train.scaling == scaled.scaling
    assert obtain(scaled).test.scaling == scaled.scaling


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("DPCOMP_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache.cache_folder() == Path("/a")
    monkeypatch.setenv("DPCOMP_CACHE", "")
    assert cache.cache_folder() == Path("/b/dpcomp")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert cache.cache_folder() == Path("/c/.cache/dpcomp")


def test_an_absolute_folder_is_no_origin():
    with pytest.raises(ValueError, match="relative to the user's data folder"):
        dataclasses.replace(MNIST.origins[0], source=Folder(path=Path("/data")))
    assert isinstance(MNIST.origins[0], Origin)

"""The cache: decoded data sets on disk, one `.npz` each, written at once or not at all."""

import os
from pathlib import Path

import numpy as np

from dpcomp.core.storage import atomic_write
from dpcomp.lab.tasks.examples import DataError, DataSet, Examples, Scaling, digest_of


def cache_folder() -> Path:
    """Give $DPCOMP_CACHE, else $XDG_CACHE_HOME/dpcomp, else ~/.cache/dpcomp; an empty variable counts as unset."""
    if chosen := os.environ.get("DPCOMP_CACHE"):
        return Path(chosen).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "dpcomp"


def read_cache(path: Path, *, name: str, digest: str, scaling: Scaling) -> DataSet:
    """Read a data set that `write_cache` wrote, and compare it with its digest.

    Raises DataError where the file can't be read or holds something else. It is left as it is: whether a
    damaged file is worth a look is for its owner to say.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            train, test = (
                Examples(
                    images=stored[f"{part}_images"],
                    labels=stored[f"{part}_labels"].astype(np.int64),
                    scaling=scaling,
                )
                for part in ("train", "test")
            )
        found = digest_of(data_set := DataSet(name=name, train=train, test=test))
    # A damaged zip archive raises nearly anything: BadZipFile, KeyError, zlib.error, MemoryError, ...
    except Exception as error:
        raise DataError(
            f"the cache file {path} can't be read ({type(error).__name__}: {error}), so its digest can't be found; "
            f"expected SHA-256 {digest}. Delete the file and ask for {name} again"
        ) from error
    if found != digest:
        raise DataError(
            f"the cache file {path} does not hold {name}: expected SHA-256 {digest}, found {found}. "
            f"Delete the file and ask for {name} again"
        )
    return data_set


def write_cache(path: Path, data_set: DataSet) -> None:
    """Write a data set for `read_cache`; another process sees the whole file or none. Raises OSError."""
    with atomic_write(path) as draft, draft.open("wb") as file:
        np.savez(
            file,
            train_images=data_set.train.images,
            train_labels=data_set.train.labels.astype(np.uint8),
            test_images=data_set.test.images,
            test_labels=data_set.test.labels.astype(np.uint8),
        )

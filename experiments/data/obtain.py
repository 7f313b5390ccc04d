"""To obtain a data set: from the cache, else from the first of its origins that has it, checked either way."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from dpcomp.lab.tasks.examples import DataError, DataSet, Examples, Scaling, digest_of
from experiments.data.cache import cache_folder, read_cache, write_cache
from experiments.data.formats import read_idx
from experiments.data.sources import Folder, Source, Unavailable

Files = Mapping[str, bytes]
Arrays = tuple[UInt8[np.ndarray, "..."], UInt8[np.ndarray, " n"]]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """One way to a data set: a source, the files in it, their decoders, and what has to be downloaded.

    `train` and `test` give images and labels from the files; a `Folder` here is relative to the user's root.
    """

    source: Source
    files: tuple[str, ...]
    train: Callable[[Files], Arrays]
    test: Callable[[Files], Arrays]
    megabytes: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.source, Folder) and self.source.path.is_absolute():
            raise ValueError(f"Origin.source is {self.source}; give a path relative to the user's data folder")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A data set that has to be obtained: its origins in the order of trying, and the SHA-256 of what they give."""

    name: str
    digest: str
    scaling: Scaling
    origins: tuple[Origin, ...]
    advice: str


def idx_origin(source: Source, megabytes: int = 0) -> Origin:
    """Return the origin of a data set that a source holds in four files of MNIST's names and format.

    Args:
        source: Where the files are.
        megabytes: What has to be downloaded.
    """
    return Origin(
        source=source,
        files=tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")),
        train=partial(_idx, part="train"),
        test=partial(_idx, part="t10k"),
        megabytes=megabytes,
    )


def obtain(recipe: Recipe, root: Path | None = None) -> DataSet:
    """Give a data set from the cache, or from the first origin that has it, and then cache it.

    `root` is a folder in torchvision's layout, by default the variable DPCOMP_DATA.
    Raises DataError for a cache file or a user's folder that holds something else, naming both digests,
    and where no origin could serve, listing each with its reason and what to do.
    """
    cached = cache_folder() / f"{recipe.name}.npz"
    if cached.exists():
        return read_cache(cached, name=recipe.name, digest=recipe.digest, scaling=recipe.scaling)
    if root is None and os.environ.get("DPCOMP_DATA"):
        root = Path(os.environ["DPCOMP_DATA"])
    failures = []
    for origin in recipe.origins:
        source = origin.source
        if isinstance(source, Folder):
            if root is None:
                failures.append(f"{source} of a data folder: none is given as root or in the variable DPCOMP_DATA")
                continue
            source = Folder(path=root.expanduser() / source.path)
        else:
            _say(f"{recipe.name}: trying {source} (about {origin.megabytes} MB, once) ...")
        try:
            data_set = _decoded(recipe, origin, source.read(origin.files))
        except Unavailable as error:
            failures.append(f"{source}: {error}")
        except DataError as error:
            if isinstance(source, Folder):
                # Going on to a download would hide from its owner that the folder is damaged.
                raise DataError(f"{source}: {error}. Get its files again, or leave the folder out") from error
            failures.append(f"{source}: {error}")
        else:
            _keep(cached, data_set)
            return data_set
    listed = "".join(f"\n  {number}. {failure}" for number, failure in enumerate(failures, start=1))
    raise DataError(f"{recipe.name} can't be obtained; every source failed:{listed}\nWhat to do: {recipe.advice}")


def _idx(files: Files, *, part: str) -> Arrays:
    return read_idx(files[f"{part}-images-idx3-ubyte"]), read_idx(files[f"{part}-labels-idx1-ubyte"])


def _decoded(recipe: Recipe, origin: Origin, contents: Files) -> DataSet:
    try:
        data_set = DataSet(
            name=recipe.name,
            train=_examples(origin.train(contents), recipe.scaling),
            test=_examples(origin.test(contents), recipe.scaling),
        )
    except ValueError as error:
        raise DataError(f"{', '.join(origin.files)} can't be decoded: {error}") from error
    found = digest_of(data_set)
    if found != recipe.digest:
        raise DataError(
            f"{', '.join(origin.files)} do not hold {recipe.name}: expected SHA-256 {recipe.digest}, found {found}"
        )
    return data_set


def _examples(arrays: Arrays, scaling: Scaling) -> Examples:
    images, labels = arrays
    return Examples(images=np.ascontiguousarray(images), labels=labels.astype(np.int64), scaling=scaling)


def _keep(path: Path, data_set: DataSet) -> None:
    try:
        write_cache(path, data_set)
    except OSError as error:
        # The data are right and in hand: a full or read-only disk costs the next run a download, not this run.
        _say(f"{data_set.name}: not cached in {path} ({error}); set DPCOMP_CACHE to a folder that can be written")
    else:
        _say(f"{data_set.name}: cached in {path}")


def _say(line: str) -> None:
    # On stderr and without markup: a path may hold brackets, and stdout belongs to results.
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)

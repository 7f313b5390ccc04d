"""Fashion-MNIST with the 26,010-parameter tanh CNN of Tramèr & Boneh (arXiv 2011.11660)."""

from pathlib import Path

from dpcomp.lab.tasks.classification import Classification
from dpcomp.lab.tasks.examples import DataSet, Scaling
from experiments.data.models import fashion_cnn
from experiments.data.obtain import Recipe, idx_origin, obtain
from experiments.data.sources import DebianPackage, Folder, WebFolder

RECIPE = Recipe(
    name="fashion_mnist",
    digest="fe7492226d3078b653ef1811b08276ea07346aa1af4572d5c01e50b4906294bd",
    scaling=Scaling(),
    origins=(
        idx_origin(Folder(path=Path("FashionMNIST/raw"))),
        idx_origin(WebFolder(address="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"), megabytes=31),
        idx_origin(DebianPackage(package="dataset-fashion-mnist"), megabytes=31),
    ),
    advice="on Debian or Ubuntu run `apt-get update` as root; elsewhere put the four files "
    "train-images-idx3-ubyte(.gz), ... into FOLDER/FashionMNIST/raw, as torchvision does, and set DPCOMP_DATA=FOLDER",
)


def data_set(root: Path | None = None) -> DataSet:
    """Return Fashion-MNIST: 60,000 and 10,000 pictures of clothes, 28 × 28 grey, seen by models as [0, 1].

    `root` is a folder in torchvision's layout. Raises DataError; see `obtain`.
    Source: Xiao, Rasul and Vollgraf, arXiv 1708.07747; the range as Tramèr & Boneh 2020 (arXiv 2011.11660) have it.
    """
    return obtain(RECIPE, root)


def task(validation: int = 0) -> Classification:
    """Return the task; `validation` is the number of training images that are held out to choose settings by."""
    whole = Classification(name="fashion_mnist", population=60_000, load=data_set, make_model=fashion_cnn)
    return whole.holding_out(validation)

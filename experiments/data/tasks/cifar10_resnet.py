"""CIFAR-10, cropped and flipped at random, with an 11.2-million-parameter ResNet-18 with group norm: for a GPU."""

from functools import partial

from dpcomp.lab.tasks.classification import Classification
from experiments.data.augment import augmented
from experiments.data.models import resnet18_group_norm
from experiments.data.tasks.cifar10 import data_set


def task(validation: int = 0) -> Classification:
    """Return the task; `validation` is the number of training images that are held out to choose settings by."""
    whole = Classification(
        name="cifar10_resnet",
        population=50_000,
        load=data_set,
        make_model=partial(augmented, resnet18_group_norm),
    )
    return whole.holding_out(validation)

"""CIFAR-10 with a 78,042-parameter ResNet-8 with group norm."""

from dpcomp.lab.tasks.classification import Classification
from experiments.data.models import resnet8_group_norm
from experiments.data.tasks.cifar10 import data_set


def task(validation: int = 0) -> Classification:
    """Return the task; `validation` is the number of training images that are held out to choose settings by."""
    whole = Classification(name="cifar10_resnet8", population=50_000, load=data_set, make_model=resnet8_group_norm)
    return whole.holding_out(validation)

"""CIFAR-10 with a 24,346-parameter CNN with group norm: for private training on a CPU."""

from dpcomp.lab.tasks.classification import Classification
from experiments.data.models import small_group_norm_cnn
from experiments.data.tasks.cifar10 import data_set


def task(validation: int = 0) -> Classification:
    """Return the task; `validation` is the number of training images that are held out to choose settings by."""
    whole = Classification(name="cifar10_small", population=50_000, load=data_set, make_model=small_group_norm_cnn)
    return whole.holding_out(validation)

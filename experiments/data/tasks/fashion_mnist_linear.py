"""Fashion-MNIST with a linear model of 7,850 parameters, for federations of thousands of clients."""

from functools import partial

from dpcomp.lab.tasks.classification import Classification
from experiments.data.models import logistic_regression
from experiments.data.tasks.fashion_mnist import data_set


def task(validation: int = 0) -> Classification:
    """Return the task; `validation` is the number of training images that are held out to choose settings by."""
    whole = Classification(
        name="fashion_mnist_linear",
        population=60_000,
        load=data_set,
        make_model=partial(logistic_regression, inputs=28 * 28, classes=10),
    )
    return whole.holding_out(validation)

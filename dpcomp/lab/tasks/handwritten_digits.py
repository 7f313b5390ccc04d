"""The task "digits": scikit-learn's handwritten digits with a small MLP. It needs no download."""

from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np
from torch import nn

from dpcomp.lab.tasks.classification import Classification
from dpcomp.lab.tasks.examples import DataError, DataSet, Examples, Scaling, digest_of
from dpcomp.lab.tasks.seeded import seeded

DIGITS_DIGEST = "c0ac886e9a271c6d2e829cb8fd7a9eec7ff1a5a90a302b9232f4848002232723"


def digits(validation: int = 0) -> Classification:
    """Return the task: 1,437 training and 360 test images, and a 12,010-parameter MLP.

    `validation` is the number of training images that are held out to choose settings by.
    """
    task = Classification(name="digits", population=1437, load=digits_data_set, make_model=digits_mlp)
    return task.holding_out(validation)


def digits_data_set() -> DataSet:
    """Return scikit-learn's 1,797 handwritten digits: 8 × 8, values 0..16; every fifth is a test example.

    Raises:
        DataError: The installed scikit-learn has other digits.

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


def digits_mlp(*, seed: int) -> nn.Module:
    """Return one hidden layer for the 8 × 8 digits: 12,010 parameters, tanh, (n, 1, 8, 8) -> (n, 10)."""
    return seeded(
        lambda: nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                hidden=nn.Linear(64, 160),
                tanh=nn.Tanh(),
                output=nn.Linear(160, 10),
            )
        ),
        seed,
    )


SHIPPED_TASKS: Mapping[str, Callable[..., Classification]] = {"digits": digits}

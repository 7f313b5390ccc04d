"""Crops and flips: every output is a shifted, perhaps mirrored input, and each example is moved by itself."""

import pytest
import torch
from torch import nn

from dpcomp.training.pytorch import Opacus
from dpcomp.training.pytorch.inspection import private_model
from dpcomp.training.pytorch.rows.parameters import layout_of
from experiments.data.augment import CropAndFlip, augmented
from experiments.data.models import cifar_cnn

SIZE, MARGIN = 6, 2


def moved(image, down, right, flipped):
    padded = nn.functional.pad(image, (MARGIN,) * 4)
    crop = padded[:, down : down + SIZE, right : right + SIZE]
    return crop.flip(2) if flipped else crop


def test_every_output_is_one_of_the_moves_and_all_of_them_come_up():
    image = torch.randn((3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    shifts = range(2 * MARGIN + 1)
    moves = torch.stack([moved(image, a, b, flipped) for a in shifts for b in shifts for flipped in (False, True)])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        found = CropAndFlip(MARGIN)(image.expand(1000, -1, -1, -1))
    which = (found[:, None] == moves).flatten(2).all(dim=2)
    assert which.sum(dim=1).tolist() == [1] * 1000
    counts = which.sum(dim=0)
    assert counts.min() >= 5
    assert counts.max() <= 45


def test_it_is_idle_in_evaluation():
    images = torch.ones(2, 3, SIZE, SIZE)
    assert CropAndFlip().eval()(images) is images


@pytest.mark.parametrize("n", [0, 1])
def test_batches_may_be_as_small_as_chance_makes_them(n):
    assert CropAndFlip()(torch.ones(n, 3, SIZE, SIZE)).shape == (n, 3, SIZE, SIZE)


@pytest.mark.slow
def test_a_model_behind_it_keeps_its_layout_and_stays_private():
    model = augmented(cifar_cnn, seed=1)
    assert layout_of(model) == layout_of(cifar_cnn(seed=1))
    inputs, targets = torch.randn(5, 3, 32, 32), torch.arange(5)
    private_model(model, nn.functional.cross_entropy, inputs, targets, engine=Opacus())

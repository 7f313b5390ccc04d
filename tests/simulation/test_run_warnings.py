"""A run whose numbers would mislead says so: too large a δ, nobody there, broken gradients, training that diverged."""

import warnings

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.training.pytorch import PyTorch
from tests.simulation.test_simulate import Blobs, pipeline, run


def warned(*arguments, **kwargs):
    """The run, and the sentences of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = run(*arguments, **kwargs)
    assert [str(one.message) for one in caught] == list(done.warnings)
    assert all(one.category is dp.DpcompWarning for one in caught)
    return done, " ".join(done.warnings)


def test_a_sound_run_is_silent():
    _, said = warned(pipeline(noise=0.1), rounds=3, delta=1e-3)
    assert said == ""


def test_a_delta_that_is_not_below_one_over_n_is_told_once():
    done, said = warned(pipeline(noise=0.1), rounds=1, delta=0.02)
    assert len(done.warnings) == 1 and "δ = 0.02 is not below 1/N = 1/60" in said
    _, said = warned(pipeline("client", "server", noise=0.01, rate=1.0), rounds=1, delta=0.25)
    assert "1/N = 1/4" in said


@pytest.mark.parametrize(("unit", "trust"), [("client", "nobody"), ("client", "server")])
def test_a_run_without_any_participant_is_told(unit, trust):
    _, said = warned(pipeline(unit, trust, rate=1e-9, noise=1e-3), rounds=2, delta=1e-3)
    assert "no client took part in any of the 2 rounds" in said


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_counted(broken):
    trainer = PyTorch(local_steps=2)
    done, said = warned(pipeline(rate=1.0, noise=0.1), task=Blobs(broken=broken), rounds=3, trainer=trainer)
    assert "6 of 360 clipped gradients or updates were not finite" in said
    assert np.isfinite(done.model).all()


def test_a_run_that_diverged_is_told():
    _, said = warned(pipeline(noise=50.0), rounds=3, trainer=PyTorch(learning_rate=50.0))
    assert "the training diverged" in said

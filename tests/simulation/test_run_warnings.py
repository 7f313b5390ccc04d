"""A run whose numbers would mislead says so: too large a δ, nobody there, broken gradients, training that diverged."""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.core.errors import VersionMismatch
from dpcomp.federated import Server
from dpcomp.simulation import Faults
from dpcomp.simulation.probes import Watched
from dpcomp.simulation.run_warnings import run_warnings
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


def test_rounds_in_which_nobody_took_part_are_counted():
    done, said = warned(pipeline("client", rate=0.3, noise=1e-3), rounds=8, delta=1e-3)
    empty = sum(not row["participants"] for row in done.rows)
    assert 0 < empty < 8
    assert f"no client took part in {empty} of the 8 rounds" in said


def test_messages_that_were_refused_are_told_by_reason_and_stand_in_the_rows():
    done, said = warned(pipeline(noise=0.1), rounds=4, delta=1e-3, faults=Faults(corrupt=0.3))
    refused = sum(row.get("refused_corrupt", 0) for row in done.rows)
    assert refused > 0 and f"corrupt {refused}" in said and "the server refused" in said
    assert all(isinstance(row.get("refused_corrupt", 1), int) and row.get("refused_corrupt", 1) for row in done.rows)


def test_a_message_that_is_refused_without_any_fault_is_told_too(monkeypatch):
    calls = []

    def refuse_every_third(server, frame):
        calls.append(frame)
        if len(calls) % 3 == 0:
            raise VersionMismatch("a test refuses it", reason="size")

    monkeypatch.setattr(Server, "_refuse_out_of_turn", refuse_every_third)
    done, said = warned(pipeline(noise=0.1), rounds=2, delta=1e-3)
    assert sum(row.get("refused_size", 0) for row in done.rows) > 0 and "refused" in said and "size" in said
    assert "away" not in done.rows[0]


def test_a_model_that_is_not_finite_is_told_whatever_is_measured():
    rows, watched = [{"participants": 1, "auc": 0.5}], Watched.of(pipeline(), ())
    given = {"delta": 1e-5, "units": 60}
    assert run_warnings(rows, {"auc": 0.5}, watched, model=np.ones(3, np.float32), **given) == ()
    (said,) = run_warnings(rows, {"auc": 0.5}, watched, model=np.array([1, np.nan], np.float32), **given)
    assert "model holds values that are not finite" in said


@dataclass(frozen=True)
class Measured(Blobs):
    """A task with a metric of its own."""

    value: float = 0.5

    def metrics(self, outputs, targets):
        return {"own": self.value}


def test_a_loss_that_grows_is_told_beside_the_metrics():
    _, said = warned(pipeline(noise=50.0), task=Measured(), rounds=3, trainer=PyTorch(learning_rate=50.0))
    assert "the training diverged, or its outputs grew" in said and "test_own 0.5 → 0.5" in said


def test_a_metric_that_is_finite_of_no_model_is_told():
    _, said = warned(pipeline(noise=0.1), task=Measured(value=float("nan")), rounds=2, delta=1e-3)
    assert said.startswith("test_own is not finite, neither of the first model nor of the last")


@pytest.mark.parametrize("trust", ["nobody", "server"])
def test_clients_that_draw_no_example_are_counted(trust):
    terms = {"clients": 30, "rounds": 4, "delta": 1e-3}
    chosen = pipeline("client", trust, noise=0.01, rate=None)
    done, said = warned(chosen, **terms, trainer=PyTorch(local_sampling=dp.Poisson(0.05)))
    assert "updates of clients were zero" in said and "local_sampling" in said and len(done.warnings) == 1
    _, said = warned(chosen, **terms, trainer=PyTorch(local_sampling=dp.Poisson(1.0)))
    assert said == ""

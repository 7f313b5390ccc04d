"""The probe of claim 5: at one step, a prediction saves the bits that the correlation foretells."""

from pathlib import Path

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.lab.config.own_parts import imported
from dpcomp.simulation.probes import Observation

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs" / "delta_coding"
SIZE = 40_000


@pytest.fixture
def probe():
    source = imported("prediction_saved.py", CONFIGS)
    return source.dataclasses()["PredictionSaved"](0.2)


def release(vector, number: int, client: int) -> Observation:
    update = dp.Update(
        values=vector.astype(np.float32),
        layout=dp.Layout.of({"first": (SIZE // 2,), "second": (SIZE // 2,)}),
        address=dp.Address(run=0, client=client, round=number),
    )
    return Observation(clean=update.values, norms=np.ones(1), clip_norm=1.0, released=update)


@pytest.mark.parametrize("correlation", [0.9, 0.4, 0.0])
def test_the_bits_that_prediction_saves_are_those_that_the_correlation_foretells(probe, correlation):
    rng = np.random.default_rng(0)
    last = [rng.standard_normal(SIZE) for _ in range(2)]
    broadcast = sum(last) / np.sqrt(2)
    now = correlation * broadcast + np.sqrt(1 - correlation**2) * rng.standard_normal(SIZE)
    assert [probe.measure(release(vector, 4, client)) for client, vector in enumerate(last)] == [{}, {}]
    found = probe.measure(release(now, 5, 0))
    assert found["squared_correlation"] == pytest.approx(correlation**2, abs=0.02)
    assert found["foretold_bits"] == pytest.approx(-np.log2(1 - correlation**2) / 2, abs=0.03)
    assert found["saved_bits"] == pytest.approx(found["foretold_bits"], abs=0.02)
    assert found["error"] == pytest.approx(1, abs=0.02)
    assert found["predicted_error"] == pytest.approx(1, abs=0.02)


def test_what_is_older_than_the_last_round_predicts_nothing(probe):
    vector = np.random.default_rng(0).standard_normal(SIZE)
    probe.measure(release(vector, 0, 0))
    assert probe.measure(release(vector, 2, 0)) == {}

"""Simulations in which the errors of the clients' quantisers are the noise."""

import numpy as np
import pytest
import torch

import dpcomp as dp
from dpcomp.lab.tasks import digits
from dpcomp.simulation import Faults, TopKOverlap, simulate
from dpcomp.training.pytorch import PyTorch

PIPELINE = dp.Pipeline(
    unit="client",
    trust="server",
    mechanism=(dp.Clip(1.0), dp.Gaussian(0.5)),
    codec=dp.Codec(quantize=dp.ExactGaussian(cohort=4)),
    downlink=dp.Codec(),
    feedback=False,
)
SETTING = {
    **{"clients": 4, "rounds": 3, "trainer": PyTorch(local_steps=2, learning_rate=1.0)},
    **{"delta": 1e-2, "progress": False, "evaluate_every": 3},
}


def test_a_simulation_sends_hundreds_of_bits_and_can_be_repeated():
    first, second = (simulate(digits(), PIPELINE, seed=5, **SETTING) for _ in range(2))
    np.testing.assert_array_equal(first.model, second.model)
    other = simulate(digits(), PIPELINE, seed=5, secret=dp.SecretSeed(), **SETTING)
    assert (first.model != other.model).any()
    assert all(row["participants"] == 4 and row["compression_ratio"] > 500 for row in first.rows)
    assert "SEEDED" in str(first.guarantee)
    assert "SEEDED" not in str(other.guarantee)
    assert "honest code" in str(other.guarantee)
    assert {"payload_bytes", "compression_ratio"} <= set(first.probed)


@pytest.mark.filterwarnings("ignore:the last test_loss:dpcomp.DpcompWarning")  # noise alone
def test_the_noise_of_a_simulation_has_the_variance_that_is_charged():
    """Where nobody learns, two runs differ by the noise of both: N(0, z²C²) ÷ divisor a round in each coordinate."""
    still = SETTING | {"trainer": PyTorch(local_steps=1, learning_rate=1e-12)}
    first, second = (simulate(digits(), PIPELINE, secret=dp.SecretSeed(), **still).model for _ in range(2))
    assert np.std(first - second) == pytest.approx(np.sqrt(2 * still["rounds"]) * 0.5 / still["clients"], rel=0.04)


def test_a_server_that_restarts_counts_the_same_updates():
    faults = Faults(server_restart=1.0)
    calm, restarted = (simulate(digits(), PIPELINE, seed=6, faults=each, **SETTING) for each in (Faults(), faults))
    np.testing.assert_array_equal(calm.model, restarted.model)


def test_probes_of_clean_sums_are_refused():
    with pytest.raises(ValueError, match="no clean sum"):
        simulate(digits(), PIPELINE, probes=[TopKOverlap(0.1)], **SETTING)


def test_a_cohort_that_may_be_too_large_is_refused():
    with pytest.raises(ValueError, match="cohort of 5"):
        simulate(digits(), PIPELINE, **(SETTING | {"clients": 5}))


@pytest.mark.slow
def test_clients_that_train_in_other_processes_send_the_same():
    torch.set_num_threads(1)
    one, two = (simulate(digits(), PIPELINE, seed=7, jobs=jobs, **SETTING) for jobs in (1, 2))
    np.testing.assert_array_equal(one.model, two.model)

"""Probes look at clean data, change nothing, and are named; without them nothing of it exists."""

import numpy as np
import pytest
import torch

import dpcomp as dp
from dpcomp.simulation import Clipping, SignalToNoise, TopKOverlap, simulate
from dpcomp.simulation.probes import Observation, Watched
from dpcomp.training.pytorch import PyTorch
from tests.simulation.test_simulate import TERMS, Blobs, pipeline

# Runs this small often learn nothing, and `simulate` says so: tests/simulation/test_run_warnings.py.
pytestmark = pytest.mark.filterwarnings("ignore::dpcomp.DpcompWarning")

torch.set_num_threads(1)
PROBES = (TopKOverlap(0.2), Clipping())
COLUMNS = ("clipped_fraction", "mean_unit_norm", "top_k_overlap")


def run(chosen, probes=(), **kwargs):
    trainer = PyTorch(local_steps=2, **kwargs)
    return simulate(Blobs(), chosen, clients=3, rounds=3, trainer=trainer, probes=probes, progress=False)


def facts(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key not in (*COLUMNS, "seconds")}


@pytest.mark.parametrize("order", ["noise first", "mask first"])
@pytest.mark.parametrize(("unit", "trust"), TERMS)
def test_a_watched_run_is_the_run(unit, trust, order):
    alone, watched = run(pipeline(unit, trust, order)), run(pipeline(unit, trust, order), PROBES)
    assert alone.model.tobytes() == watched.model.tobytes()
    assert list(map(facts, alone.rows)) == list(map(facts, watched.rows))
    assert alone.guarantee == watched.guarantee
    assert set(watched.probed) - set(alone.probed) == set(COLUMNS)
    assert ("participants" in alone.probed) == (trust == "server")  # the size of a cohort that was drawn in secret
    assert not set(COLUMNS) & set(alone.table().columns)
    assert set(COLUMNS) <= set(watched.table().columns)


def test_micro_batches_are_one_release():
    whole, cut = (run(pipeline(), PROBES, physical_batch_size=size) for size in (512, 3))
    for one, other in zip(whole.rows, cut.rows, strict=True):
        for column in COLUMNS:
            assert one[column] == pytest.approx(other[column], rel=1e-4)


def test_rounds_without_units_are_watched_too():
    chosen = pipeline("client", "server", rate=0.05)
    assert run(chosen, PROBES).model.tobytes() == run(chosen).model.tobytes()


class TestWhatIsMeasured:
    def release(self, blocks, *, noise: float = 1e-6, before=()):
        seen: list[Observation] = []

        class Keep:
            def measure(self, observation: Observation) -> dict[str, float]:
                seen.append(observation)
                return {}

        plain = dp.Pipeline(mechanism=(*before, dp.Clip(1.0), dp.Gaussian(noise)))
        watched = Watched.of(plain, (Keep(), TopKOverlap(0.5), Clipping()))
        memory = plain.init_client(4, seed=dp.PublicSeed(0), client=0)
        watched.release(blocks, memory, dp.SecretSeed(0), dp.Ledger().charge(plain.cost, memory.address))
        return seen[0], watched.take_means()

    def test_the_clean_sum_and_the_norms(self):
        block = np.array([[3.0, 0, 0, 4], [0, 0.5, 0, 0]], dtype=np.float32)
        seen, row = self.release([block])
        np.testing.assert_allclose(seen.clean, [0.6, 0.5, 0, 0.8], atol=1e-6)
        np.testing.assert_allclose(seen.norms, [5.0, 0.5])
        assert row == {"top_k_overlap": 1.0, "clipped_fraction": 0.5, "mean_unit_norm": 2.75}

    @pytest.mark.parametrize(("stage", "norm"), [(dp.TopK(0.25), 0.9), (dp.RandomK(0.5), 0.6)], ids=str)
    def test_norms_are_those_that_the_clip_finds(self, stage, norm):
        block = np.full((1, 4), 0.6 / np.sqrt(2), dtype=np.float32)
        block[0, 0] = 0.9 if isinstance(stage, dp.TopK) else block[0, 0]
        seen, row = self.release([block], before=(stage,))
        np.testing.assert_allclose(seen.norms, [norm], rtol=1e-6)
        assert row["clipped_fraction"] == 0.0

    def test_over_blocks(self):
        block = np.array([[3.0, 0, 0, 4], [0, 0.5, 0, 0]], dtype=np.float32)
        _, row = self.release([block[:1], block[1:]])
        assert row == {"top_k_overlap": 1.0, "clipped_fraction": 0.5, "mean_unit_norm": 2.75}

    def test_of_no_units_the_overlap_alone(self):
        _, row = self.release([])
        assert set(row) == {"top_k_overlap"}

    def test_noise_scrambles_the_ranking(self):
        block = np.zeros((1, 4), dtype=np.float32)
        block[0, :2] = 0.01, 0.02
        overlaps = {self.release([block], noise=noise)[1]["top_k_overlap"] for noise in (1e-6, 1e3)}
        assert 1.0 in overlaps

    def test_the_signal_is_measured_beside_the_noise_of_a_dense_release(self):
        block = np.full((4, 1000), 0.5 / np.sqrt(1000), dtype=np.float32)  # whose sum has norm 2
        dense, masked = (
            self.released_with(SignalToNoise(), block, noise=0.1, before=before) for before in ((), (dp.RandomK(0.5),))
        )
        assert dense["signal_to_noise"] == pytest.approx(4 / (1000 * 0.01), rel=0.2)
        assert masked == {}

    def released_with(self, probe, block, *, noise, before):
        plain = dp.Pipeline(mechanism=(*before, dp.Clip(1.0), dp.Gaussian(noise)))
        watched = Watched.of(plain, (probe,))
        memory = plain.init_client(block.shape[1], seed=dp.PublicSeed(0), client=0)
        watched.release([block], memory, dp.SecretSeed(0), dp.Ledger().charge(plain.cost, memory.address))
        return watched.take_means()

    def test_nothing_of_a_release_is_kept(self):
        plain = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
        watched = Watched.of(plain, PROBES)
        memory = plain.init_client(4, seed=dp.PublicSeed(0), client=0)
        block = np.ones((2, 4), dtype=np.float32)
        watched.release([block], memory, dp.SecretSeed(0), dp.Ledger().charge(plain.cost, memory.address))
        assert watched._blocks == []
        watched.take_means()
        assert watched.take_means() == {}


@pytest.mark.parametrize("probes", [("TopKOverlap",), "TopKOverlap", (TopKOverlap,), TopKOverlap(0.1)], ids=str)
def test_what_are_no_probes_is_refused_before_the_first_round(probes, monkeypatch):
    monkeypatch.setattr("dpcomp.training.pytorch.trainer.TorchTrainer.train", None)
    with pytest.raises(TypeError, match=r"simulate\(probes=\.\.\.\) is .*TopKOverlap.*give a tuple of instances"):
        run(pipeline(), probes)

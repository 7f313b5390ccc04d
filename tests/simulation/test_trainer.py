"""The seam: a trainer of one's own is one class, and neither it nor the simulation needs torch."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.simulation import simulate
from dpcomp.training import Trainer, TrainerConfig
from tests.simulation.own_trainer import LeastSquares

TASK = SimpleNamespace(name="a line", population=200)
PIPELINE = dp.Pipeline(
    sampling=dp.Poisson(0.5),
    mechanism=(dp.Clip(3.0), dp.Gaussian(0.2)),
    codec=dp.Codec(quantize=dp.Uniform(8)),
)


def run(trainer, rounds=20):
    return simulate(TASK, PIPELINE, clients=4, rounds=rounds, trainer=trainer, progress=False)


def test_one_class_is_a_trainer():
    trainer = LeastSquares(learning_rate=0.3)
    assert isinstance(trainer, TrainerConfig)
    done = run(trainer)
    assert isinstance(trainer, Trainer)
    assert done.rows[-1]["test_loss"] < 0.1 < 1.0 < done.rows[0]["test_loss"]
    np.testing.assert_allclose(done.model, [1.0, -2.0, 0.5], atol=0.3)


def test_it_is_charged_as_any_trainer_is():
    done = run(LeastSquares(learning_rate=0.3), rounds=3)
    assert done.guarantee.epsilon == PIPELINE.guarantee(3, 1e-5).epsilon
    assert done.guarantee.steps == 3


def test_a_trainer_that_releases_twice_at_an_address_is_refused():
    class Twice(LeastSquares):
        def train(self, client, start, memory, ledger):
            super().train(client, start, memory, ledger)
            return super().train(client, start, memory, ledger)

    with pytest.raises(dp.BudgetExhausted, match="charged before"):
        run(Twice(learning_rate=0.3), rounds=1)


def test_an_update_that_was_not_released_is_refused():
    class Clean(LeastSquares):
        def train(self, client, start, memory, ledger):
            ledger.charge(self.federation.pipeline.cost, memory.address)
            return dp.Update(values=np.ones(3, np.float32), layout=self.layout, address=memory.address)

    with pytest.raises(dp.NotPrivate, match="release"):
        run(Clean(learning_rate=0.3), rounds=1)


@pytest.mark.parametrize("model", [np.zeros(2, np.float32), np.zeros(3, np.float64)], ids=["shape", "type"])
def test_a_first_model_that_does_not_fit_the_layout_is_refused(model):
    class Misfit(LeastSquares):
        def make_trainer(self, federation):
            super().make_trainer(federation)
            self.initial_model = model
            return self

    with pytest.raises(ValueError, match=r"float32 and shape \(3,\)"):
        run(Misfit(learning_rate=0.3))


def test_what_a_trainer_assumes_stands_in_the_guarantee():
    class Assuming(LeastSquares):
        assumptions = ("the inputs are public",)

    assert "the inputs are public" in run(Assuming(learning_rate=0.3), rounds=1).guarantee.assumptions


WITHOUT_FRAMEWORKS = """
import sys
from types import SimpleNamespace

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "opacus", "jax", "pandas", "rich"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())

import dpcomp as dp
from dpcomp.simulation import simulate
from tests.simulation.own_trainer import LeastSquares

pipeline = dp.Pipeline(sampling=dp.Poisson(0.5), mechanism=(dp.Clip(3.0), dp.Gaussian(0.2)))
task, trainer = SimpleNamespace(name="a line", population=200), LeastSquares(learning_rate=0.3)
print(len(simulate(task, pipeline, clients=4, rounds=2, trainer=trainer, progress=False).rows))
"""


def test_a_simulation_runs_where_torch_pandas_and_rich_are_missing():
    ended = subprocess.run([sys.executable, "-c", WITHOUT_FRAMEWORKS], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.returncode) == ("2\n", 0), ended.stderr

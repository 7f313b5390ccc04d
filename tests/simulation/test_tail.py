"""The average of the last rounds' models, and examples that are held out, in whole federations."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import dpcomp as dp
from dpcomp.federated.server.optimizers import ServerOptimizer
from dpcomp.lab.tasks import digits
from dpcomp.simulation import simulate
from dpcomp.simulation.evaluation_rounds import TailAverage
from dpcomp.training import HoldsOut
from tests.simulation.test_simulate import Blobs, facts, pipeline, run

pytestmark = pytest.mark.filterwarnings("ignore::dpcomp.DpcompWarning")


@pytest.mark.parametrize("trust", ["nobody", "server"])
def test_the_tail_model_is_the_mean_of_the_models_of_the_last_rounds(trust):
    chosen, settings = (
        pipeline("client", trust),
        {"server": ServerOptimizer(momentum=0.5, behind_feedback=True), "clients": 2},
    )
    models = [run(chosen, rounds=rounds, **settings).model for rounds in range(1, 5)]
    for tail, last in ((0.01, 1), (0.5, 2), (1.0, 4)):
        done = run(chosen, rounds=4, tail=tail, **settings)
        assert done.tail_model.dtype == np.float32
        expected = np.mean(models[-last:], axis=0, dtype=np.float64).astype(np.float32)
        np.testing.assert_array_equal(done.tail_model, expected)
        assert (done.tail_model == done.model).all() == (last == 1)


EVALUATIONS = [0]  # a global: what a loss notes on itself, training refuses


class Spied(Blobs):
    def loss(self, outputs, targets):
        EVALUATIONS[0] += not outputs.requires_grad
        return super().loss(outputs, targets)


def test_the_tail_model_is_evaluated_once_and_changes_nothing_else():
    without, evaluations = run(pipeline("client"), rounds=4), []
    for tail in (0.0, 0.5):
        EVALUATIONS[0] = 0
        done = run(pipeline("client"), rounds=4, tail=tail, task=Spied())
        evaluations.append(EVALUATIONS[0])
    assert evaluations[1] == evaluations[0] + 1
    assert done.model.tobytes() == without.model.tobytes()
    assert done.guarantee == without.guarantee
    tails = [{name for name in row if name.startswith("tail_")} for row in done.rows]
    assert tails == [set(), set(), set(), {"tail_test_accuracy", "tail_test_loss"}]
    assert not set(done.probed) & tails[-1]
    kept = [{name: value for name, value in row.items() if not name.startswith("tail_")} for row in facts(done)]
    assert kept == facts(without)
    assert without.tail_model is None


def test_the_tail_columns_are_those_of_the_tail_model():
    done = run(pipeline("client"), rounds=4, tail=0.5)
    model = Blobs().model(0)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(done.tail_model.copy()), model.parameters())
    inputs, targets = Blobs().test()
    with torch.no_grad():
        loss = float(Blobs().loss(model(inputs), targets))
    assert done.rows[-1]["tail_test_loss"] == pytest.approx(loss, rel=1e-5)
    assert done.rows[-1]["tail_test_loss"] != pytest.approx(done.rows[-1]["test_loss"], rel=1e-5)


@pytest.mark.parametrize("tail", [-0.1, 1.1, float("nan")])
def test_a_tail_that_is_no_share_is_refused_before_anything_is_spent(tail):
    with pytest.raises(ValueError, match=r"simulate\(tail\) is .* in \[0, 1\]"):
        run(pipeline("client"), tail=tail)


@pytest.mark.parametrize(
    ("tail", "rounds", "averaged"), [(0.25, 300, 75), (0.1, 30, 3), (0.3, 10, 3), (0.001, 10, 1), (0.0, 10, 0)]
)
def test_the_tail_is_a_share_of_the_rounds(tail, rounds, averaged):
    assert TailAverage(tail=tail, rounds=rounds).averaged == averaged


class TestHeldOutExamples:
    def test_they_are_evaluated_beside_the_test_set_in_the_same_rounds(self):
        chosen = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.01))
        done = simulate(
            digits(validation=97), chosen, clients=1, rounds=3, evaluate_every=2, tail=0.5, delta=1e-4, progress=False
        )
        names = {"validation_accuracy", "validation_loss"}
        assert [names <= set(row) for row in done.rows] == [False, True, True]
        assert {f"tail_{name}" for name in names} <= set(done.rows[-1])
        correct = done.rows[-1]["validation_accuracy"] * 97
        assert correct == pytest.approx(round(correct))
        assert "1,340" in str(done.guarantee.assumptions)

    def test_they_are_what_the_task_holds_out(self):
        class Split(Blobs):
            def validation(self):
                return self._draw(1)

        class Same(Blobs):
            def test(self):
                return self._draw(1)

        assert isinstance(Split(), HoldsOut) and not isinstance(Blobs(), HoldsOut)
        done, same = run(pipeline("client"), task=Split()), run(pipeline("client"), task=Same())
        for row, other in zip(done.rows, same.rows, strict=True):
            assert (row["validation_accuracy"], row["validation_loss"]) == (other["test_accuracy"], other["test_loss"])
            assert row["validation_loss"] != row["test_loss"]
        assert done.model.tobytes() == run(pipeline("client")).model.tobytes()


def test_a_task_that_holds_out_nothing_is_the_task_that_it_was():
    assert digits() == replace(digits(), held_out=0)
    assert digits(validation=3) != digits()

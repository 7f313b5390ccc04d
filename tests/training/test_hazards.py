"""Where scripts go wrong: examples that would count twice, and optimisers that cannot be built."""

import copy

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import nn

import dpcomp as dp
from dpcomp.training.pytorch import Opacus, PrivateOptimizer
from dpcomp.training.pytorch.inspection import hooks_on_inputs, private_model
from experiments.data.models import fashion_cnn, logistic_regression
from tests.training.private_client import Client, clean, examples, leftovers, linear, noisy

SWITCH, LATER = [True], []  # globals, which no watch sees


class TestNoExampleCountsTwice:
    def test_a_forward_pass_for_looking_does_not_mix_with_the_next(self):
        client = linear(clean(0.3))
        client.model(examples(9, seed=1)[0])
        with pytest.raises(dp.NotPrivate, match="no backward pass"):
            client.backward(*examples(9))
        client.optimizer.discard()
        client.step(*examples(9))
        alone = linear(clean(0.3))
        alone.step(*examples(9))
        assert torch.equal(client.sums()[0], alone.sums()[0])

    def test_looking_without_gradients_is_free(self):
        client = linear(clean(0.3))
        inputs, targets = examples(9)
        client.draw((inputs, targets))
        outputs = client.model(inputs)
        with torch.no_grad():
            client.model(examples(4, seed=1)[0])
        with hooks_on_inputs():
            nn.functional.cross_entropy(outputs, targets).backward()
        client.optimizer.step()
        alone = linear(clean(0.3))
        alone.step(inputs, targets)
        assert torch.equal(client.sums()[0], alone.sums()[0])

    def test_two_forward_passes_and_one_backward_pass_are_refused(self):
        client = linear(clean(0.3))
        client.model(examples(9)[0])
        with pytest.raises(dp.NotPrivate, match="added up"):
            client.model(examples(9, seed=1)[0])

    def test_branches_are_not_clipped_across_batches(self):
        class Branches(nn.Module):
            """One branch or the other, by a public switch that no watch sees."""

            def __init__(self):
                super().__init__()
                self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 3)

            def forward(self, inputs):
                return self.left(inputs) if SWITCH[0] else self.right(inputs)

        client = Client(clean(0.3), Branches(), (6,))
        client.backward(*examples(5))
        SWITCH[0] = False
        with pytest.raises(dp.NotPrivate, match="missed some parameters"):
            client.backward(*examples(5, seed=1))
        client.optimizer.discard()
        client.draw(examples(5), examples(5, seed=1))
        SWITCH[0] = True
        client.micro_step(*examples(5), last=False)
        SWITCH[0] = False
        client.micro_step(*examples(5, seed=1), last=True)
        norms = [float(torch.linalg.vector_norm(half)) for half in client.sums()[0].split(21)]
        assert max(norms) <= 5 * 0.3 * (1 + 1e-5)

    def test_a_weight_used_twice_in_a_pass_that_half_reached_the_loss_is_refused(self):
        class Half(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(6, 6)

            def forward(self, inputs):
                if LATER:
                    self.layer(inputs * 2)
                return self.layer(inputs)

        client = Client(clean(0.3), Half(), (6,))
        LATER.append(True)
        try:
            with pytest.raises(dp.NotPrivate, match="backward pass"):
                client.step(*examples(5))
        finally:
            LATER.clear()
        assert leftovers(client.model) == []

    @pytest.mark.parametrize(
        ("kind", "bad"),
        [
            *(("linear", bad) for bad in (float("nan"), float("inf"), -float("inf"), 3e38)),
            *(("cnn", bad) for bad in (float("nan"), 3e38)),
            *(pytest.param("cnn", bad, marks=pytest.mark.slow) for bad in (float("inf"), -float("inf"))),
        ],
    )
    def test_a_broken_example_moves_the_release_by_at_most_one_clip_norm(self, bad, kind):
        shape = (6,) if kind == "linear" else (1, 28, 28)
        module = logistic_regression(inputs=6, classes=3, seed=0) if kind == "linear" else fashion_cnn(seed=0)
        inputs, targets = examples(7, shape=shape)
        inputs[3] = bad
        with_it, without = (Client(noisy(0.5), copy.deepcopy(module), shape) for _ in range(2))
        with_it.step(inputs, targets)
        keep = torch.arange(7) != 3
        without.step(inputs[keep], targets[keep])
        assert torch.isfinite(with_it.gradients[0]).all()
        moved = torch.linalg.vector_norm(with_it.sums()[0].double() - without.sums()[0].double())
        assert moved <= 0.5 * (1 + 1e-5)
        assert np.isfinite(with_it.parameters()).all()

    def test_an_ordinary_example_moves_it_by_at_most_one_clip_norm_too(self):
        inputs, targets = examples(7)
        with_it = linear()
        with_it.step(inputs * 50, targets)
        for i in range(7):
            without = linear()
            keep = torch.arange(7) != i
            without.step(inputs[keep] * 50, targets[keep])
            assert torch.linalg.vector_norm(with_it.sums()[0] - without.sums()[0]) <= 0.5 * (1 + 1e-5)


class TestRefusals:
    def model(self):
        module = logistic_regression(inputs=6, classes=3, seed=0)
        return private_model(module, nn.functional.cross_entropy, *examples(4), engine=Opacus())

    def build(self, model, inner, pipeline) -> PrivateOptimizer:
        return PrivateOptimizer(inner, model, pipeline, secret=dp.SecretSeed(0), expected_batch_size=1)

    @pytest.mark.parametrize(("unit", "trust"), [("client", "nobody"), ("client", "server")])
    def test_another_unit_or_trust(self, unit, trust):
        pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), unit=unit, trust=trust)
        model = self.model()
        with pytest.raises(dp.NotPrivate, match="each local step"):
            self.build(model, torch.optim.SGD(model.parameters(), lr=1.0), pipeline)

    def test_a_model_that_nobody_inspected(self):
        model = GradSampleModule(logistic_regression(inputs=6, classes=3, seed=0))
        with pytest.raises(dp.NotPrivate, match="make_private"):
            self.build(model, torch.optim.SGD(model.parameters(), lr=1.0), noisy())

    def test_an_optimiser_of_other_parameters(self):
        model = self.model()
        some, more = list(model.parameters())[:1], [*model.parameters(), nn.Parameter(torch.ones(1))]
        for parameters in (some, more):
            with pytest.raises(ValueError, match=r"model\.parameters"):
                self.build(model, torch.optim.SGD(parameters, lr=1.0), noisy())

    def test_a_memory_of_another_model(self):
        client = linear()
        memory = client.optimizer.pipeline.init_client(22, seed=dp.PublicSeed(1), client=0)
        with pytest.raises(ValueError, match=r"optimizer\.layout"):
            client.optimizer.begin(memory, client.permit)

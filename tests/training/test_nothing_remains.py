"""Whatever a step does or fails to do, no raw gradient stays behind or moves a parameter."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import dpcomp as dp
from dpcomp.training.pytorch import Isolated, Opacus, PrivateOptimizer
from dpcomp.training.pytorch.inspection import hooks_on_inputs, private_model
from dpcomp.training.pytorch.rows.parameters import read
from experiments.data.models import logistic_regression
from tests.training.private_client import Client, examples, leftovers, linear, noisy


def inspected():
    module = logistic_regression(inputs=6, classes=3, seed=0)
    return private_model(module, nn.functional.cross_entropy, *examples(4), engine=Opacus())


class TestNothingRemains:
    def frozen(self) -> Client:
        module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        module[0].bias.requires_grad_(False)
        return Client(noisy(), module, (6,))

    def test_after_a_step(self):
        client = self.frozen()
        bias = dict(client.model.named_parameters())["_module.0.bias"]
        bias.grad = bias.summed_grad = torch.ones_like(bias)
        client.step(*examples(9))
        assert leftovers(client.model) == []

    def test_after_a_micro_batch_that_was_skipped(self):
        client = self.frozen()
        client.draw(examples(9), examples(2))
        client.micro_step(*examples(9), last=False)
        assert leftovers(client.model) == []
        assert client.gradients == []

    def test_after_a_forward_pass_that_nothing_followed(self):
        client = self.frozen()
        client.model(examples(9)[0])
        assert leftovers(client.model) != []
        client.noise_step()
        assert leftovers(client.model) == []

    @pytest.mark.parametrize("engine", [Isolated(), Opacus()], ids=["Isolated", "Opacus"])
    @pytest.mark.parametrize("finished", [False, True])
    @pytest.mark.parametrize("write", ["save", "pickle", "deepcopy"])
    def test_in_what_is_saved(self, write, finished, engine):
        inputs = torch.full((5, 6), 1234.5678)
        client = linear(engine=engine)
        outputs = client.model(inputs)
        if finished:
            nn.functional.cross_entropy(outputs, torch.zeros(5, dtype=torch.int64)).backward()
        file = io.BytesIO()
        if write == "save":
            torch.save(client.model, file)
        else:
            what = copy.deepcopy(client.model) if write == "deepcopy" else client.model
            assert leftovers(what) == [] or write == "pickle"
            pickle.dump(what, file)
        assert np.float32(1234.5678).tobytes() * 3 not in file.getvalue()

    @pytest.mark.parametrize("engine", [Isolated(), Opacus()], ids=["Isolated", "Opacus"])
    def test_of_passes_after_the_last_step(self, engine):
        client = linear(engine=engine)
        client.step(*examples(5))
        client.model(examples(5)[0])
        assert leftovers(client.model) != []
        client.optimizer.update()
        assert leftovers(client.model) == []

    def test_after_a_step_that_failed(self):
        client = linear(steps=1)
        client.noise_step()
        client.draw(examples(4), examples(5))
        client.micro_step(*examples(4), last=False)
        with pytest.raises(dp.BudgetExhausted):
            client.micro_step(*examples(5), last=True)
        assert leftovers(client.model) == []
        alone = linear()
        for either in (client, alone):  # as begin would, but for what begin discards
            permit = either.ledger.charge(either.optimizer.pipeline.cost, dp.Address(1, 0, 1))
            either.optimizer._open = (either.memory, permit)
            either.noise_step()
        assert torch.equal(client.gradients[-1], alone.gradients[-1])

    def test_and_a_frozen_parameter_stays_where_it_is(self):
        client = self.frozen()
        bias = dict(client.model.named_parameters())["_module.0.bias"]
        before = bias.clone()
        bias.requires_grad_(True)  # what a script may do in between; the optimiser never trained it
        with pytest.raises(dp.NotPrivate, match=r"trainable parameters changed.*'0.bias'"):
            client.step(*examples(9))
        assert torch.equal(bias, before)
        assert leftovers(client.model) == []

    def test_a_parameter_slipped_into_the_optimiser_is_not_moved_by_raw_gradients(self):
        temperature = nn.Parameter(torch.ones(()), requires_grad=False)
        model = inspected()
        inner = torch.optim.SGD([*model.parameters(), temperature], lr=1.0)
        pipeline = noisy()
        optimizer = PrivateOptimizer(inner, model, pipeline, secret=dp.SecretSeed(0), expected_batch_size=1)
        memory = pipeline.init_client(optimizer.layout, seed=dp.PublicSeed(0), client=0)
        optimizer.begin(memory, dp.Ledger().charge(pipeline.cost, memory.address))
        temperature.requires_grad_(True)
        inputs, targets = examples(9)
        with hooks_on_inputs():
            nn.functional.cross_entropy(model(inputs) * temperature, targets).backward()
        assert temperature.grad is not None
        optimizer.zero_grad()
        optimizer.draws.draw([], 9)
        optimizer.step()
        assert temperature.grad is None
        assert temperature.item() == 1.0

    def test_of_optimiser_state_from_before_the_round(self):
        inputs, targets = examples(9)
        model = inspected()
        inner = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
        with hooks_on_inputs():
            nn.functional.cross_entropy(model(inputs), targets).backward()
        inner.step()  # raw gradients are in its momentum now
        pipeline = noisy()
        optimizer = PrivateOptimizer(inner, model, pipeline, secret=dp.SecretSeed(0), expected_batch_size=1)
        memory = pipeline.init_client(optimizer.layout, seed=dp.PublicSeed(0), client=0)
        optimizer.begin(memory, dp.Ledger().charge(pipeline.cost, memory.address))
        before = read(model)
        optimizer.zero_grad()
        optimizer.draws.draw([], 9)
        optimizer.step()
        noise = pipeline.release([], memory, dp.SecretSeed(0), dp.Ledger().charge(pipeline.cost, memory.address))
        np.testing.assert_array_equal(read(model), before - noise.values)

"""What a step adds up is stock Opacus' clipped sum, each example once, over a public constant."""

import copy

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from dpcomp.training.pytorch.inspection import hooks_on_inputs
from experiments.data.models import fashion_cnn
from tests.training.private_client import DIVISOR, Client, clean, examples, linear, noisy, relative


class TestTheClippedSum:
    CUTS = (1, 5, 2, 9, 4, 3, 8)  # seven uneven micro-batches

    def stock(self, norm: float, inputs, targets) -> torch.Tensor:
        model = GradSampleModule(fashion_cnn(seed=0))
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer = DPOptimizer(inner, noise_multiplier=0.0, max_grad_norm=norm, expected_batch_size=1)
        with hooks_on_inputs():
            nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.pre_step()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    @pytest.mark.parametrize(
        ("way", "norm"),
        [
            *(("one batch", norm) for norm in (0.1, 3.0, 100.0)),
            *((way, 3.0) for way in ("seven steps", "seven backward passes")),
            *(
                pytest.param(way, norm, marks=pytest.mark.slow)
                for way in ("seven steps", "seven backward passes")
                for norm in (0.1, 100.0)
            ),
        ],
    )
    def test_is_stock_opacus(self, norm, way):
        inputs, targets = examples(sum(self.CUTS), shape=(1, 28, 28), classes=10)
        client = Client(clean(norm), fashion_cnn(seed=0), (1, 28, 28))
        chunks = list(zip(inputs.split(self.CUTS), targets.split(self.CUTS), strict=True))
        if way == "one batch":
            client.step(inputs, targets)
        elif way == "seven steps":
            client.draw(*chunks)
            for number, chunk in enumerate(chunks, start=1):
                client.micro_step(*chunk, last=number == len(chunks))
        else:
            client.draw((inputs, targets))
            for chunk in chunks:
                client.backward(*chunk)
            client.optimizer.step()
        (total,) = client.sums()
        assert relative(total, self.stock(norm, inputs, targets)) <= 1e-6

    def test_is_what_the_pipeline_clips(self):
        inputs, targets = examples(20)
        client = linear(clean(0.3))
        client.draw((inputs, targets))
        client.backward(inputs, targets)
        block = tuple(parameter.grad_sample for parameter in client.model.parameters())
        expected = client.optimizer.pipeline.clip(block, client.memory).vector()
        client.optimizer.step()
        np.testing.assert_allclose(client.sums()[0].numpy(), expected, rtol=1e-6)

    def test_a_closure_is_a_batch_too(self):
        inputs, targets = examples(20)
        one, two = linear(clean(0.3)), linear(clean(0.3))
        one.step(inputs, targets)
        two.draw((inputs, targets))
        two.optimizer.step(lambda: two.backward(inputs, targets))
        assert torch.equal(one.sums()[0], two.sums()[0])

    def test_zero_grad_between_forward_and_backward_changes_nothing(self):
        inputs, targets = examples(20)
        one, two = linear(clean(0.3)), linear(clean(0.3))
        one.step(inputs, targets)
        two.draw((inputs, targets))
        loss = nn.functional.cross_entropy(two.model(inputs), targets)
        two.optimizer.zero_grad()
        with hooks_on_inputs():
            loss.backward()
        two.optimizer.step()
        assert torch.equal(one.sums()[0], two.sums()[0])

    def test_zero_grad_drops_what_was_not_stepped(self):
        client = linear(clean(0.3))
        client.backward(*examples(5, seed=1))
        client.optimizer.zero_grad()
        client.noise_step()
        assert not client.sums()[0].any()

    def test_tied_weights_are_one_parameter(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding, self.output = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
                self.output.weight = self.embedding.weight

            def forward(self, tokens):
                return self.output(self.embedding(tokens).mean(dim=1))

        module = Tied()
        tokens, targets = torch.tensor([[0, 1, 2], [4, 4, 3]]), torch.tensor([1, 2])
        client = Client(clean(0.2), copy.deepcopy(module), (tokens, targets), divisor=1.0)
        assert client.optimizer.layout.size == 20
        expected = torch.zeros(5, 4)
        for row, target in zip(tokens, targets, strict=True):
            module.zero_grad()
            nn.functional.cross_entropy(module(row[None]), target[None]).backward()
            gradient = module.embedding.weight.grad
            expected += gradient * min(1.0, 0.2 / float(gradient.norm() + 1e-6))
        client.step(tokens, targets)
        assert relative(-torch.tensor(client.optimizer.update().dense()), expected.flatten()) < 1e-5


class TestTheDivisor:
    @pytest.mark.parametrize("passes", [1, 2, 5])
    def test_is_the_public_constant_however_many_passes(self, passes):
        inputs, targets = examples(10)
        client = linear(clean(0.3))
        client.draw((inputs, targets))
        for part, truth in zip(inputs.chunk(passes), targets.chunk(passes), strict=True):
            client.backward(part, truth)
        client.optimizer.step()
        whole = linear(clean(0.3), divisor=1.0)
        whole.step(inputs, targets)
        torch.testing.assert_close(client.gradients[0] * DIVISOR, whole.gradients[0])

    def test_is_above_zero(self):
        with pytest.raises(ValueError, match="expected_batch_size"):
            linear(divisor=0.0)

    @pytest.mark.parametrize("name", ["noise_multiplier", "max_grad_norm", "expected_batch_size", "loss_reduction"])
    def test_and_what_was_charged_for_are_frozen(self, name):
        client = linear()
        held = getattr(client.optimizer, name)
        with pytest.raises(AttributeError, match=name):
            setattr(client.optimizer, name, 0.001)
        assert getattr(client.optimizer, name) == held

    def test_reads_like_opacus(self):
        optimizer = linear(noisy(0.25)).optimizer
        assert (optimizer.noise_multiplier, optimizer.max_grad_norm, optimizer.expected_batch_size) == (1.0, 0.25, 8.0)

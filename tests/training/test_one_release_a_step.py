"""Every logical step is one release: charged, freshly noised, empty batches and micro-batches too."""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import nn
from torch.utils.data import TensorDataset

import dpcomp as dp
from dpcomp.training.pytorch.batches import poisson_loader
from dpcomp.training.pytorch.inspection import hooks_on_inputs
from experiments.data.models import logistic_regression
from tests.training.private_client import Client, examples, leftovers, linear, noisy


class TestPureNoise:
    def test_is_released_for_a_draw_without_examples(self):
        client = linear()
        client.noise_step()
        fresh = client.optimizer.pipeline.release(
            [],
            client.memory,
            dp.SecretSeed(7),
            dp.Ledger().charge(client.optimizer.pipeline.cost, client.memory.address),
        )
        np.testing.assert_allclose(client.sums()[0].numpy(), fresh.values, rtol=1e-6)
        assert client.permit.used == 1

    def test_is_released_for_a_batch_without_examples(self):
        empty, none = linear(), linear()
        empty.step(*examples(0))
        none.noise_step()
        assert torch.equal(empty.sums()[0], none.sums()[0])

    def test_differs_between_steps_clients_and_restarts(self):
        one, other = linear(), linear(number=1)
        fresh = [linear(secret=dp.SecretSeed()) for _ in range(2)]
        for client in (one, one, other, *fresh):
            client.noise_step()
        drawn = [*one.gradients, *other.gradients, *fresh[0].gradients, *fresh[1].gradients]
        assert len(drawn) == 5
        assert all(not torch.isclose(a, b).any() for a, b in itertools.combinations(drawn, 2))

    def test_has_the_deviation_that_was_charged(self):
        module = logistic_regression(inputs=2_000, classes=10, seed=0)
        client = Client(noisy(0.25), module, (2_000,), divisor=1.0)
        client.noise_step()
        drawn = client.gradients[0].numpy()
        assert abs(drawn.std() / 0.25 - 1) < 0.03
        assert abs(drawn.mean()) < 0.01


class TestBatchMemoryManager:
    def train(self, client: Client, *, physical: int | None, passes: int = 1, n: int = 30) -> None:
        loader = poisson_loader(TensorDataset(*examples(n)), client.optimizer, steps=4)
        for _ in range(passes):
            if physical is None:
                self.walk(client, loader)
            else:
                arguments = {"data_loader": loader, "max_physical_batch_size": physical}
                with BatchMemoryManager(**arguments, optimizer=client.optimizer) as cut:
                    self.walk(client, cut)

    def walk(self, client: Client, loader) -> None:
        for inputs, targets in loader:
            client.optimizer.zero_grad()
            client.backward(inputs, targets)
            client.optimizer.step()

    def test_gives_what_whole_batches_give(self):
        whole, cut = linear(momentum=0.5), linear(momentum=0.5)
        self.train(whole, physical=None, passes=2)
        self.train(cut, physical=4, passes=2)
        assert len(whole.gradients) == len(cut.gradients) == 8
        np.testing.assert_allclose(cut.parameters(), whole.parameters(), rtol=1e-5, atol=1e-6)
        assert cut.permit.used == whole.permit.used == 8
        assert leftovers(cut.model) == []

    def test_releases_noise_for_empty_batches(self):
        client = linear(noisy(rate=0.02))
        self.train(client, physical=2, passes=2, n=20)
        assert len(client.gradients) == 8

    def test_carries_nothing_over_from_a_step_that_was_broken_off(self):
        pipeline = dp.Pipeline(mechanism=dp.unsafe("tests", dp.Clip(0.3)))
        client = linear(pipeline)
        dataset = TensorDataset(*examples(30))
        loader = poisson_loader(dataset, client.optimizer, steps=1)
        manager = BatchMemoryManager(data_loader=loader, max_physical_batch_size=4, optimizer=client.optimizer)
        with manager as cut, contextlib.suppress(MemoryError):
            for number, (inputs, targets) in enumerate(cut):
                loss = nn.functional.cross_entropy(client.model(inputs), targets)
                if number == 2:
                    raise MemoryError
                with hooks_on_inputs():
                    loss.backward()
                client.optimizer.step()
        client.optimizer.begin(client.memory, client.permit)
        with manager as cut, pytest.raises(dp.NotPrivate, match="delivered and not stepped"):
            self.walk(client, cut)
        permit = client.ledger.charge(pipeline.cost, dp.Address(1, 0, 1))
        client.optimizer.begin(client.memory, permit)
        with manager as cut:
            self.walk(client, cut)
        alone = linear(pipeline)
        alone.step(*dataset[:])
        assert len(client.gradients) == 1
        torch.testing.assert_close(client.sums()[0], alone.sums()[0])

    def test_a_micro_batch_that_is_passed_over_is_an_error(self):
        """Else `if not len(inputs): continue` would shift every later batch by one micro-batch."""
        client = linear(noisy(rate=0.02))
        loader = poisson_loader(TensorDataset(*examples(20)), client.optimizer, steps=8)
        manager = BatchMemoryManager(data_loader=loader, max_physical_batch_size=2, optimizer=client.optimizer)
        with manager as cut, pytest.raises(dp.NotPrivate, match="0 examples were drawn"):
            self.step_where_there_are_examples(client, cut)

    def step_where_there_are_examples(self, client: Client, loader) -> None:
        for inputs, targets in loader:
            if len(inputs):
                client.backward(inputs, targets)
                client.optimizer.step()


class TestPermits:
    def test_are_charged_before_the_first_step(self):
        client = linear(steps=3)
        assert client.ledger.guarantee(1e-5).steps == 3
        assert client.gradients == []

    def test_used_up_the_model_stays_as_it_is(self):
        client = linear(steps=2)
        client.step(*examples(5))
        client.step(*examples(5))
        before = client.parameters()
        with pytest.raises(dp.BudgetExhausted, match="used up"):
            client.step(*examples(5))
        np.testing.assert_array_equal(client.parameters(), before)
        assert leftovers(client.model) == []

    def test_of_another_pipeline_open_nothing(self):
        client = linear()
        other = dp.Ledger().charge(noisy(0.5, rate=0.25).cost, client.memory.address)
        client.optimizer.begin(client.memory, other)
        before = client.parameters()
        with pytest.raises(dp.BudgetExhausted, match="charged for"):
            client.step(*examples(5))
        np.testing.assert_array_equal(client.parameters(), before)

    def test_are_asked_for(self):
        client = linear()
        client.optimizer._open = None
        with pytest.raises(dp.BudgetExhausted, match="no round is open"):
            client.step(*examples(5))
        assert leftovers(client.model) == []

    def test_skipped_micro_batches_cost_nothing(self):
        client = linear()
        client.draw(*(examples(2, seed=seed) for seed in range(6)))
        for seed in range(5):
            client.micro_step(*examples(2, seed=seed), last=False)
        assert client.permit.used == 0


class TestRandomness:
    @pytest.mark.parametrize("secret", [dp.SecretSeed(3), None])
    def test_owes_nothing_to_global_seeds(self, secret):
        drawn = []
        for seed in (11, 11, 12):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            client = linear(secret=dp.SecretSeed() if secret is None else secret)
            client.noise_step()
            drawn.append(client.gradients[0])
        assert torch.equal(drawn[0], drawn[1]) == (secret is not None)
        assert torch.equal(drawn[1], drawn[2]) == (secret is not None)

    def test_a_round_leaves_the_global_generators_as_they_were(self):
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        client = linear(secret=dp.SecretSeed())
        TestBatchMemoryManager().train(client, physical=4)
        client.optimizer.update()
        after = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        np.testing.assert_equal(before[1], after[1])


class TestTheUpdate:
    def test_is_what_the_round_did(self):
        client = linear()
        start = client.parameters()
        client.step(*examples(5))
        update = client.optimizer.update()
        np.testing.assert_array_equal(update.dense(), client.parameters() - start)
        assert isinstance(update.claim, dp.Released)
        assert update.address == client.memory.address

    def test_needs_a_release(self):
        client = linear()
        client.draw(examples(5), examples(2))
        client.micro_step(*examples(5), last=False)
        with pytest.raises(dp.BudgetExhausted, match="nothing was released"):
            client.optimizer.update()

    @pytest.mark.parametrize("sgd", [{"momentum": 0.9}, {"weight_decay": 0.3}, {"momentum": 0.9, "weight_decay": 0.3}])
    def test_of_a_support_before_the_noise_lies_on_it(self, sgd):
        pipeline = noisy(first=(dp.RandomK(0.2),))
        client = linear(pipeline, **sgd)
        for seed in range(3):
            client.step(*examples(9, seed=seed))
        update = client.optimizer.update()
        support = dp.RandomK(0.2).public_support(client.optimizer.pipeline.channel.context(client.memory))
        assert update.support == support
        assert set(np.flatnonzero(update.dense())) <= set(support.indices(21))
        payload, _ = pipeline.send(update, client.memory)
        server = pipeline.init_server(client.memory.layout, seed=dp.PublicSeed(1))
        received, _ = pipeline.receive(payload, server)
        assert received.support == support

    def test_holds_trainable_parameters_and_never_buffers(self):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("scale", torch.tensor(2.0))

            def forward(self, inputs):
                return inputs * self.scale

        module = nn.Sequential(Scaled(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
        module[1].weight.requires_grad_(False)
        client = Client(noisy(), module, (6,))
        assert [name for name, _ in client.optimizer.layout.shapes] == ["1.bias", "3.weight", "3.bias"]
        before = module[1].weight.clone()
        client.step(*examples(5))
        assert client.optimizer.update().dense().shape == (4 + 12 + 3,)
        assert torch.equal(module[1].weight, before)

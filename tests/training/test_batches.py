"""Poisson batches: secret draws at a public rate, and batches without examples in whatever shape a data set has."""

from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset, default_collate

import dpcomp as dp
from dpcomp.training.pytorch import PrivateOptimizer
from dpcomp.training.pytorch.batches import CollateOrEmpty, Ticketed, poisson_loader
from dpcomp.training.pytorch.draws import Place
from dpcomp.training.pytorch.inspection import hooks_on_inputs, private_model

torch.set_num_threads(1)
Pair = namedtuple("Pair", ["inputs", "name"])


class Listed(Dataset):
    def __init__(self, *examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return self.examples[i]


def inspected():
    loss = nn.functional.cross_entropy
    return private_model(nn.Linear(3, 2), loss, torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))


def client(rate: float | None, *, secret=None, steps: int = 1000) -> PrivateOptimizer:
    pipeline = dp.Pipeline(
        mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=None if rate is None else dp.Poisson(rate)
    )
    model = inspected()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    secret = dp.SecretSeed(5) if secret is None else secret
    optimizer = PrivateOptimizer(inner, model, pipeline, secret=secret, expected_batch_size=4)
    open_round(optimizer, steps=steps)
    return optimizer


def open_round(optimizer: PrivateOptimizer, *, version: int = 0, steps: int = 1000) -> None:
    memory = optimizer.pipeline.init_client(optimizer.layout, seed=dp.PublicSeed(version), client=0)
    optimizer.begin(memory, dp.Ledger().charge(optimizer.pipeline.cost, memory.address, steps=steps))


def numbered(n: int) -> TensorDataset:
    return TensorDataset(torch.arange(n))


def drawn(loader) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


class TestPoissonLoader:
    def test_draws_each_example_at_the_rate(self):
        batches = drawn(poisson_loader(numbered(200), client(0.1), steps=400))
        assert len(batches) == 400
        sizes = np.array([len(batch) for batch in batches])
        assert abs(sizes.mean() - 20) < 5 * np.sqrt(200 * 0.1 * 0.9 / 400)
        assert abs(sizes.var() - 18) < 6
        counts = np.bincount(np.concatenate(batches).astype(int), minlength=200)
        assert abs(counts.mean() - 40) < 2
        assert counts.min() > 10
        assert all(len(set(batch)) == len(batch) for batch in batches)

    def test_without_sampling_takes_everything(self):
        assert drawn(poisson_loader(numbered(7), client(None), steps=2)) == [list(range(7))] * 2

    def test_with_a_seed_draws_the_same_again(self):
        one, two, other = (
            poisson_loader(numbered(50), client(0.3, secret=dp.SecretSeed(n)), steps=3) for n in (1, 1, 2)
        )
        first = drawn(one)
        assert first == drawn(two)
        assert first != drawn(other)

    def test_never_draws_the_same_twice(self):
        optimizer = client(0.5)
        loader = poisson_loader(numbered(60), optimizer, steps=3)
        batches = drawn(loader) + drawn(loader)
        open_round(optimizer, version=1)
        batches += drawn(loader)
        assert len({tuple(batch) for batch in batches}) == 9

    def test_without_a_seed_is_secret(self):
        loaders = [poisson_loader(numbered(60), client(0.5, secret=dp.SecretSeed()), steps=1) for _ in range(2)]
        torch.manual_seed(0)
        first = drawn(loaders[0])
        torch.manual_seed(0)
        assert first != drawn(loaders[1])

    def test_asks_for_a_round(self):
        model = inspected()
        pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.5))
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = PrivateOptimizer(inner, model, pipeline, secret=dp.SecretSeed(0), expected_batch_size=4)
        with pytest.raises(dp.BudgetExhausted, match="no round is open"):
            next(iter(poisson_loader(numbered(5), optimizer, steps=1)))

    def test_trains_on_empty_batches(self):
        optimizer = client(0.001, steps=20)
        dataset = TensorDataset(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))
        model, steps = optimizer._model, []
        optimizer.attach_step_hook(lambda o: steps.append(float(o.params[0].grad.norm())))
        for inputs, targets in poisson_loader(dataset, optimizer, steps=20):
            with hooks_on_inputs():
                nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        assert len(steps) == 20
        assert all(np.isfinite(norm) and norm > 0 for norm in steps)


class Store(Dataset):
    """Examples of a client, of which some come and go."""

    def __init__(self, n: int):
        self.items = [(torch.ones(3), 0)] * n

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class TestADataSetOfAnotherLength:
    """One of ten examples left of a thousand was in a batch of Poisson 0.05 several times."""

    @pytest.mark.parametrize("now", [0, 9, 11])
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("rate", [0.5, 1e-9])
    def test_is_refused_before_a_release(self, now, workers, rate):
        optimizer, store = client(rate), Store(10)
        loader = poisson_loader(store, optimizer, steps=3, num_workers=workers)
        store.items = [(torch.ones(3), 0)] * now
        with pytest.raises(dp.NotPrivate, match=rf"has {now} examples, and had 10.*Call make_private again"):
            next(iter(loader))

    def test_is_refused_in_the_middle_of_a_pass(self):
        optimizer, store = client(0.5), Store(10)
        batches = iter(poisson_loader(store, optimizer, steps=3))
        next(batches)
        store.items.pop()
        with pytest.raises(dp.NotPrivate, match="has 9 examples"):
            next(batches)

    def test_is_refused_in_a_worker(self):
        ticketed = Ticketed(Store(10), None, Place())
        ticketed.dataset.items.pop()
        with pytest.raises(dp.NotPrivate, match="has 9 examples"):
            ticketed[12]


class TestAnEmptyBatch:
    def empty(self, *examples):
        return CollateOrEmpty(Listed(*examples), default_collate)([])

    def test_has_tensors_of_length_zero(self):
        inputs, target, weight = self.empty((torch.ones(2, 3), 4, np.float32(0.5)))
        assert inputs.shape == (0, 2, 3)
        assert (target.shape, target.dtype) == ((0,), torch.int64)
        assert weight.shape == (0,)

    def test_of_dictionaries(self):
        batch = self.empty(OrderedDict(x=torch.ones(3), more={"y": 1, "text": "secret"}))
        assert batch["x"].shape == (0, 3)
        assert batch["more"]["y"].shape == (0,)
        assert list(batch["more"]["text"]) == []

    def test_of_strings_and_bytes(self):
        inputs, text, raw = self.empty((torch.ones(3), "secret", b"secret"))
        assert inputs.shape == (0, 3)
        assert (list(text), list(raw)) == ([], [])
        assert list(self.empty("secret")) == []

    def test_of_nested_and_named_tuples(self):
        batch = self.empty(Pair(inputs=(torch.ones(3), [torch.ones(2), 1]), name="secret"))
        assert isinstance(batch, Pair)
        assert batch.inputs[0].shape == (0, 3)
        assert batch.inputs[1][0].shape == (0, 2)
        assert list(batch.name) == []

    def test_of_nothing_at_all(self):
        assert list(self.empty(())) == []

    def test_otherwise_collates_as_torch_does(self):
        batch = CollateOrEmpty(Listed(), default_collate)([(torch.ones(3), "a"), (torch.zeros(3), "b")])
        assert torch.equal(batch[0], torch.tensor([[1.0] * 3, [0.0] * 3]))
        assert list(batch[1]) == ["a", "b"]

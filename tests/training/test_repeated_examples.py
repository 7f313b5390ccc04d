"""Data sets in which one example is behind several items, which would move a sum by several clip norms."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset, TensorDataset, random_split

import dpcomp as dp
from dpcomp.simulation import simulate
from dpcomp.training.pytorch import PyTorch, make_private
from dpcomp.training.pytorch.checks.repeated_examples import refuse_repeated_examples

torch.set_num_threads(1)
N = 20
FEATURES, TARGETS = torch.randn((N, 4), generator=torch.Generator().manual_seed(0)), torch.arange(N) % 2


def some(start: int = 0, stop: int = N) -> TensorDataset:
    return TensorDataset(FEATURES[start:stop], TARGETS[start:stop])


class Own(Dataset):
    """A data set of a user's own class."""

    def __init__(self, n: int = N):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return FEATURES[i], TARGETS[i]


class OwnSubset(Subset):
    """A Subset that augments."""

    def __getitem__(self, i):
        features, target = super().__getitem__(i)
        return features + 1, target

    def __getitems__(self, positions):
        return [self[i] for i in positions]


class Keyed(Dataset):
    """Examples by (group, number), or by other keys."""

    def __len__(self):
        return N

    def __getitem__(self, key):
        return FEATURES[hash(key) % N], 0


class Longer(Subset):
    """A Subset that says it has each example twice."""

    def __len__(self):
        return 2 * len(self.indices)

    def __getitem__(self, i):
        return super().__getitem__(i % len(self.indices))

    def __getitems__(self, positions):
        return [self[i] for i in positions]


class LongerConcatenation(ConcatDataset):
    """A concatenation that says it has each example twice."""

    def __len__(self):
        return 2 * super().__len__()

    def __getitem__(self, i):
        return super().__getitem__(i % super().__len__())


class LongerStack(StackDataset):
    """A stack that says it has each example twice."""

    def __len__(self):
        return 2 * super().__len__()

    def __getitem__(self, i):
        return super().__getitem__(i % super().__len__())


class Shorter(Subset):
    """A Subset of fewer items than it has indices."""

    def __len__(self):
        return 2


def twice():
    data = some()
    return ConcatDataset([data, Own(), data])


REPEATED = {
    "oversampled": lambda: Subset(some(), [*range(N), *[3] * 30]),
    "of an own class": lambda: Subset(Own(), [0, 1, 2, 1]),
    "in an own Subset": lambda: OwnSubset(Own(), [0, 1, 2, 1]),
    "as a tensor": lambda: Subset(some(), torch.tensor([4, 5, 4])),
    "from the end": lambda: Subset(some(), [0, 5, -N]),
    "from the end of a concatenation": lambda: Subset(ConcatDataset([some(0, 10), some(10)]), [19, -1, 3]),
    "by tuples": lambda: Subset(Keyed(), [(0, 1), (0, 2), (0, 1)]),
    "by tuples, nested": lambda: Subset(Subset(Keyed(), [(0, 1), (0, 2), (0, 1)]), [2, 0]),
    "by keys of several types": lambda: Subset(Keyed(), [None, (3,), (0, 1), None]),
    "twice": lambda: ConcatDataset([data := some(), data]),
    "twice, with another between": twice,
    "ten times": lambda: ConcatDataset([some()] * 10),
    "the same tensors twice": lambda: ConcatDataset(
        [TensorDataset(FEATURES, TARGETS), TensorDataset(FEATURES, TARGETS)]
    ),
    "the same tensors by keys": lambda: ConcatDataset(
        [Subset(TensorDataset(FEATURES, TARGETS), [(0,), (1,)]), Subset(TensorDataset(FEATURES, TARGETS), [(2,), (1,)])]
    ),
    "the same inputs with two targets": lambda: ConcatDataset(
        [TensorDataset(FEATURES, TARGETS), TensorDataset(FEATURES, 1 - TARGETS)]
    ),
    "overlapping slices": lambda: ConcatDataset([some(0, 12), some(11)]),
    "a slice by steps beside a slice": lambda: ConcatDataset(
        [TensorDataset(FEATURES[::2], TARGETS[::2]), some(13, 15)]
    ),
    "a view": lambda: ConcatDataset([some(), TensorDataset(FEATURES.unflatten(1, (2, 2)), TARGETS)]),
    "overlapping parts": lambda: ConcatDataset([Subset(data := some(), range(12)), Subset(data, range(11, N))]),
    "a whole beside a part": lambda: ConcatDataset([data := some(), Subset(data, [3])]),
    "nested deep": lambda: Subset(
        ConcatDataset([Subset(data := Own(), [0, 1]), ConcatDataset([Own(), data])]), [0, 23, 22]
    ),
    "stacked in another order": lambda: StackDataset(data := some(), Subset(data, range(N)[::-1])),
    "stacked by name": lambda: StackDataset(one=(data := some()), other=Subset(data, [*range(1, N), 0])),
}
HONEST = {
    "plain": some,
    "of an own class": Own,
    "a part": lambda: Subset(some(), range(3, 9)),
    "shuffled": lambda: Subset(some(), np.random.default_rng(0).permutation(N)),
    "as a tensor": lambda: Subset(Own(), torch.randperm(N)),
    "by tuples": lambda: Subset(Keyed(), [(0, 1), (0, 2), (1, 1)]),
    "by tuples, nested": lambda: Subset(Subset(Keyed(), [(0, 1), (0, 2), (1, 1)]), [2, 0]),
    "by keys of several types": lambda: Subset(Keyed(), [None, (0,), (0, 1), "a"]),
    "by tuples of two columns": lambda: Subset(StackDataset(Keyed(), Keyed()), [(0, 1), (0, 2)]),
    "a shorter own Subset": lambda: Shorter(some(), [4, 5, 5]),
    "split and joined again": lambda: ConcatDataset(random_split(some(), [5, 15])),
    "two sources": lambda: ConcatDataset([some(), Own(), Own()]),
    "equal values of two data sets": lambda: ConcatDataset(
        [some(0, 5), TensorDataset(FEATURES[:5].clone(), TARGETS[:5])]
    ),
    "a part of two sources": lambda: Subset(ConcatDataset([some(), Own()]), [0, N, 3, N + 3, -1]),
    "two columns": lambda: StackDataset(some(), Own()),
    "a column twice in one item": lambda: StackDataset(data := some(), data),
    "slices that take turns": lambda: ConcatDataset(
        [TensorDataset(FEATURES[::2], TARGETS[::2]), TensorDataset(FEATURES[1::2], TARGETS[1::2])]
    ),
    "one set of targets": lambda: ConcatDataset([TensorDataset(part, TARGETS[:10]) for part in FEATURES.split(10)]),
    "inputs that are alike": lambda: TensorDataset(torch.zeros(1, 4).expand(N, 4), TARGETS),
    "none": lambda: Subset(some(), []),
    "a list": lambda: [(FEATURES[0], 1)] * 5,
}


@pytest.mark.parametrize("name", REPEATED)
def test_with_repeated_examples_is_refused(name):
    with pytest.raises(dp.NotPrivate, match=r"items \d+ and \d+ of the data set are both example .+ of a"):
        refuse_repeated_examples(REPEATED[name]())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: Longer(some(), [4, 5]), "a Longer is asked for its item 3, and holds 2"),
        (lambda: Subset(Longer(some(), [4, 5]), [0, 2]), "a Longer is asked for its item 2, and holds 2"),
        (lambda: LongerConcatenation([some()]), "a LongerConcatenation is asked for its item 39, and holds 20"),
        (lambda: LongerStack(some(), Own()), "a LongerStack is asked for its item 39, and holds 20"),
        (lambda: Subset(Keyed(), [[0, 1], [1, 2]]), "index 0 of a Subset is a list, which cannot be held"),
        (lambda: Subset(Subset(Keyed(), [0, 0]), ["a", "b"]), "a Subset is asked for the item .*no whole number"),
    ],
)
def test_whose_items_cannot_be_traced_to_examples_is_refused(data, words):
    with pytest.raises(dp.NotPrivate, match=words):
        refuse_repeated_examples(data())


@pytest.mark.parametrize("name", HONEST)
def test_with_each_example_once_is_accepted(name):
    refuse_repeated_examples(HONEST[name]())


def private(data):
    network = nn.Linear(4, 2)
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.5))
    _, optimizer, loader = make_private(
        network,
        torch.optim.SGD(network.parameters(), lr=0.1),
        data,
        pipeline,
        loss=nn.functional.cross_entropy,
        expected_batch_size=10,
        steps=2,
    )
    memory, ledger = pipeline.init_client(optimizer.layout, dp.PublicSeed(0), client=0), dp.Ledger()
    optimizer.begin(memory, ledger.charge(pipeline.cost, memory.address, steps=2))
    return loader, ledger


class TestMakePrivate:
    def test_refuses_repeated_examples(self):
        with pytest.raises(dp.NotPrivate, match="are both example 3"):
            private(REPEATED["oversampled"]())

    def test_refuses_indices_that_were_written_since(self):
        data = Subset(some(), list(range(8)))
        loader, _ = private(data)
        assert len(list(loader)) == 2
        data.indices[5] = 6
        with pytest.raises(dp.NotPrivate, match="the items 5 and 6"):
            next(iter(loader))

    def test_says_what_is_assumed_of_other_data_sets(self):
        _, ledger = private(HONEST["split and joined again"]())
        clause = "an example is one item of the data, and each item was made from its example alone"
        assert clause in ledger.guarantee(1e-5).assumptions


class Task:
    name, population = "task", N

    def __init__(self, data):
        self.data = data

    def train(self):
        return self.data

    def test(self):
        return FEATURES, TARGETS

    def model(self, seed):
        return nn.Linear(4, 2)

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)


class TestTheTrainer:
    @staticmethod
    def run(data, unit):
        trust = {"example": "nobody", "client": "server"}[unit]
        pipeline = dp.Pipeline(
            mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(1.0), unit=unit, trust=trust
        )
        return simulate(Task(data), pipeline, clients=2, rounds=1, trainer=PyTorch(), progress=False)

    def test_refuses_repeated_examples_of_examples_that_are_units(self):
        with pytest.raises(dp.NotPrivate, match="are both example"):
            self.run(REPEATED["oversampled"](), "example")

    @pytest.mark.parametrize(("data", "unit"), [("oversampled", "client"), ("a part of two sources", "example")])
    def test_accepts_the_rest(self, data, unit):
        clause = "an example is one item of the data, and each item was made from its example alone"
        run = self.run((REPEATED | HONEST)[data](), unit)
        assert (clause in run.guarantee.assumptions) == (unit == "example")

"""Data sets in which one example is behind several items, which would move a sum by several clip norms."""

import operator
import tempfile
import warnings

import numpy as np
import pandas as pd
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
SPARSE = torch.eye(4).to_sparse()
OTHER_NOW = r"item \d+ of the data set is another example than when the pass began"


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


class LongerTensors(TensorDataset):
    """Tensors that say that they have each example twice."""

    def __len__(self):
        return 2 * super().__len__()

    def __getitem__(self, i):
        return super().__getitem__(i % super().__len__())


class Augmented(TensorDataset):
    """A TensorDataset that augments."""

    def __getitem__(self, i):
        features, target = super().__getitem__(i)
        return features + 1, target


class Chosen(TensorDataset):
    """A TensorDataset of which some rows are chosen."""

    def __init__(self, chosen, *tensors):
        super().__init__(*tensors)
        self.chosen = chosen

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, i):
        return super().__getitem__(self.chosen[i])


class Shorter(Subset):
    """A Subset of fewer items than it has indices."""

    def __len__(self):
        return 2


def together(*inputs, targets=TARGETS):
    """Return a data set for each tensor or array of inputs, one after the other."""
    inputs = [torch.as_tensor(part) for part in inputs]
    return ConcatDataset([TensorDataset(part, targets[: len(part)]) for part in inputs])


def array():
    return np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)


def in_a_file():
    with tempfile.TemporaryFile() as file:
        file.write(array().tobytes())
        file.flush()
        return np.memmap(file, dtype=np.float32, mode="r+", shape=(N, 4))


def images():
    return torch.randn(N, 3, 8, 8)


def nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such tensors are a prototype
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def turned():
    """Return examples in the columns of memory, as a table of columns gives them."""
    return torch.randn(4, N).t()


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
    "the same inputs with two targets": lambda: ConcatDataset(
        [TensorDataset(FEATURES, TARGETS), TensorDataset(FEATURES, 1 - TARGETS)]
    ),
    "overlapping slices": lambda: ConcatDataset([some(0, 12), some(11)]),
    "a slice by steps beside a slice": lambda: ConcatDataset(
        [TensorDataset(FEATURES[::2], TARGETS[::2]), some(13, 15)]
    ),
    "a view": lambda: ConcatDataset([some(), TensorDataset(FEATURES.unflatten(1, (2, 2)), TARGETS)]),
    "overlapping slices of an array": lambda: together(x := array(), x[8:]),
    "overlapping slices of a part of an array": lambda: together((x := array())[2:12], x[11:]),
    "overlapping slices of a file": lambda: together((x := in_a_file())[:12], x[11:]),
    "a buffer": lambda: together(x := array(), torch.frombuffer(x, dtype=torch.float32).view(N, 4)[3:5]),
    "of another library": lambda: together(FEATURES, torch.from_dlpack(FEATURES.numpy()[3:])),
    "columns": lambda: together(FEATURES[:, 1:], FEATURES[:, :3]),
    "columns of an array": lambda: together((x := array())[:, 1:], x[:, :3]),
    "crops": lambda: together((x := images())[..., 1:, 1:], x[..., :-1, :-1]),
    "crops in another layout": lambda: together(
        (x := images().contiguous(memory_format=torch.channels_last))[..., 1:], x[..., :-1]
    ),
    "columns of columns": lambda: together((x := turned())[:, 1:], x[:, :3]),
    "overlapping slices of columns": lambda: together((x := turned())[:12], x[11:]),
    "steps of columns beside slices": lambda: together((x := turned())[::2], x[13:15]),
    "a column beside all": lambda: together((x := turned()), x[:, :1]),
    "series in the middle axis": lambda: together((x := torch.randn(5, N, 4).transpose(0, 1))[4:, :, 1:], x[:9, 1:]),
    "one example in place of many": lambda: together(FEATURES, FEATURES[3:4].expand(5, 4)),
    "one example, expanded": lambda: TensorDataset(FEATURES[3:4].expand(5, 4), TARGETS[:5]),
    "one example, expanded alone": lambda: TensorDataset(FEATURES[3:4].expand(5, 4)),
    "one example, expanded in a Subset": lambda: Subset(TensorDataset(FEATURES[3:4].expand(5, 4)), [1, 4]),
    "inputs that are alike, with the targets of others": lambda: ConcatDataset(
        [TensorDataset(torch.zeros(1, 4).expand(N, 4), TARGETS) for _ in range(2)]
    ),
    "pairs beside singles": lambda: together(FEATURES.view(10, 2, 4), FEATURES[:, None].expand(N, 2, 4)),
    "other targets, which are larger": lambda: ConcatDataset(
        [TensorDataset(FEATURES, TARGETS), TensorDataset(FEATURES, torch.randn(N, 9))]
    ),
    "other masks": lambda: ConcatDataset([TensorDataset(FEATURES, torch.randn(N, 9), TARGETS) for _ in range(2)]),
    "other masks, in front": lambda: ConcatDataset(
        [TensorDataset(torch.randn(N, 9), FEATURES, TARGETS) for _ in range(2)]
    ),
    "two inputs that change places": lambda: ConcatDataset(
        [TensorDataset(FEATURES, x := torch.randn(N, 4), TARGETS), TensorDataset(x, FEATURES, TARGETS)]
    ),
    "an own class that inherits": lambda: ConcatDataset([some(), Augmented(FEATURES, TARGETS)]),
    "an own class that inherits, twice": lambda: ConcatDataset([Augmented(FEATURES, TARGETS) for _ in range(2)]),
    "stacked columns": lambda: ConcatDataset(
        [StackDataset(TensorDataset(FEATURES[start:]), TensorDataset(TARGETS[start:])) for start in (0, 5)]
    ),
    "one set of sparse tensors": lambda: ConcatDataset(
        [TensorDataset(x := torch.eye(4).to_sparse()), TensorDataset(x)]
    ),
    "windows": lambda: together((x := torch.randn(50).unfold(0, 5, 1))[:20], x[19:30]),
    "windows beside parts": lambda: together((x := torch.randn(50)).unfold(0, 5, 1)[:20], x.view(10, 5)),
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
    "by words and numbers": lambda: Subset(Keyed(), ["a", 1, "b", 2, "c", 3, 4, 5]),
    "in a series of another library": lambda: Subset(some(), pd.Series(range(8)).sample(frac=1.0, random_state=0)),
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
    "one set of larger targets": lambda: together(*FEATURES.split(10), targets=torch.eye(10)),
    "a larger context": lambda: together(*FEATURES.split(10), targets=torch.randn(10, 50)),
    "numbers of domains": lambda: ConcatDataset(
        [TensorDataset(part, (torch.arange(20) // 10)[:10], TARGETS[:10]) for part in FEATURES.split(10)]
    ),
    "a context for all": lambda: ConcatDataset(
        [TensorDataset(torch.randn(10, 4), FEATURES[:1].expand(10, 4), TARGETS[:10]) for _ in range(2)]
    ),
    "halves of an array": lambda: together((x := array())[:10], x[10:]),
    "halves of a file": lambda: together((x := in_a_file())[:10], x[10:]),
    "rows by steps of an array": lambda: together((x := array())[::2], x[1::2]),
    "fields of records": lambda: together(*torch.randn(N, 2, 4).unbind(1)),
    "examples in columns": lambda: TensorDataset(turned(), TARGETS),
    "halves of examples in columns": lambda: together(*turned().split(10)),
    "steps of examples in columns": lambda: together((x := turned())[::2], x[1::2]),
    "two arrays of columns": lambda: together(turned(), turned()),
    "halves of series in the middle axis": lambda: together(*torch.randn(5, N, 4).transpose(0, 1).split(10)),
    "halves of images in another layout": lambda: together(
        *images().contiguous(memory_format=torch.channels_last).split(10)
    ),
    "windows": lambda: TensorDataset(torch.randn(50).unfold(0, 5, 1)),
    "windows, by slices": lambda: together(*torch.randn(24).unfold(0, 5, 1).split(10)),
    "windows of two series": lambda: together(*(row.unfold(0, 5, 1) for row in torch.randn(2, 24))),
    "windows of series of several numbers": lambda: together(*torch.randn(24, 3).unfold(0, 5, 1).split(10)),
    "a series and its next step": lambda: TensorDataset(FEATURES[:-1], FEATURES[1:]),
    "series and their next steps, split": lambda: ConcatDataset(
        random_split(TensorDataset(FEATURES[:-2], FEATURES[1:-1], FEATURES[2:]), [8, 10])
    ),
    "an own class that inherits": lambda: Augmented(FEATURES, TARGETS),
    "own classes that inherit and choose": lambda: ConcatDataset(
        [Chosen(range(start, start + 5), FEATURES, TARGETS) for start in (0, 5)]
    ),
    "sparse": lambda: ConcatDataset([TensorDataset(torch.eye(4).to_sparse()), some()]),
    "sparse, alone": lambda: TensorDataset(torch.eye(4).to_sparse(), TARGETS[:4]),
    "nested": lambda: ConcatDataset([TensorDataset(nested()), some()]),
    "empty": lambda: ConcatDataset([TensorDataset(torch.empty(0, 4)), some()]),
    "without numbers": lambda: TensorDataset(torch.empty(N, 0), TARGETS),
    "numbers alone": lambda: TensorDataset(torch.arange(N)),
    "targets that are alike": lambda: together(*FEATURES.split(10), targets=torch.zeros(1).expand(10)),
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
        (lambda: LongerTensors(FEATURES, TARGETS), "a LongerTensors is asked for its item 39, and holds 20"),
        (
            lambda: Subset(some(), [0, N]),
            "a TensorDataset is asked for its item 20, and holds 20: no example",
        ),
        (
            lambda: ConcatDataset([Subset(some(), [(0,), (1,)]), Subset(some(), [(2,), (1,)])]),
            r"a TensorDataset is asked for the item \(0,\), which is no whole number",
        ),
        (lambda: Subset(some(), [(3,), (3, ...)]), "a TensorDataset is asked for the item .*no whole number"),
        (lambda: Subset(some(), [True, False]), "a TensorDataset is asked for the item .*no whole number"),
        (lambda: Subset(Augmented(FEATURES, TARGETS), [(3,)]), "a Augmented is asked for the item .*no whole number"),
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


class Writes(Subset):
    """A Subset that writes its indices as it gives an example."""

    def __getitem__(self, i):
        self.indices[:] = self.indices[::-1]
        return super().__getitem__(i)

    def __getitems__(self, positions):
        return [self[i] for i in positions]


def private(data, *, steps=2, num_workers=0):
    network = nn.Linear(4, 2)
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.5))
    _, optimizer, loader = make_private(
        network,
        torch.optim.SGD(network.parameters(), lr=0.1),
        data,
        pipeline,
        loss=nn.functional.cross_entropy,
        expected_batch_size=10,
        steps=steps,
        num_workers=num_workers,
    )
    memory, ledger = pipeline.init_client(optimizer.layout, dp.PublicSeed(0), client=0), dp.Ledger()
    optimizer.begin(memory, ledger.charge(pipeline.cost, memory.address, steps=steps))
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

    @staticmethod
    def written_after_each(loader, write):
        for _ in loader:
            write()

    @pytest.mark.parametrize("made", [list, np.array, torch.tensor])
    @pytest.mark.parametrize("nested", [False, True])
    def test_refuses_indices_that_are_written_in_a_pass(self, nested, made):
        data = Subset(Own(), made(range(8)))
        loader, _ = private(Subset(ConcatDataset([some(0, 4), data]), range(2, 12)) if nested else data, steps=9)
        with pytest.raises(dp.NotPrivate, match=OTHER_NOW):
            self.written_after_each(loader, lambda: operator.setitem(data.indices, slice(None), made([3] * 8)))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_refuses_indices_that_a_data_set_writes(self, workers):
        loader, _ = private(Writes(Own(), list(range(8))), steps=9, num_workers=workers)
        with pytest.raises(dp.NotPrivate, match=OTHER_NOW):
            list(loader)

    @pytest.mark.parametrize("part", ["tensors", "datasets"])
    def test_refuses_parts_that_are_exchanged_in_a_pass(self, part):
        data = some() if part == "tensors" else ConcatDataset([some(0, 10), some(10)])
        other = {"tensors": (FEATURES[3:4].expand(N, 4), TARGETS), "datasets": [some(0, 10), some(0, 10)]}[part]
        loader, _ = private(data, steps=9)
        with pytest.raises(dp.NotPrivate, match=OTHER_NOW):
            self.written_after_each(loader, lambda: setattr(data, part, other))

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize(
        "name",
        ["split and joined again", "a part of two sources", "by tuples, nested", "plain", "by words and numbers"],
    )
    def test_takes_other_indices_between_passes(self, name, workers):
        data = HONEST[name]()
        loader, _ = private(data, num_workers=workers)
        for _ in range(2):
            assert len(list(loader)) == 2
            if isinstance(data, Subset):
                data.indices = data.indices[::-1]

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

"""A row of a batch is what collate_fn makes of its example alone, at the door and in every batch."""

import copy

import numpy as np
import pytest
import torch
from opacus.layers import DPGRU
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, default_collate

import dpcomp as dp
from dpcomp.training.pytorch import Isolated, Opacus
from tests.training.test_make_private import Script

torch.set_num_threads(1)
ENGINES = pytest.mark.parametrize(
    "engine", [Isolated(), pytest.param(Opacus(), marks=pytest.mark.slow)], ids=["Isolated", "Opacus"]
)
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook", "ignore:.*degrees of freedom")
TIES = r"collate_fn.*Mask what is padded.*__getitem__"


class Sentences(Dataset):
    """Examples of 2 to 7 steps; `long` of them, in the middle of a large data set, have 30."""

    def __init__(self, n: int = 40, *, long: int = 0, form: str = "pair"):
        self.lengths = [2 + i % 6 for i in range(n)]
        self.lengths[n // 2 + 1 : n // 2 + 1 + long] = [30] * long
        self.form = form

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        steps = torch.randn(self.lengths[i], 4, generator=torch.Generator().manual_seed(i))
        return (steps, i % 3) if self.form == "pair" else {"steps": steps, "labels": i % 3}


def padded(examples):
    return pad_sequence([steps for steps, _ in examples], batch_first=True), torch.tensor([y for _, y in examples])


def with_lengths(examples):
    steps, targets = padded(examples)
    return steps, torch.tensor([len(each) for each, _ in examples]), targets


def with_mask(examples):
    """As a collator of Hugging Face's, which takes the labels out of its examples."""
    labels = torch.tensor([example.pop("labels") for example in examples])
    steps = [example["steps"] for example in examples]
    mask = pad_sequence([torch.ones(len(each)) for each in steps], batch_first=True)
    return {"steps": pad_sequence(steps, batch_first=True), "mask": mask, "labels": labels}


class MeanOverTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, steps):
        return self.layer(steps.mean(dim=1))


class MaskedMean(MeanOverTime):
    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, steps, mask):
        return self.layer(self.dropout((steps * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)))


class MeanByLength(MeanOverTime):
    def forward(self, steps, lengths):
        mask = torch.arange(steps.shape[1]) < lengths[:, None]
        return self.layer((steps * mask[:, :, None]).sum(dim=1) / lengths[:, None])


class MeanInBlocks(MeanByLength):
    """Adds from the end on, along an axis that lies together in memory, in an order that depends on the padding."""

    def forward(self, steps, lengths):
        mask = torch.arange(steps.shape[1]) < lengths[:, None]
        values = (steps * mask[:, :, None]).flip(1).transpose(1, 2).contiguous()
        return self.layer(values.sum(dim=2) / lengths[:, None])


class LastOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.layer = DPGRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, steps, lengths=None):
        outputs = self.cells(steps)[0]
        if lengths is None:
            return self.layer(outputs[:, -1])
        return self.layer(outputs.gather(1, (lengths - 1).clamp(0)[:, None, None].expand(-1, 1, 5))[:, 0])


class Vectors(Dataset):
    def __init__(self, n: int = 40, shift: float = 0.0):
        self.n, self.shift = n, shift

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.randn(4, generator=torch.Generator().manual_seed(i)) + self.shift, i % 3


def list_of(examples):
    return default_collate(examples)


def mixed(examples):
    inputs, targets = default_collate(examples)
    return 0.5 * inputs + 0.5 * inputs.roll(1, 0), targets


def standardised(examples):
    inputs, targets = default_collate(examples)
    return (inputs - inputs.mean(0)) / (inputs.std(0) + 1e-3), targets


def centred(examples):
    inputs, targets = default_collate(examples)
    return inputs - inputs.mean(0), targets


def scaled_to_the_largest(examples):
    inputs, targets = default_collate(examples)
    return inputs, inputs.abs().max().expand(len(inputs), 1), targets


def noised(examples):
    inputs, targets = default_collate(examples)
    return inputs + 0.1 * torch.randn_like(inputs), targets


def labels_mixed(examples):
    inputs, targets = default_collate(examples)
    return inputs, targets.roll(1, 0)


def twice(examples):
    return default_collate([*examples, *examples])


class Divided(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs, scale):
        return self.layer(inputs / scale)


TYING = {
    "padding under a mean": (MeanOverTime, Sentences, padded),
    "padding under the last output": (LastOutput, Sentences, padded),
    "one long example": (MeanOverTime, lambda: Sentences(400, long=1), padded),
    "mixup": (lambda: nn.Linear(4, 3), Vectors, mixed),
    "mixed labels": (lambda: nn.Linear(4, 3), Vectors, labels_mixed),
    "standardised": (lambda: nn.Linear(4, 3), Vectors, standardised),
    "centred": (lambda: nn.Linear(4, 3), Vectors, centred),
    "scaled": (Divided, Vectors, scaled_to_the_largest),
    "random": (lambda: nn.Linear(4, 3), Vectors, noised),
}
SEPARATE = {
    "masked mean": (MaskedMean, lambda: Sentences(form="dict"), with_mask),
    "masked mean with dropout": (lambda: MaskedMean(0.3), lambda: Sentences(form="dict"), with_mask),
    "mean by length": (MeanByLength, Sentences, with_lengths),
    "last output by length": (LastOutput, Sentences, with_lengths),
    "fixed size": (lambda: nn.Linear(4, 3), Vectors, list_of),
}


def loop(script: Script, loader) -> None:
    for batch in loader:
        if isinstance(batch, dict):
            targets, outputs = batch["labels"], script.model(steps=batch["steps"], mask=batch["mask"])
        else:
            *inputs, targets = batch
            outputs = script.model(*inputs)
        script.loss(outputs, targets).backward()
        script.optimizer.step()


def script(make, dataset, collate, engine, **arguments) -> Script:
    torch.manual_seed(0)
    return Script(make(), dataset, functional.cross_entropy, collate_fn=collate, engine=engine, **arguments)


@ENGINES
@pytest.mark.parametrize("name", TYING)
def test_what_ties_examples_is_refused_at_the_door(name, engine):
    make, dataset, collate = TYING[name]
    with pytest.raises(dp.NotPrivate, match=TIES):
        script(make, dataset(), collate, engine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-14, 1e-18])
@pytest.mark.parametrize("name", ["mixup", "centred", "padding under a mean"])
def test_what_ties_examples_is_refused_however_small_the_loss_is(name, scale, dtype):
    """A clip may have a norm of 1e-20, so no size of a gradient is nothing."""
    make, dataset, collate = TYING[name]
    with pytest.raises(dp.NotPrivate, match=TIES):
        Script(make().to(dtype), dataset(), scaled_loss(scale), collate_fn=of_dtype(collate, dtype), engine=Isolated())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-18])
def test_what_keeps_examples_apart_passes_where_its_gradients_are_made_of_rounding(scale, dtype):
    """The outputs are the targets, and only padding makes their last bits differ."""
    torch.manual_seed(0)
    module = MeanInBlocks().to(dtype)

    def fitted(examples):
        steps, lengths, _ = of_dtype(with_lengths, dtype)(examples)
        with torch.no_grad():
            return (
                steps,
                lengths,
                torch.cat([module(x[None, :n], n[None]) for x, n in zip(steps, lengths, strict=True)]),
            )

    def squares(outputs, targets):
        return scale * (outputs - targets).square().mean()

    data = [(torch.randn(n, 4), 0) for n in (2, 3, 300, 17, 5, 90)]
    Script(module, data, squares, collate_fn=fitted, engine=Isolated())


def scaled_loss(scale):
    return lambda outputs, targets: scale * functional.cross_entropy(outputs, targets)


def of_dtype(collate, dtype):
    def converted(examples):
        inputs, *others = collate(examples)
        return inputs.to(dtype), *others

    return converted


def test_more_rows_than_examples_are_refused_at_the_door():
    with pytest.raises(dp.NotPrivate, match="collate_fn gives 4 rows for 2 examples"):
        script(lambda: nn.Linear(4, 3), Vectors(), twice, Isolated())


@ENGINES
@pytest.mark.parametrize(
    ("name", "workers"),
    [
        *((name, 0) for name in SEPARATE),
        ("masked mean", 2),
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name in SEPARATE if name != "masked mean"),
    ],
)
def test_what_keeps_examples_apart_trains(name, workers, engine):
    make, dataset, collate = SEPARATE[name]
    made = script(make, dataset(), collate, engine, num_workers=workers, rate=0.05, steps=8)
    loop(made, made.loader)
    assert made.permit.used == 8


@ENGINES
@pytest.mark.parametrize("name", ["masked mean", "last output by length"])
def test_batch_memory_manager_cuts_batches_of_their_own_length(name, engine):
    make, dataset, collate = SEPARATE[name]
    moves = []
    for physical in (None, 3):
        made = script(make, dataset(), collate, engine)
        if physical is None:
            loop(made, made.loader)
        else:
            with BatchMemoryManager(
                data_loader=made.loader, max_physical_batch_size=physical, optimizer=made.optimizer
            ) as cut:
                loop(made, cut)
        moves.append(made.optimizer.update().dense())
    np.testing.assert_allclose(*moves, rtol=1e-4, atol=1e-6)


class Later:
    """A collate function that behaves at the door and ties examples in training."""

    def __init__(self, tying, apart):
        self.tying, self.apart, self.open = tying, apart, False

    def __call__(self, examples):
        return self.tying(examples) if self.open else self.apart(examples)


LATER = {
    "mixup": (lambda: nn.Linear(4, 3), Vectors, mixed, default_collate),
    "standardised": (lambda: nn.Linear(4, 3), Vectors, standardised, default_collate),
    "mixed labels": (lambda: nn.Linear(4, 3), Vectors, labels_mixed, default_collate),
    "padding": (MeanOverTime, Sentences, padded, lambda examples: padded([(s[:2], y) for s, y in examples])),
}


@ENGINES
@pytest.mark.parametrize(
    ("workers", "physical"),
    [
        (0, None),
        (2, 5),
        pytest.param(0, 5, marks=pytest.mark.slow),
        pytest.param(2, None, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", LATER)
def test_what_ties_examples_is_refused_in_training_before_a_release(name, physical, workers, engine):
    make, dataset, tying, apart = LATER[name]
    collate = Later(tying, apart)
    # A row may be tied and the same by chance, such as that of the longest example.
    made = script(make, dataset(), collate, engine, num_workers=workers, rate=0.5, steps=30)
    collate.open, loader, released = True, made.loader, [copy.deepcopy(made.model.state_dict())]
    made.optimizer.attach_step_hook(lambda _: released.append(None))
    if physical is not None:
        loader = BatchMemoryManager(
            data_loader=loader, max_physical_batch_size=physical, optimizer=made.optimizer
        ).__enter__()
    with pytest.raises(dp.NotPrivate, match=TIES):
        loop(made, loader)
    assert made.permit.used == len(released) - 1 < 30
    if len(released) == 1:
        assert all(torch.equal(value, released[0][name]) for name, value in made.model.state_dict().items())


@ENGINES
def test_a_mask_that_the_script_leaves_out_is_refused_in_training(engine):
    class MaybeMasked(MaskedMean):
        def forward(self, steps, mask=None):
            return super().forward(steps, torch.ones(steps.shape[:2]) if mask is None else mask)

    made = script(MaybeMasked, Sentences(form="dict"), with_mask, engine, steps=30)
    with pytest.raises(dp.NotPrivate, match=r"argument 'mask' of the model is None, and was the inputs\['mask'\]"):
        loop(made, ([batch["steps"], batch["labels"]] for batch in made.loader))
    assert made.permit.used == 0


def test_a_batch_may_be_cast_and_reshaped_on_its_way_to_the_model():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, steps, lengths):
            steps, lengths = steps.reshape(len(steps), -1, 4).float(), lengths.flatten()
            mask = torch.arange(steps.shape[1]) < lengths[:, None]
            return self.layer((steps * mask[:, :, None]).sum(dim=1) / lengths[:, None])

    made = script(Flat, Sentences(), with_lengths, Isolated())
    for steps, lengths, targets in made.loader:
        made.loss(made.model(steps.double()[:, :, None, :], lengths[:, None]), targets).backward()
        made.optimizer.step()
    assert made.permit.used == 3


def test_which_example_is_tried_owes_nothing_to_seeds():
    tried = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        made = script(
            lambda: nn.Linear(4, 3), Vectors(), lambda examples: default_collate(examples), Isolated(), rate=1.0
        )
        mine = []
        for _ in made.loader:
            mine += [part.alone[0] for part in made.optimizer.draws._arrived.values()]
        tried.append(mine)
    assert tried[0] != tried[1]

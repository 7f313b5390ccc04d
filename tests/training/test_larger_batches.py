"""Batches larger than any that was tried: a tie of examples which begins there moves the sum by no more than the clip.

The sum of a batch is compared with that of the batch without its first example, whose place all others then leave.
"""

import logging

import numpy as np
import pytest
import torch
from torch import nn

import dpcomp as dp
from dpcomp.training.pytorch import BookKeeping
from dpcomp.training.pytorch.inspection import private_model
from dpcomp.training.pytorch.rows import batch_sizes
from dpcomp.training.pytorch.rows.batch_sizes import BatchSizes
from dpcomp.training.pytorch.rows.book_keeping import engine as book_keeping
from dpcomp.training.pytorch.rows.book_keeping.engine import BookedRows
from tests.training.private_client import Client, clean, examples
from tests.training.test_refused_models import DispatchMode, FunctionMode

N, MOST = 101, 100


class Limited(nn.Module):
    """A linear layer, and a function of its outputs that is another for large batches."""

    def __init__(self, limit):
        super().__init__()
        self.layer, self.limit = nn.Linear(6, 3), limit

    def forward(self, x):
        return self.limit(self.layer(x))


def dropped(h):
    """The first rows, and zeros for the others, as behind an expert's capacity."""
    k = min(len(h), MOST)
    return torch.cat([h[:k], h[k:] * 0.0])


class LimitedBackward(torch.autograd.Function):
    """The identity, whose backward pass leaves out rows."""

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0] * (torch.arange(len(gradients[0])) < MOST)[:, None]


LIMITS = {
    "capacity": dropped,
    "a decision by length": lambda h: h if len(h) <= MOST else torch.cat([h[:-1], h[-1:] * 0]),
    "a place": lambda h: h * (torch.arange(len(h)) < MOST)[:, None] if len(h) > MOST else h,
    "a running number": lambda h: h * (h.new_ones(len(h), 1).cumsum(0) <= MOST) if len(h) > MOST else h,
    "neighbours": lambda h: h if len(h) <= MOST else torch.cat([h[:-1], h[-1:] + h[-2:-1]]),
    "a part in place": lambda h: h if len(h) <= MOST else h.clone().index_fill_(0, torch.tensor([len(h) - 1]), 0.0),
    "a backward pass": lambda h: h if len(h) <= MOST else LimitedBackward.apply(h),
}


def many(n=N):
    inputs, targets = examples(n)
    inputs[-1], targets[-1] = 3 * inputs[-1], (targets[-1] + 1) % 3
    return inputs, targets


def stepped(module, inputs, targets, **options):
    client = Client(clean(0.3), module, examples(33), engine="auto", divisor=1.0, **options)
    client.step(inputs, targets)
    return client, client.gradients[0].numpy()


def network(limit):
    torch.manual_seed(0)
    return Limited(limit)


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_on_the_batch_moves_the_sum_by_no_more_than_the_clip(name, caplog):
    inputs, targets = many()
    with caplog.at_level(logging.WARNING, logger="dpcomp"):
        client, with_it = stepped(network(LIMITS[name]), inputs, targets)
    if isinstance(client.model.engine, BookedRows):  # not refused at the door
        assert "batches of 101 examples and more take each example's gradient alone" in caplog.text
    _, without = stepped(network(LIMITS[name]), inputs[1:], targets[1:])
    assert np.linalg.norm(with_it - without) <= 0.3 * (1 + 1e-4)


def test_a_loss_that_leaves_out_what_lies_past_a_place_is_refused():
    def loss(outputs, targets):
        each = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return each[:MOST].sum() / len(each)

    inputs, targets = many()
    stepped(nn.Linear(6, 3), inputs[:MOST], targets[:MOST], loss=loss)
    with pytest.raises(dp.NotPrivate, match="the loss of a batch of 101 is not the mean of the losses"):
        stepped(nn.Linear(6, 3), inputs, targets, loss=loss)


def test_a_loss_that_no_map_takes_is_looked_at_one_by_one():
    def loss(outputs, targets):
        each = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return each[:MOST].sum() / len(each) + 0 * float(each.detach().sum().item())

    inputs, targets = many()
    stepped(nn.Linear(6, 3), inputs[:MOST], targets[:MOST], loss=loss)
    with pytest.raises(dp.NotPrivate, match="the loss of a batch of 101 is not the mean of the losses"):
        stepped(nn.Linear(6, 3), inputs, targets, loss=loss)


calls: list[int] = []  # a global, since what a loss keeps of a pass is refused


def hinge(outputs, targets):
    calls.append(len(outputs))
    return (1 - outputs.square().mean(dim=1)).clamp(min=0).mean()


def test_examples_whose_loss_is_flat_are_not_looked_at_one_by_one():
    client = Client(clean(0.3), nn.Linear(6, 3), examples(33), engine=BookKeeping(), divisor=1.0, loss=hinge)
    inputs, targets = many()
    inputs *= 100
    client.draw((inputs, targets))
    client.backward(inputs, targets)
    calls.clear()
    client.optimizer.step()
    assert len(calls) < 10


def hooked(hook, inputs):
    """The sum of a step in which the script changes the gradient that reaches the output."""

    def mean(outputs, targets):
        return -outputs.mean()

    client = Client(clean(0.3), nn.Linear(6, 1), examples(33), engine=BookKeeping(), divisor=1.0, loss=mean)
    client.draw((inputs, torch.zeros(len(inputs))))
    outputs = client.model(inputs)
    outputs.register_hook(hook)
    mean(outputs, None).backward()
    client.optimizer.step()
    return client.gradients[0].numpy()


def test_a_hook_of_the_script_on_an_output_comes_before_what_is_noted_of_its_gradient():
    inputs, _ = many()
    with pytest.raises(dp.NotPrivate, match="the loss of a batch of 101 is not the mean of the losses"):
        hooked(dropped, inputs)


def test_a_hook_of_the_script_that_looks_at_a_gradient_is_taken():
    inputs, seen = many()[0], []
    moved = hooked(lambda gradient: seen.append(gradient.shape), inputs) - hooked(lambda gradient: None, inputs[1:])
    assert seen == [(N, 1)] and np.linalg.norm(moved) <= 0.3 * (1 + 1e-4)


def booked(model, inputs):
    model(inputs)
    found = model.passes[-1].book is not None
    model.forget(unfinished=True)
    return found


POOLED = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
NORMED = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
HONEST = {
    "pooled images": (POOLED, (1, 8, 8)),
    "norms": (NORMED, (1, 8, 8)),
    "random numbers": (nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 3)), (6,)),
    "all of it": (Limited(lambda h: h[: len(h)]), (6,)),
    "a table of as many places as there are examples": (
        Limited(lambda h: h * torch.arange(113)[:, None].float().mean(dim=0)),
        (6,),
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_model_keeps_its_engine(name):
    module, shape = HONEST[name]
    inputs, targets = examples(N, shape=shape)
    model = private_model(module, nn.functional.cross_entropy, inputs[:4], targets[:4], engine=BookKeeping()).train()
    assert all(booked(model, inputs[:n]) for n in (5, 33, N, 64))


def test_a_larger_batch_is_followed_once(monkeypatch):
    inputs, targets = examples(140)
    model = private_model(nn.Linear(6, 3), nn.functional.cross_entropy, inputs[:4], targets[:4]).train()
    lengths, most_apart = [], book_keeping.most_apart

    def counted(module, call, uses):
        lengths.append(len(call[0][0]))
        return most_apart(module, call, uses)

    monkeypatch.setattr(book_keeping, "most_apart", counted)
    for n in (10, 41, 42, 30, 47, 100, 110, 99, 140, 139):
        assert booked(model, inputs[:n])
    assert lengths == [42, 100, 140]


class Sequences(nn.Module):
    """The mean of outputs of a linear layer over a sequence, of no more examples than the length allows."""

    def __init__(self, places):
        super().__init__()
        self.layer, self.places = nn.Linear(2, 3), places

    def forward(self, x):
        outputs = self.layer(x).mean(dim=1)
        k = min(len(x), self.places * x.shape[1])
        return torch.cat([outputs[:k], outputs[k:] * 0.0]) if k < len(x) else outputs


def test_a_capacity_that_falls_with_the_length_of_a_sequence_is_found_in_shorter_ones():
    inputs, targets = examples(35, shape=(12, 2))
    model = private_model(Sequences(10), nn.functional.cross_entropy, inputs[:4], targets[:4]).train()
    assert booked(model, inputs)
    assert not booked(model, inputs[:, :3])
    assert booked(model, inputs[:, :3][:20])


def test_sequences_of_other_lengths_keep_their_engine_and_are_followed_once(monkeypatch):
    inputs, targets = examples(35, shape=(12, 2))
    model = private_model(Sequences(10**6), nn.functional.cross_entropy, inputs[:4], targets[:4]).train()
    lengths, most_apart = [], book_keeping.most_apart

    def counted(module, call, uses):
        lengths.append(call[0][0].shape[1])
        return most_apart(module, call, uses)

    monkeypatch.setattr(book_keeping, "most_apart", counted)
    assert all(booked(model, inputs[:n, :length]) for n, length in ((35, 12), (35, 3), (33, 5), (34, 5), (20, 3)))
    assert lengths == [3, 5]


def test_a_batch_that_is_followed_draws_no_random_numbers():
    inputs, targets = examples(N)
    module = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))
    model = private_model(module, nn.functional.cross_entropy, inputs[:4], targets[:4], engine=BookKeeping()).train()
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(model(inputs).detach())
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    "around",
    [torch.autograd.graph.save_on_cpu, lambda: FunctionMode(), lambda: DispatchMode()],
    ids=["hooks on what is saved", "a function mode", "a dispatch mode"],
)
def test_a_pass_that_could_be_changed_from_outside_gets_the_rows_of_examples_alone(around):
    inputs, targets = examples(5)
    model = private_model(nn.Linear(6, 3), nn.functional.cross_entropy, inputs, targets, engine=BookKeeping()).train()
    with around():
        assert not booked(model, inputs)
    with torch.device("cpu"):
        assert booked(model, inputs)


class TestBatchSizes:
    def test_no_more_examples_of_the_same_form_are_covered(self):
        sizes = BatchSizes()
        sizes.add((torch.zeros(5, 3), torch.zeros(5)))
        assert sizes.cover((torch.zeros(4, 3), torch.zeros(4)))
        assert not sizes.cover((torch.zeros(6, 2), torch.zeros(6)))
        assert not sizes.cover((torch.zeros(4, 2), torch.zeros(4)))
        assert not sizes.cover((torch.zeros(5, 4), torch.zeros(5)))
        assert not sizes.cover(torch.zeros(5, 3))
        assert not sizes.cover((torch.zeros(5), torch.zeros(5, 3)))

    def test_a_number_of_examples_may_be_given(self):
        sizes = BatchSizes()
        sizes.add(torch.zeros(5, 3), 7)
        assert sizes.cover(torch.zeros(7, 3)) and not sizes.cover(torch.zeros(8, 3))

    def test_each_form_keeps_its_largest_batch(self):
        sizes = BatchSizes()
        for n, length in ((5, 3), (9, 2), (4, 3)):
            sizes.add(torch.zeros(n, length))
        assert sizes.cover(torch.zeros(5, 3)) and sizes.cover(torch.zeros(9, 2))
        assert not sizes.cover(torch.zeros(6, 3))

    def test_the_form_that_was_noted_first_is_forgotten_where_there_are_many(self, monkeypatch):
        monkeypatch.setattr(batch_sizes, "_MOST", 2)
        sizes = BatchSizes()
        for length in (1, 2, 3):
            sizes.add(torch.zeros(5, length))
        assert [sizes.cover(torch.zeros(5, length)) for length in (1, 2, 3)] == [False, True, True]

    def test_at_least_as_large_in_each_axis_is_reached(self):
        sizes = BatchSizes()
        sizes.add(torch.zeros(5, 3))
        assert sizes.reach(torch.zeros(5, 3)) and sizes.reach(torch.zeros(6, 4))
        assert not sizes.reach(torch.zeros(6, 2))

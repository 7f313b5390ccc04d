"""The check of one example by itself: what it takes for right, and that each of its three comparisons refuses."""

import pytest
import torch
from torch import nn

import dpcomp as dp
from dpcomp.training.pytorch import BookKeeping
from dpcomp.training.pytorch.inspection import private_model

N, WHICH = 7, 3


class BesideAnInput(nn.Module):
    """Has an output that no parameter reaches."""

    def __init__(self):
        super().__init__()
        self.layer, self.lengths = nn.Linear(8, 2), None

    def forward(self, x):
        if self.lengths is not None:
            self.lengths.append(len(x))
        return torch.cat([self.layer(x), x[:, :1]], dim=1)


def mean_output(outputs, targets):
    return outputs.mean(dim=1).mean()


@pytest.fixture
def checked():
    """Return a model, a finished pass over N examples, and the row of example WHICH."""
    torch.manual_seed(0)
    inputs = torch.randn(N, 8)
    model = private_model(BesideAnInput(), mean_output, inputs, None, engine=BookKeeping()).train()
    mean_output(model(inputs), None).backward()
    one = model.passes[0]
    return model, one, tuple(part[0] for part in model.engine.rows(one, None, WHICH, WHICH + 1))


def test_what_is_right_takes_one_pass_of_the_example_alone(checked):
    model, one, row = checked
    model._module.lengths = lengths = []
    model.check.example_of(one, None, WHICH, row)
    assert lengths == [1]


@pytest.mark.parametrize("place", [0, 1])
def test_another_row_is_refused(checked, place):
    model, one, row = checked
    wrong = [part.clone() for part in row]
    wrong[place].view(-1)[0] += 1e-3
    with pytest.raises(dp.NotPrivate, match="gradient of an example is another than that of the example alone"):
        model.check.example_of(one, None, WHICH, tuple(wrong))


def test_other_outputs_are_refused_though_the_row_is_right(checked):
    model, one, row = checked
    one.outputs = one.outputs + 0.1 * one.outputs.abs().max()
    with pytest.raises(dp.NotPrivate, match="outputs of an example in a batch of 7 are not those"):
        model.check.example_of(one, None, WHICH, row)


def test_another_loss_is_refused_though_the_row_is_right(checked):
    model, one, row = checked
    one.cotangents[0] = one.cotangents[0].clone()
    one.cotangents[0][WHICH, 2] *= 1.01  # of the output that no parameter reaches
    with pytest.raises(dp.NotPrivate, match="is not the mean of the losses of its examples"):
        model.check.example_of(one, None, WHICH, row)


def test_the_row_of_another_example_is_refused(checked):
    model, one, _ = checked
    other = tuple(part[0] for part in model.engine.rows(one, None, WHICH + 1, WHICH + 2))
    with pytest.raises(dp.NotPrivate, match="gradient of an example is another"):
        model.check.example_of(one, None, WHICH, other)


@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_a_loss_that_ties_examples_is_refused_however_small_it_is(scale):
    """Below 1e-23 the squares of all gradients are zero in float32, and so would be the distance of any two."""
    torch.manual_seed(0)
    inputs = torch.randn(N, 8)
    model = private_model(
        nn.Linear(8, 2), lambda outputs, _: scale * outputs.square().mean(), inputs, None, engine=BookKeeping()
    ).train()
    outputs = model(inputs)
    (scale * (outputs * outputs.roll(1, dims=0)).mean()).backward()
    one = model.passes[0]
    row = tuple(part[0] for part in model.engine.rows(one, None, WHICH, WHICH + 1))
    with pytest.raises(dp.NotPrivate, match="is not the mean of the losses of its examples"):
        model.check.example_of(one, None, WHICH, row)


@pytest.mark.parametrize("scale", [1e-25, 1e-40, 1e-42])
def test_a_small_gradient_that_is_right_is_taken(scale):
    """Below 1e-38 float32 has few digits; a model that diverges has such gradients, where its softmax is sure."""
    torch.manual_seed(0)
    inputs = torch.randn(N, 8)

    def loss(outputs, _):
        return scale * outputs.square().mean()

    model = private_model(nn.Linear(8, 2), loss, inputs, None, engine=BookKeeping()).train()
    loss(model(inputs), None).backward()
    one = model.passes[0]
    model.check.example_of(one, None, WHICH, tuple(part[0] for part in model.engine.rows(one, None, WHICH, WHICH + 1)))

"""The check of one example by itself: what it takes for right, and that each of its three comparisons refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import dpcomp as dp
from dpcomp.training.pytorch import BookKeeping, Isolated, Opacus
from dpcomp.training.pytorch.inspection import private_model
from tests.training.private_client import Client, clean

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


pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")


class Layer(nn.Module):
    """A linear layer in a forward pass that is given."""

    def __init__(self, forward, dtype):
        super().__init__()
        self.layer, self.written = nn.Linear(8, 2).to(dtype), forward

    def forward(self, x):
        return self.written(self.layer, x)


def batch(dtype=torch.float32, n=24):
    """Return inputs, the first of which lies far away, and targets."""
    torch.manual_seed(0)
    inputs = torch.randn(n, 8, dtype=dtype)
    inputs[0] = 20
    return inputs, torch.randn(n, 2, dtype=dtype)


def squares(outputs, targets):
    return (outputs[:, :2] - targets).square().mean()


def centred(outputs, targets):
    return ((outputs - outputs.mean(dim=0)) * targets).mean()


def beside(other, tie=centred):
    """Return a loss that ties two outputs and sends a large cotangent to a third."""
    return lambda outputs, targets: tie(outputs[:, :2], targets) + other * outputs[:, 2].mean()


def weighted_by_class(outputs, targets):
    classes = (targets[:, 0] > 0).long()
    return functional.cross_entropy(outputs, classes, weight=torch.tensor([1.0, 9.0]))


def hardest_half(outputs, targets):
    return (outputs - targets).square().mean(dim=1).topk(len(outputs) // 2 + 1).values.mean()


def with_an_input(layer, x):
    return torch.cat([layer(x), x[:, :1]], dim=1)


TIED_LOSSES = {
    "small cotangents of float64": (lambda layer, x: layer(x) * 1e60, lambda o, t: centred(o / 1e60, t), torch.float64),
    "cotangents below 1e-154": (lambda layer, x: layer(x) * 1e200, lambda o, t: centred(o / 1e200, t), torch.float64),
    "small cotangents of float32": (lambda layer, x: layer(x) * 2e38, lambda o, t: centred(o / 2e38, t), torch.float32),
    "beside an input": (with_an_input, beside(1e6), torch.float32),
    "beside an input in float64": (with_an_input, beside(1e9), torch.float64),
    "class weights beside an input": (with_an_input, beside(1e6, weighted_by_class), torch.float32),
    "the hardest half beside an input": (with_an_input, beside(1e7, hardest_half), torch.float32),
    "beside an input, with dropout": (
        lambda layer, x: torch.cat([functional.dropout(layer(x), 0.1), x[:, :1]], dim=1),
        beside(1e6),
        torch.float32,
    ),
}


@pytest.mark.parametrize("name", TIED_LOSSES)
def test_a_loss_that_ties_what_the_parameters_see_is_refused(name):
    """However small the tied cotangents are, alone or beside others: a row may be made of them alone."""
    forward, loss, dtype = TIED_LOSSES[name]
    with pytest.raises(dp.NotPrivate, match="is not the mean of the losses of its examples"):
        private_model(Layer(forward, dtype), loss, *batch(dtype), engine=Opacus())


@pytest.mark.parametrize("engine", [BookKeeping(), Opacus()], ids=["BookKeeping", "Opacus"])
@pytest.mark.parametrize("tie", [1.0, 1e-2])
def test_a_script_that_computes_another_loss_beside_a_large_cotangent_is_refused(engine, tie):
    inputs, targets = batch()
    model = private_model(Layer(with_an_input, torch.float32), beside(1e6, squares), inputs, targets, engine=engine)
    outputs = model.train()(inputs)
    (beside(1e6, squares)(outputs, targets) + tie * centred(outputs[:, :2], targets)).backward()
    one = model.passes[0]
    row = tuple(part[0] for part in model.engine.rows(one, targets, WHICH, WHICH + 1))
    with pytest.raises(dp.NotPrivate, match="is not the mean of the losses of its examples"):
        model.check.example_of(one, targets, WHICH, row)


def less_the_mean(layer, x):
    return layer(x) - x.mean(dim=0)[:2]


def by_batch_norm(layer, x):
    return functional.batch_norm(layer(x), None, None, training=True)


def by_the_largest(layer, x):
    return layer(x / x.abs().max())


def by_rounding(layer, x):
    """Add and subtract what hides the last digits of the outputs; in float64 nothing remains of 1e8."""
    large = (1e8 if x.dtype == torch.float32 else 1e16) * x.mean()
    return layer(x) + large - large


def of_several_layers(layer, x):
    hidden = torch.tanh(layer(x) - 0.1 * x.mean(dim=0)[:2])
    return hidden - hidden.detach().mean(dim=0)


FORWARD = {f.__name__: f for f in (less_the_mean, by_batch_norm, by_the_largest, by_rounding, of_several_layers)}


@pytest.mark.parametrize(
    ("dtype", "large", "dropout"),
    [(torch.float32, 1e6, False), (torch.float32, 1e10, True), (torch.float64, 1e10, False)],
    ids=["float32", "dropout", "float64"],
)
@pytest.mark.parametrize("name", FORWARD)
def test_a_forward_pass_that_ties_small_outputs_beside_a_large_one_is_refused(name, dtype, large, dropout):
    def forward(layer, x):
        small = FORWARD[name](layer, x)
        return torch.cat([functional.dropout(small, 0.1) if dropout else small, large * x[:, :1]], dim=1)

    with pytest.raises(dp.NotPrivate, match=r"a layer mixes examples|not the mean of the losses"):
        private_model(Layer(forward, dtype), squares, *batch(dtype), engine=Opacus())


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_a_tie_beside_a_constant_in_the_same_output_is_refused(offset):
    def loss(outputs, targets):
        return (outputs - offset - targets).square().mean()

    def forward(layer, x):
        return layer(x) - x.mean(dim=0)[:2] * offset * 1e-5 + offset

    with pytest.raises(dp.NotPrivate, match="a layer mixes examples"):
        private_model(Layer(forward, torch.float32), loss, *batch(), engine=Opacus())


TABLE = torch.eye(2)  # a constant that is in no buffer, so that the model computes in float32 only


@pytest.mark.parametrize("enlarged", [1.0, 1e4])
def test_a_tie_in_a_model_that_computes_in_float32_only_is_refused(enlarged):
    def forward(layer, x):
        return torch.cat([layer(x) @ TABLE - x.mean(dim=0)[:2] / enlarged, 1e6 * x[:, :1]], dim=1)

    def loss(outputs, targets):
        return torch.cos(enlarged * outputs[:, :2] + targets).mean()

    with pytest.raises(dp.NotPrivate, match="a layer mixes examples"):
        private_model(Layer(forward, torch.float32), loss, *batch(), engine=Opacus())


def test_large_values_of_every_example_excuse_no_loss_that_needs_others():
    """Alone, what is divided by the deviation in a batch of one is not finite; in the batch it is."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.layer = nn.Embedding(50, 4), nn.Linear(4, 2)

        def forward(self, x):
            small = self.layer(self.words(x))
            return torch.cat([small, 1e7 + 0 * small[:, :1]], dim=1)

    def loss(outputs, targets):
        small = outputs[:, :2]
        return squares((small - small.mean(dim=0)) / small.std(dim=0), targets) + 1e7 * outputs[:, 2].mean()

    targets = batch()[1]
    words = torch.randint(50, (len(targets),))
    with pytest.raises(dp.NotPrivate, match="is not the mean of the losses of its examples"):
        private_model(Words(), loss, words, targets, engine=BookKeeping())


class Standardised(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x):
        return self.layers(x)


HONEST = {
    "linear": (lambda: nn.Linear(8, 2), torch.float32),
    "of float64": (lambda: nn.Linear(8, 2).double(), torch.float64),
    "layer norm": (Standardised, torch.float32),
    "deep": (
        lambda: nn.Sequential(*(part for _ in range(5) for part in (nn.Linear(8, 8), nn.ReLU())), nn.Linear(8, 2)),
        torch.float32,
    ),
    "in float32 only": (lambda: Layer(lambda layer, x: layer(x) @ TABLE + 1000, torch.float32), torch.float32),
    "beside a constant": (lambda: Layer(lambda layer, x: layer(x) + 1000, torch.float32), torch.float32),
    "convolution": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
        ),
        torch.float32,
    ),
    "beside a large input": (
        lambda: Layer(lambda layer, x: torch.cat([layer(x), 1e6 * x[:, :1]], dim=1), torch.float32),
        torch.float32,
    ),
}


@pytest.mark.parametrize("engine", [BookKeeping(), Opacus()], ids=["BookKeeping", "Opacus"])
@pytest.mark.parametrize("error", [0.0, 1e-6])
@pytest.mark.parametrize("name", HONEST)
def test_rounding_is_no_tie_however_close_the_outputs_are_to_the_targets(name, error, engine):
    """The rows are made of the outputs' last bits then, and each kernel rounds these in its own way."""
    make, dtype = HONEST[name]
    torch.manual_seed(1)
    module = make()
    inputs, _ = batch(dtype)
    with torch.no_grad():
        targets = module(inputs)[:, :2] * (1 + error)
    model = private_model(module, squares, inputs, targets + (error == 0) * torch.eye(24, 2), engine=engine).train()
    squares(model(inputs), targets).backward()
    one = model.passes[0]
    for i in range(0, len(inputs), 3):
        row = tuple(part[0] for part in model.engine.rows(one, targets, i, i + 1))
        model.check.example_of(one, targets, i, row)


class ReturnsWhatItGot(nn.Module):
    """Returns its input, or the noise that it added, beside what it makes of it, as autoencoders and denoisers do."""

    def __init__(self, noisy, tied=False):
        super().__init__()
        self.layer, self.noisy, self.tied = nn.Linear(6, 6), noisy, tied

    def forward(self, x):
        beside = torch.randn_like(x) if self.noisy else x - x.mean(0) if self.tied else x
        return self.layer(x + beside), beside


def of_both(outputs, _):
    return functional.mse_loss(*outputs)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("engine", [Isolated(), BookKeeping()], ids=["Isolated", "BookKeeping"])
def test_an_output_that_no_parameter_reaches_may_be_in_the_loss(engine, noisy):
    torch.manual_seed(0)
    module, inputs = ReturnsWhatItGot(noisy), torch.randn(N, 6)
    client = Client(clean(1e-2), module, (inputs, inputs), engine=engine, loss=of_both, divisor=1.0)
    apart = [copy.deepcopy(module) for _ in range(N)]
    client.step(inputs, inputs)
    if noisy:  # whose numbers are not told
        return
    expected = 0
    for i, alone in enumerate(apart):
        of_both(alone(inputs[i : i + 1]), None).backward()
        row = torch.cat([parameter.grad.flatten() for parameter in alone.parameters()])
        expected = expected - row * min(1.0, 1e-2 / float(row.norm()))
    torch.testing.assert_close(torch.tensor(client.optimizer.update().dense()), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("engine", [Isolated(), BookKeeping()], ids=["Isolated", "BookKeeping"])
def test_such_an_output_that_ties_examples_is_refused(engine):
    inputs = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(dp.NotPrivate, match=r"outputs of an example in a batch|mean over the batch"):
        private_model(ReturnsWhatItGot(False, tied=True), of_both, inputs, inputs, engine=engine)

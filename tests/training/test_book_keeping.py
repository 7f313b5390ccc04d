"""Book-keeping: which models it serves, and that its norms and sums are those of each example's own gradient."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import dpcomp as dp
from dpcomp.core.layout import Layout
from dpcomp.core.support import Listed
from dpcomp.training.pytorch import BookKeeping
from dpcomp.training.pytorch.channels_last import takes_channels_last
from dpcomp.training.pytorch.inspection import private_model
from dpcomp.training.pytorch.rows.book_keeping import booked_units
from dpcomp.training.pytorch.rows.book_keeping.booked_units import BookedUnits
from dpcomp.training.pytorch.rows.book_keeping.engine import BookedRows
from dpcomp.training.pytorch.rows.book_keeping.examples_apart import layer_uses
from dpcomp.training.pytorch.rows.book_keeping.layer_terms import FewPositions, OuterProducts, RowTerms, TableTerms
from dpcomp.training.pytorch.rows.parameters import layout_of, trainable

N = 6


class Function(nn.Module):
    """A linear layer, and a function of its output."""

    def __init__(self, function, width=8):
        super().__init__()
        self.layer, self.function = nn.Linear(width, width), function

    def forward(self, x):
        return self.function(self.layer(x))


def numbered(x):
    return x * torch.arange(len(x), dtype=x.dtype)[:, None]


def through_a_view(x):
    copy = x.new_zeros(x.shape)
    copy[:] = x
    return x + copy.mean(dim=0)


def through_a_table(x, table=torch.zeros(11, 8)):
    table.copy_(x.detach())
    return x + table.mean(dim=0)


def through_out(x):
    table = x.new_zeros(len(x), len(x))
    torch.mul(x.detach()[:, :1], 1, out=table[:, :1])
    return x + table.t()[:, :1]


def with_a_hook(x):
    copy = x * 1
    copy.register_hook(lambda gradient: gradient / gradient.norm().clamp(min=1e6))
    return copy


class Damped(torch.autograd.Function):
    """The identity, whose backward pass limits the gradient of a whole batch."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0] / gradients[0].norm().clamp(min=1e6)


def written(values, where):
    values[where] = 0.0
    return values


def with_last_row(x, rest, last):
    """A table with a row for each example of a batch, of which the last is another."""
    return torch.tensor([rest] * (len(x) - 1) + [last])


def attended(x, mask):
    q = x.view(-1, 1, 4, 2)
    return functional.scaled_dot_product_attention(q, q, q, attn_mask=mask).flatten(1)


MIXES = {
    "place by a join of columns, turned": lambda x: (
        x * torch.cat([x.new_ones(len(x), len(x) - 3), x.new_zeros(len(x), 3)], 1).t()[:, :1]
    ),
    "place by a join of rows": lambda x: x * torch.cat([x.new_ones(len(x) - 3, len(x)), x.new_zeros(3, len(x))])[:, :1],
    "place by a stack": lambda x: x * torch.stack([x.new_ones(len(x))] * (len(x) - 1) + [x.new_zeros(len(x))])[:, :1],
    "place by a join in another shape": lambda x: (
        x * torch.cat([x.new_ones(len(x), 1), x.new_zeros(len(x), 1)], 1).reshape(2, -1)[0][:, None]
    ),
    "addmm with a table": lambda x: torch.addmm(with_last_row(x, [0.0] * 8, [-1e9] * 8), x, torch.eye(8)).relu(),
    "baddbmm with a table": lambda x: (
        torch.baddbmm(with_last_row(x, [[0.0]], [[5.0]]), x[:, None], x[:, :, None])[:, 0] * x
    ),
    "linear with a table": lambda x: functional.linear(x, torch.eye(8), with_last_row(x, [0.0] * 8, [5.0] * 8)),
    "attention with a table": lambda x: attended(x, with_last_row(x, [[[0.0] * 4] * 4], [[[5.0, 0, 0, 0]] * 4])),
    "written by out": through_out,
    "read by NumPy": lambda x: x / max(1e6, float(x.detach().numpy().max())),
    "read as a list": lambda x: x / max(1e6, *map(max, x.tolist())),
    "shown as text": lambda x: x * (1 + ("inf" in str(x))),
    "aliased by NumPy": lambda x: x * torch.from_numpy(np.ones(8, np.float32) * x.detach().numpy().max()),
    "aliased by a class": lambda x: x / nn.Parameter(x.detach()).max().clamp(min=1e6),
    "called for each value": lambda x: x + 0 * x.detach().clone().apply_(abs),
    "the first 64": lambda x: functional.pad(x[:64], (0, 0, 0, len(x) - len(x[:64]))),
    "the last 64": lambda x: x[-64:],
    "a hook on gradients": with_a_hook,
    "an own backward pass": Damped.apply,
    "written into a view": through_a_view,
    "written into a table": through_a_table,
    "mean": lambda x: x - x.mean(dim=0),
    "sum of all": lambda x: x * x.sum(),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "neighbour": lambda x: x + torch.cat([x[1:], x[:1]]),
    "shuffle": lambda x: x[torch.randperm(len(x))],
    "similarity": lambda x: x @ x.T @ x,
    "softmax over the batch": lambda x: x.softmax(dim=0),
    "cumsum over the batch": lambda x: x.cumsum(dim=0),
    "sort over the batch": lambda x: x.sort(dim=0).values,
    "norm of all": lambda x: x / x.norm(),
    "largest": lambda x: x / x.max(),
    "decision by value": lambda x: x * 2 if x.sum() > 0 else x,
    "number": lambda x: x * x.sum().item(),
    "first of all": lambda x: x + x[:1],
    "place in the batch": numbered,
    "place by a write": lambda x: x * written(x.new_ones(len(x), 1), slice(64, None)),
    "place by a write of one": lambda x: x * written(torch.ones_like(x), 0),
    "place by a join": lambda x: x * torch.cat([x.new_ones(len(x) - 3, 1), x.new_zeros(3, 1)]),
    "roll of all values": lambda x: torch.roll(x, 1),
    "place by a running sum": lambda x: x * x.new_ones(len(x), 1).cumsum(dim=0),
    "a random order": lambda x: x * torch.rand(len(x), 1).argsort(dim=0),
    "batch norm": lambda x: functional.batch_norm(x, None, None, training=True),
    "attention over the batch": lambda x: functional.scaled_dot_product_attention(x[None], x[None], x[None])[0],
    "mixed reshape": lambda x: x.reshape(8, -1).reshape(-1, 8),
    "transposed reshape": lambda x: x.t().reshape(-1, 8),
    "in place": lambda x: x.sub_(x.mean(dim=0)),
    "scatter": lambda x: x.scatter_add(0, torch.zeros(len(x), 8, dtype=torch.int64), x),
}


@pytest.mark.parametrize("name", MIXES)
def test_what_mixes_examples_is_not_served(name):
    why = layer_uses(Function(MIXES[name]), torch.randn(4, 8))
    assert isinstance(why, str), name


BIAS, FUTURE = torch.arange(8.0), torch.full((4, 4), -1e9).triu(1)
APART = {
    "first states of layers": lambda x: x + torch.stack([x.new_zeros(len(x), 8), x.new_ones(len(x), 8)])[1],
    "joined and cut again": lambda x: x * torch.cat([x.new_ones(len(x), 1), x.new_zeros(len(x), 1)], dim=1)[:, 1:],
    "joined and turned": lambda x: x * torch.cat([x.new_ones(1, len(x)), x.new_zeros(1, len(x))])[1][:, None],
    "addmm with a bias": lambda x: torch.addmm(BIAS, x, torch.eye(8)) + torch.addmm(BIAS[None], x, torch.eye(8)),
    "linear with a bias": lambda x: functional.linear(x, torch.eye(8), BIAS),
    "attention with a mask for all": lambda x: attended(x, FUTURE),
    "softmax": lambda x: x.softmax(dim=-1),
    "heads": lambda x: x.reshape(-1, 2, 4).transpose(1, 2).flatten(1),
    "attention": lambda x: functional.scaled_dot_product_attention(*3 * [x.view(-1, 1, 4, 2)]).flatten(1),
    "folded": lambda x: x.view(-1, 4, 2).flatten(0, 1).tanh().view(-1, 8),
    "axis first": lambda x: x.t().tanh().t(),
    "own mean": lambda x: x - x.mean(dim=1, keepdim=True),
    "joined zeros": lambda x: x + torch.cat([x.new_zeros(len(x), 4), x.new_ones(len(x), 4)], dim=1),
    "a roll within": lambda x: torch.roll(x, 1, dims=1),
    "written as a whole": lambda x: x * x.new_empty(len(x), 1).bernoulli_(0.9),
    "joined": lambda x: torch.cat([x, x.relu(), x.new_zeros(len(x), 2)], dim=1)[:, :8],
    "sorted": lambda x: x.sort(dim=1).values,
    "padded": lambda x: functional.pad(x, (1, 1))[:, 1:-1],
    "table": lambda x: x * torch.arange(8.0),
    "in place": lambda x: x.mul_(2).relu_(),
    "dropout": lambda x: functional.dropout(x, 0.5),
    "masked": lambda x: x.masked_fill(torch.arange(8) > 5, 0.0),
    "looked at its form": lambda x: x if x.shape[1] == x.size(1) and x.is_floating_point() else x.to(x.device),
    "one axis of several in a loop": lambda x: sum(column for column in x.t())[:, None] * x,
    "all of it": lambda x: x[: len(x), :][:],
    "products": lambda x: torch.bmm(x[:, :, None], x[:, None, :]).sum(dim=2),
}


@pytest.mark.parametrize("name", APART)
def test_what_keeps_examples_apart_is_served(name):
    assert not isinstance(layer_uses(Function(APART[name]), torch.randn(4, 8)), str)


def mean_square(outputs, targets):
    return outputs.flatten(1).square().mean(dim=1).mean()


def passed(module, inputs, engine, loss=mean_square):
    """Return a model and a finished pass."""
    model = private_model(module, loss, inputs[:4], None, engine=engine).train()
    loss(model(inputs), None).backward()
    return model, model.passes[0]


def one_by_one(module, inputs, loss=mean_square):
    module = copy.deepcopy(module).double()
    rows = []
    for i in range(len(inputs)):
        example = inputs[i : i + 1]
        value = loss(module(example.double() if example.is_floating_point() else example), None)
        gradients = torch.autograd.grad(value, list(trainable(module).values()))
        rows.append(torch.cat([part.flatten() for part in gradients]))
    return torch.stack(rows).numpy()


def units_of(model, one):
    """Return the units of a pass, which book-keeping serves."""
    units = model.engine.units(one, layout_of(model))
    assert units is not None
    return units


def clipped_sum(rows, norm):
    norms = np.linalg.norm(rows, axis=1)
    return (rows * np.minimum(1, norm / (norms + 1e-6 * norm))[:, None]).sum(axis=0)


NETWORKS = {
    "linear": (lambda: nn.Linear(8, 3), torch.randn(N, 8)),
    "few positions": (lambda: nn.Linear(8, 3), torch.randn(N, 5, 8)),
    "many positions": (lambda: nn.Linear(8, 3), torch.randn(N, 20, 8)),
    "images": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4), nn.ReLU(inplace=True)),
        torch.randn(N, 2, 9, 9),
    ),
    "tokens": (
        lambda: nn.Sequential(nn.Embedding(7, 5), nn.LayerNorm(5), nn.Linear(5, 2)),
        torch.arange(N * 9).view(N, 9) % 4,
    ),
}


@pytest.mark.parametrize("support", [None, 0.3], ids=["all coordinates", "a support"])
@pytest.mark.parametrize("name", NETWORKS)
def test_sums_are_those_of_rows_on_any_support_and_in_any_chunks(name, support, monkeypatch):
    make, inputs = NETWORKS[name]
    module = make()
    model, one = passed(module, inputs, BookKeeping())
    layout = layout_of(model)
    units, rows = units_of(model, one), one_by_one(module, inputs)
    if support is not None:
        kept = np.sort(np.random.default_rng(0).choice(layout.size, round(support * layout.size), replace=False))
        units, rows = units.restrict(Listed(kept)), rows[:, kept]
    norm = float(np.median(np.linalg.norm(rows, axis=1)))
    monkeypatch.setattr(booked_units, "FEWEST", 1)
    for size in (1, 2**26):
        monkeypatch.setattr(booked_units, "BYTES_OF_ROWS", size)
        total = dp.Clip(norm).apply(units, dp.PublicContext(layout=layout, mask_key=0))
        np.testing.assert_allclose(total.vector(), clipped_sum(rows, norm), atol=1e-6 * N * norm)
        assert (total.units, total.not_finite) == (N, 0)


def test_an_example_moves_a_sum_of_many_alike_by_its_own_row_alone():
    # In float32 the sum of 999 alike gradients, which is 999 C long, would be rounded by more than 10⁻⁵ of C.
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 4))
    image = torch.randn(1, 1, 4, 4)
    sums = []
    for n in (998, 999):
        model, one = passed(module, image.expand(n, 1, 4, 4).contiguous(), BookKeeping())
        layout = layout_of(model)
        total = dp.Clip(0.01).apply(units_of(model, one), dp.PublicContext(layout=layout, mask_key=0))
        sums.append(total.vector())
    moved = np.linalg.norm(sums[1] - sums[0])
    assert 0.01 * (1 - 1e-5) <= moved <= 0.01 * (1 + 1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_norms_do_not_read_low_where_terms_cancel(scale):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(50, 4, 6, generator=g)
    a[:, 1] = -a[:, 0] * (1 + 1e-6 * torch.randn(50, 6, generator=g))
    gradients = torch.randn(50, 4, 3, generator=g) * scale
    gradients[:, 1] = gradients[:, 0]
    places = torch.zeros(50, 4, dtype=torch.int64)
    for terms in (
        FewPositions(a, gradients, bias=True),
        OuterProducts(a[:, 0], gradients[:, 0], bias=True),
        TableTerms(places, gradients, (2, 3)),
        RowTerms([gradients]),
    ):
        exact = [part.flatten(1).double().numpy().astype(np.longdouble) for part in terms.rows()]
        if isinstance(terms, FewPositions):
            wide = np.einsum("kto,kti->koi", gradients.double().numpy(), a.double().numpy()).astype(np.longdouble)
            exact = [wide.reshape(50, -1), gradients.double().numpy().sum(axis=1).astype(np.longdouble)]
        if isinstance(terms, TableTerms):
            exact = [gradients.double().numpy().sum(axis=1).astype(np.longdouble)]
        squares = sum((part**2).sum(axis=1) for part in exact)
        assert (terms.squares(None) >= squares * (1 - 1e-5)).all()
        assert (terms.squares(None) <= squares * (1 + 1e-3)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_example_that_is_not_finite_adds_nothing(bad):
    module = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(18, 4), nn.Tanh(), nn.Linear(4, 2))
    inputs = torch.randn(N, 2, 8)
    spoiled = inputs.clone()
    spoiled[2] = bad
    model, _ = passed(module, inputs, BookKeeping())
    model.passes.clear()
    mean_square(model(spoiled), None).backward()
    layout = layout_of(model)
    context = dp.PublicContext(layout=layout, mask_key=0)
    total = dp.Clip(1.0).apply(units_of(model, model.passes[0]), context)
    rest = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(total.vector(), clipped_sum(one_by_one(module, inputs[rest]), 1.0), atol=1e-5)
    assert total.not_finite == 1


class Twice(nn.Module):
    """Uses a layer twice, once `twice` is set."""

    def __init__(self):
        super().__init__()
        self.layer, self.twice = nn.Linear(8, 8), False

    def forward(self, x):
        once = self.layer(x).tanh()
        return self.layer(once) if self.twice else once


class WritesInput(nn.Module):
    """Writes what a layer got after the layer has read it, once `writes` is set."""

    def __init__(self):
        super().__init__()
        self.first, self.layer, self.writes = nn.Linear(8, 8), nn.Linear(8, 8), False

    def forward(self, x):
        hidden = self.first(x) * 1.0
        outputs = self.layer(hidden)
        if self.writes:
            hidden.mul_(0.0)
        return outputs


def test_a_pass_that_no_trial_saw_gets_the_rows_of_examples_alone():
    module, inputs = Twice(), torch.randn(N, 8)
    model, _ = passed(module, inputs, BookKeeping())
    assert isinstance(model.engine, BookedRows)
    model.passes.clear()
    module.twice = True
    mean_square(model(inputs), None).backward()
    one = model.passes[0]
    assert model.engine.units(one, layout_of(model)) is None
    rows = torch.cat([part.flatten(1) for part in model.engine.rows(one, None, 0, N)], dim=1)
    np.testing.assert_allclose(rows.numpy(), one_by_one(module, inputs), atol=1e-5)


def test_an_input_that_was_written_after_a_layer_read_it_is_not_used():
    module, inputs = WritesInput(), torch.randn(N, 8)
    model, _ = passed(module, inputs, BookKeeping())
    model.passes.clear()
    module.writes = True
    mean_square(model(inputs), None).backward()
    assert model.engine.units(model.passes[0], layout_of(model)) is None


class Views(nn.Module):
    """Takes a view of what a convolution gives, which has no place with channels last in memory."""

    def __init__(self):
        super().__init__()
        self.convolution, self.layer = nn.Conv2d(1, 4, 3), nn.Linear(36, 2)

    def forward(self, x):
        return self.layer(self.convolution(x).view(len(x), -1))


def test_a_model_that_takes_views_keeps_its_memory_layout():
    module, inputs = Views(), torch.randn(N, 1, 5, 5)
    assert not takes_channels_last(module, inputs)
    assert takes_channels_last(nn.Sequential(module.convolution, nn.Flatten(), module.layer), inputs)
    model, one = passed(module, inputs, BookKeeping())
    rows = torch.cat([part.flatten(1) for part in model.engine.rows(one, None, 0, N)], dim=1)
    np.testing.assert_allclose(rows.numpy(), one_by_one(module, inputs), atol=1e-5)


def test_a_backward_pass_leaves_no_gradient_on_parameters():
    module = nn.Sequential(nn.Linear(8, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    model, _ = passed(module, torch.randn(N, 8), BookKeeping())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Flatten(), nn.Linear(81, 4), nn.Linear(4, 2)],
        lambda: [nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(147, 4), nn.Linear(4, 2)],
    ],
)
def test_a_row_that_was_looked_at_leaves_the_sum_as_it_is(layers):
    inputs = torch.randn(N, 1, 9, 9)
    inputs[2] = float("inf")
    model, one = passed(nn.Sequential(*layers()), inputs, BookKeeping())
    pipeline = dp.Pipeline(mechanism=(dp.Clip(0.01), dp.Gaussian(1.0)))
    memory = pipeline.init_client(layout_of(model), seed=dp.PublicSeed(0), client=0)
    expected = pipeline.clip(units_of(model, one), memory)
    assert expected.not_finite == 1
    for _ in range(2):
        looked_at = model.engine.rows(one, None, 4, 5)
        for _ in range(2):
            total = pipeline.clip(units_of(model, one), memory)
            assert np.array_equal(total.vector(), expected.vector())
            assert total.not_finite == 1
        assert all(map(torch.equal, looked_at, model.engine.rows(one, None, 4, 5)))


def test_an_own_stage_gets_rows():
    module, inputs = nn.Linear(8, 3), torch.randn(N, 8)
    model, one = passed(module, inputs, BookKeeping())
    units = units_of(model, one)
    np.testing.assert_allclose(
        np.concatenate([np.asarray(part) for part in units.rows().layers], axis=1),
        one_by_one(module, inputs),
        atol=1e-6,
    )


def test_units_of_another_layout_are_refused():
    model, one = passed(nn.Linear(8, 3), torch.randn(N, 8), BookKeeping())
    units = units_of(model, one)
    assert isinstance(units, BookedUnits)
    pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
    memory = pipeline.init_client(Layout.of(5), seed=dp.PublicSeed(0), client=0)
    with pytest.raises(ValueError, match="does not fit the memory's"):
        pipeline.clip(units, memory)


def test_a_model_that_is_not_served_says_why_and_auto_takes_examples_alone(caplog):
    module, inputs = nn.Sequential(nn.Linear(8, 4), nn.PReLU()), torch.randn(N, 8)
    with pytest.raises(dp.NotPrivate, match=r"layer '1' \(PReLU\) has no formula. Give engine=Isolated"):
        passed(module, inputs, BookKeeping())
    model, one = passed(module, inputs, "auto")
    assert model.engine.units(one, layout_of(model)) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "PReLU" in caplog.text


class Losses:
    """Holds a loss as a method, as a task does."""

    def __init__(self):
        self.kept = []

    def mean(self, outputs, _):
        return mean_square(outputs, None)


def test_a_loss_that_is_a_method_of_a_task_lets_a_step_see_by_identity_that_nothing_moved():
    model, _ = passed(nn.Linear(8, 3), torch.randn(N, 8), BookKeeping(), loss=Losses().mean)
    objects = model.unmoved._objects
    assert objects is not None
    assert objects.tell_all
    assert not model.unmoved.moved()
    with torch.no_grad():
        next(model.parameters()).data[0] += 1
    assert model.unmoved.moved() == ["weight"]


def test_convolutions_in_float64_keep_their_memory_layout():
    layer, images = nn.Conv2d(2, 4, 3, dilation=2, groups=2), torch.randn(4, 2, 9, 9)
    assert takes_channels_last(layer, images)
    assert not takes_channels_last(layer.double(), images.double())

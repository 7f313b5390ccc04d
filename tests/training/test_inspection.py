"""Which modules may be trained: those in which no example touches another's gradient, and no buffer remembers."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import dpcomp as dp
from dpcomp.lab.tasks.handwritten_digits import digits_mlp
from dpcomp.training.pytorch import BookKeeping, Isolated, Opacus, PrivateModel, inspection
from dpcomp.training.pytorch.rows.passes import floating
from experiments.data.models import cifar_cnn, fashion_cnn, logistic_regression, resnet18_group_norm

torch.set_num_threads(1)
ROW = (6,)
IMAGE = (4, 5, 5)


def loss_of(outputs, _=None):
    """Return the mean over examples of a non-linear function of all outputs: in a linear one, mixing could cancel."""
    total = 0.0
    for part in floating(outputs):
        weights = torch.arange(1, 1 + part.shape[-1]).to(part).cos() if part.ndim > 1 else 1.0
        total = total + (part * weights).sin().reshape(len(part), -1).sum(dim=1).mean()
    return total


def private_model(module, example, engine=Opacus()):
    """Inspect a module with examples of a shape and type."""
    generator = torch.Generator().manual_seed(0)
    if example.is_floating_point():
        inputs = torch.randn((9, *example.shape), generator=generator)
    else:
        inputs = torch.randint(0, 2, (9, *example.shape), generator=generator).to(example)
    return inspection.private_model(module, loss_of, inputs, None, engine=engine)


class Layer(nn.Module):
    """A layer made of one function of the inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


class WithWeight(nn.Module):
    """A layer with a weight of its own, for which Opacus falls back on functorch."""

    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(6))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(self, inputs * self.weight)


class InTraining(nn.Module):
    """A function of the inputs while training, and nothing in evaluation."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs) if self.training else inputs


class RunningMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, inputs: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean(dim=0)
        return inputs


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen += len(inputs)
        return inputs


class LateBuffer(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.register_buffer("last", inputs.detach().mean(dim=0))
        return inputs


class Remembers(nn.Module):
    """Keeps the last batch's mean in a plain attribute, and subtracts it from the next batch."""

    last = 0.0

    def forward(self, inputs: Tensor) -> Tensor:
        centred, self.last = inputs - self.last, inputs.detach().mean(dim=0)
        return centred


def row_model(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), *layers, nn.Tanh(), nn.Linear(6, 3))


def image_model(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3), layer, nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


NORMALISERS = {
    "plain": lambda: nn.BatchNorm2d(4),
    "affine=False": lambda: nn.BatchNorm2d(4, affine=False),
    "frozen weights": lambda: frozen(nn.BatchNorm2d(4)),
    "evaluation": lambda: nn.BatchNorm2d(4).eval(),
    "no statistics": lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False),
    "synchronised": lambda: nn.SyncBatchNorm(4),
    "lazy": lambda: nn.LazyBatchNorm2d(affine=False),
    "a subclass": lambda: type("Mine", (nn.BatchNorm2d,), {})(4),
    "instance norm with statistics": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "frozen instance norm with statistics": lambda: frozen(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
}

MIXERS = {
    "subtracts the mean": lambda: Layer(lambda x: x - x.mean(dim=0)),
    "divides by the deviation": lambda: Layer(lambda x: x / (x.std(dim=0) + 1e-5)),
    "divides by the largest": lambda: Layer(lambda x: x / x.abs().max()),
    "divides by the length": lambda: Layer(lambda x: x / len(x)),
    "adds the neighbour": lambda: Layer(lambda x: x + 0.3 * x.roll(1, dims=0)),
    "adds up what came before": lambda: Layer(lambda x: x.cumsum(dim=0)),
    "attends over the batch": lambda: Layer(lambda x: (x @ x.T).softmax(dim=1) @ x),
    "functional batch norm": lambda: Layer(lambda x: functional.batch_norm(x, None, None, training=True)),
    "detached statistics": lambda: Layer(lambda x: x - x.detach().mean(dim=0)),
    "a weight of its own": lambda: WithWeight(lambda _, x: x - x.mean(dim=0, keepdim=True)),
    "only while training": lambda: InTraining(lambda x: x - x.mean(dim=0)),
    "mixes up pairs": lambda: Layer(lambda x: 0.5 * x + 0.5 * x[torch.randperm(len(x))]),
}

WRITERS = {"mean": RunningMean, "seen": Counter, "last": LateBuffer}


@pytest.mark.parametrize("name", NORMALISERS)
def test_batch_statistics_are_refused_by_name(name):
    with pytest.raises(dp.NotPrivate, match=r"layer '1' \(\w+\) (normalises over the batch|writes statistics)"):
        private_model(image_model(NORMALISERS[name]()), torch.zeros(IMAGE))


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("place", ["inside", "last", "beside dropout"])
def test_layers_that_mix_examples_are_refused_by_trial(name, place):
    layer = MIXERS[name]()
    if place == "inside":
        module = row_model(layer)
    elif place == "last":
        module = nn.Sequential(nn.Linear(6, 6), layer)
    else:
        module = row_model(nn.Dropout(0.3), layer)
    if (name, place) == ("divides by the length", "beside dropout"):
        module = row_model(layer, nn.Dropout(0.3))
    with pytest.raises(dp.NotPrivate, match=r"layer mixes examples|has other outputs"):
        private_model(module, torch.zeros(ROW))


@pytest.mark.parametrize("name", WRITERS)
def test_buffer_writers_are_refused_and_named(name):
    with pytest.raises(dp.NotPrivate, match=f"{name}'] change in a training step"):
        private_model(row_model(WRITERS[name]()), torch.zeros(ROW))


def test_spectral_norm_writes_buffers_too():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3))
    with pytest.raises(dp.NotPrivate):
        private_model(nn.Sequential(layer), torch.zeros(ROW))


def test_what_remembers_a_batch_in_an_attribute_is_refused():
    with pytest.raises(dp.NotPrivate, match=r"attribute 'last' of layer '1' \(Remembers\).* change in a training step"):
        private_model(row_model(Remembers()), torch.zeros(ROW))


def test_a_trainable_layer_with_a_buffer_is_refused():
    layer = WithWeight(lambda self, x: x + self.offset)
    layer.register_buffer("offset", torch.ones(6))
    with pytest.raises(dp.NotPrivate, match="buffers"):
        private_model(row_model(layer), torch.zeros(ROW))


def test_folding_an_axis_into_the_batch_is_refused():
    """Opacus would clip each of the 6 rows that an example becomes: it would count six times."""
    folded = nn.Sequential(
        Layer(lambda x: x.reshape(-1, 4)), nn.Linear(4, 3), Layer(lambda x: x.reshape(-1, 6, 3).mean(dim=1))
    )
    with pytest.raises(dp.NotPrivate, match="sees 198 rows where the batch has 33 examples"):
        private_model(folded, torch.zeros(6, 4))


def test_an_axis_before_the_batch_is_refused():
    swapped = nn.Sequential(
        Layer(lambda x: x.transpose(0, 1)), nn.Linear(3, 3), Layer(lambda x: x.transpose(0, 1).flatten(1))
    )
    for length in (4, 7):  # 4 is the number of examples on trial
        with pytest.raises(dp.NotPrivate):
            private_model(swapped, torch.zeros(length, 3))


def test_what_opacus_cannot_do_is_refused():
    with pytest.raises(dp.NotPrivate, match="Opacus cannot"):
        private_model(nn.Sequential(nn.LSTM(6, 3)), torch.zeros(5, 6))


class FunctionalDropout(nn.Module):
    def __init__(self, *, always: bool):
        super().__init__()
        self.layer, self.always = nn.Linear(6, 6), always

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.dropout(self.layer(inputs), 0.4, training=self.always or self.training)


class Both(nn.Module):
    """Gives a dictionary, with a tuple in it, as language models do."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> dict[str, object]:
        return {"logits": self.one(inputs), "more": (self.two(inputs).squeeze(1), None)}


class Unused(nn.Module):
    """One head of two is never reached by the loss."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        self.unused(inputs)
        return self.used(inputs)


ACCEPTED = {
    "layer norm": lambda: (row_model(nn.LayerNorm(6)), ROW),
    "group norm": lambda: (image_model(nn.GroupNorm(2, 4)), IMAGE),
    "instance norm": lambda: (image_model(nn.InstanceNorm2d(4, affine=True)), IMAGE),
    "dropout": lambda: (row_model(nn.Dropout(0.5)), ROW),
    "two dropouts": lambda: (row_model(nn.Dropout(0.5), nn.Linear(6, 6), nn.AlphaDropout(0.2)), ROW),
    "functional dropout": lambda: (row_model(FunctionalDropout(always=False)), ROW),
    "dropout for ever": lambda: (row_model(FunctionalDropout(always=True)), ROW),
    "a weight of its own": lambda: (row_model(WithWeight(lambda _, x: x.sin())), ROW),
    "a frozen trunk": lambda: (nn.Sequential(frozen(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 3)), ROW),
    "softmax": lambda: (nn.Sequential(nn.Linear(6, 30), nn.Softmax(dim=1)), ROW),
    "one output": lambda: (nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)), ROW),
    "a dictionary": lambda: (Both(), ROW),
    "an unused head": lambda: (Unused(), ROW),
    "sequences": lambda: (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (5, 3)),
    "digits MLP": lambda: (digits_mlp(seed=0), (1, 8, 8)),
    "logistic regression": lambda: (logistic_regression(inputs=64, classes=10, seed=0), (1, 8, 8)),
    "Fashion-MNIST CNN": lambda: (fashion_cnn(seed=0), (1, 28, 28)),
    "CIFAR CNN": lambda: (cifar_cnn(seed=0), (3, 32, 32)),
}


@pytest.mark.parametrize(
    "engine", [Isolated(), pytest.param(Opacus(), marks=pytest.mark.slow)], ids=["Isolated", "Opacus"]
)
@pytest.mark.parametrize("name", ACCEPTED)
def test_honest_modules_are_accepted(name, engine):
    module, shape = ACCEPTED[name]()
    assert isinstance(private_model(module, torch.zeros(shape), engine), PrivateModel)


@pytest.mark.slow
def test_a_residual_network_with_group_norm_is_accepted():
    private_model(resnet18_group_norm(seed=0), torch.zeros(3, 32, 32))


@pytest.mark.parametrize("shape", [(7,), (1,)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_token_models_are_accepted(shape, dtype):
    module = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(4 * shape[0], 3))
    private_model(module, torch.zeros(shape, dtype=dtype))


def test_token_models_that_mix_are_refused():
    module = nn.Sequential(nn.Embedding(11, 4), Layer(lambda x: x - x.mean(dim=0)), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(dp.NotPrivate, match="layer mixes examples"):
        private_model(module, torch.zeros(1, dtype=torch.int64))


def test_small_gradients_hide_nothing():
    mixer, faint = Layer(lambda x: x - x.mean(dim=0)), Layer(lambda x: 1e-6 * x)
    with pytest.raises(dp.NotPrivate, match="layer mixes examples"):
        private_model(nn.Sequential(row_model(mixer), faint), torch.zeros(ROW))
    with pytest.raises(dp.NotPrivate):
        private_model(nn.Sequential(nn.Linear(6, 6), mixer, faint), torch.zeros(ROW))


def test_a_trial_that_shows_nothing_is_no_acceptance():
    with pytest.raises(dp.NotPrivate, match="shows nothing"):
        private_model(nn.Sequential(nn.Linear(6, 6), Layer(lambda x: 0 * x)), torch.zeros(ROW))


def test_the_module_and_the_generators_are_left_as_they_were():
    module = row_model(nn.Dropout(0.5))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(3)
    states = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    model = private_model(module, torch.zeros(ROW))
    assert torch.equal(states[0], torch.get_rng_state())
    np.testing.assert_equal(states[1], np.random.get_state())  # noqa: NPY002
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None and parameter.grad_sample is None for parameter in model.parameters())


class Rolled(torch.autograd.Function):
    """The identity, whose rule for `vmap` gives each example the values of another."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0]

    @staticmethod
    def vmap(info, in_dims, x):
        return torch.where(x.abs().amax() > 1e3, x.roll(1, 0), x), 0


class Rolls(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs):
        return Rolled.apply(self.layer(inputs))


def test_a_function_with_a_rule_of_its_own_for_vmap_gets_each_example_alone():
    inputs, targets = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    loss = nn.functional.cross_entropy
    model = inspection.private_model(Rolls(), loss, inputs, targets, engine=Isolated()).train()
    inputs[0] *= 1e6
    loss(model(inputs), targets).backward()
    (rows, _) = model.engine.rows(model.passes[0], targets, 0, 5)
    for i in range(1, 5):
        alone = torch.autograd.grad(
            loss(model._module(inputs[i : i + 1]), targets[i : i + 1]), model._module.layer.weight
        )
        torch.testing.assert_close(rows[i], alone[0])


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_map_that_is_wrong_for_a_small_row_beside_large_ones_is_left(which, monkeypatch):
    inputs, targets = torch.randn(3, 6), torch.tensor([0, 1, 2])
    inputs[(which + 1) % 3] *= 1e6
    loss = nn.functional.cross_entropy
    model = inspection.private_model(nn.Linear(6, 3), loss, inputs, targets, engine=Isolated()).train()
    loss(model(inputs), targets).backward()
    engine, one = model.engine, model.passes[0]
    engine.leave_wrong_map(one, targets)
    assert not engine.in_a_loop
    right = engine._mapped

    def wrong(examples):
        rows = right(examples)
        rows[0][which] *= 1.1
        return rows

    monkeypatch.setattr(engine, "_mapped", wrong)
    engine.leave_wrong_map(one, targets)
    assert engine.in_a_loop


class Features(nn.Module):
    """A linear layer on random features that are drawn anew in each pass, from a seed: the same for all examples."""

    def __init__(self, p):
        super().__init__()
        self.layer, self.drop = nn.Linear(6, 3), nn.Dropout(p)

    def forward(self, x):
        return self.layer(self.drop(x * torch.randn(6, generator=torch.Generator().manual_seed(0))))


@pytest.mark.parametrize("engine", [Isolated(), BookKeeping()], ids=["Isolated", "BookKeeping"])
@pytest.mark.parametrize("p", [0.0, 1e-7])
def test_numbers_of_a_fixed_seed_are_drawn_for_each_example_alone(p, engine):
    inputs, targets = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    model = inspection.private_model(Features(p), nn.functional.cross_entropy, inputs, targets, engine=engine)
    assert getattr(model.engine, "isolated", model.engine).in_a_loop


@pytest.mark.parametrize("engine", [Isolated(), BookKeeping()], ids=["Isolated", "BookKeeping"])
def test_dropout_keeps_the_map(engine):
    inputs, targets = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))
    model = inspection.private_model(module, nn.functional.cross_entropy, inputs, targets, engine=engine)
    assert not getattr(model.engine, "isolated", model.engine).in_a_loop


@dataclasses.dataclass
class _Output:
    logits: torch.Tensor


class _OfADataclass(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return _Output(self.head(x))


@pytest.mark.parametrize("engine", [BookKeeping(), Isolated(), "auto"])
def test_outputs_in_which_no_tensor_is_found_are_refused_by_their_type(engine):
    inputs, targets = torch.randn(4, 6), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(dp.NotPrivate, match="of type _Output: return tensors"):
        inspection.private_model(
            _OfADataclass(), lambda o, y: functional.cross_entropy(o.logits, y), inputs, targets, engine=engine
        )


@pytest.mark.parametrize("kept", [torch.nn.functional, threading.Lock()], ids=["a module of Python", "a lock"])
def test_a_model_that_cannot_be_copied_is_refused_by_its_attribute(kept):
    module = nn.Sequential(nn.Linear(6, 3))
    module[0].functions = kept
    with pytest.raises(
        dp.NotPrivate, match=r"attribute 'functions' of layer '0', a (module|lock) .*copy.deepcopy takes"
    ):
        inspection.private_model(module, functional.cross_entropy, torch.randn(4, 6), torch.zeros(4, dtype=torch.int64))

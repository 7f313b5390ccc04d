"""State outside parameters and buffers: whatever model or loss keep of the data is refused by the name of its place."""

import copy
import functools
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import dpcomp as dp
from dpcomp.privacy import Poisson
from dpcomp.training.pytorch import Isolated, Opacus
from dpcomp.training.pytorch.checks.unmoved import Unmoved
from dpcomp.training.pytorch.inspection import private_model
from dpcomp.training.pytorch.local_training import ClientLevel, ExampleLevel
from dpcomp.training.pytorch.rows.parameters import layout_of, read, write
from dpcomp.training.pytorch.tasks.examples import ArrayExamples
from tests.training.private_client import Client, clean, examples, noisy

ENGINES = pytest.mark.parametrize("engine", [Isolated(), Opacus()], ids=["Isolated", "Opacus"])
KINDS = {
    "a tensor": (lambda: torch.zeros(6), lambda held, x: x.detach().mean(dim=0)),
    "a tensor in place": (lambda: torch.zeros(6), lambda held, x: held.add_(x.detach().mean(dim=0))),
    "a number": (lambda: 0.5, lambda held, x: max(held, float(x.abs().max()))),
    "a large number": (lambda: 1e4, lambda held, x: max(held, float(x.abs().max()))),
    "a large negative number": (lambda: -1e4, lambda held, x: min(held, float(x.min()))),
    "a count": (lambda: 0, lambda held, x: held + len(x)),
    "none": (lambda: None, lambda held, x: x.detach().mean(dim=0) if held is None else held),
    "a string": (lambda: "", lambda held, x: str(len(x))),
    "a truth": (lambda: False, lambda held, x: True),
    "a list": (list, lambda held, x: held.append(float(x.sum())) or held),
    "a list of tensors": (lambda: [torch.zeros(6)], lambda held, x: held[0].copy_(x.detach()[0]) is None or held),
    "a dictionary": (dict, lambda held, x: held | {"mean": x.detach().mean()}),
    "a nested dictionary": (lambda: {"a": [{}]}, lambda held, x: held["a"][0].update(n=len(x)) or held),
    "a set": (set, lambda held, x: held.add(len(x)) or held),
    "an array": (lambda: np.zeros(6), lambda held, x: held + 1),
    "an object": (lambda: types_of(mean=0.0), lambda held, x: setattr(held, "mean", float(x.mean())) or held),
}


class Plain:
    """An object with attributes."""


def types_of(**values):
    plain = Plain()
    vars(plain).update(values)
    return plain


class Keeps(nn.Module):
    """Writes an attribute in its forward pass."""

    def __init__(self, first, write_it, *, only_first: bool = False):
        super().__init__()
        self.kept, self.write_it, self.only_first = first, write_it, only_first

    def forward(self, inputs):
        self.kept = self.write_it(self.kept, inputs)
        return inputs


class FrozenHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 4), nn.Linear(4, 3).requires_grad_(False)
        self.register_buffer("offset", torch.zeros(6))
        self.scale, self.table = torch.ones(6), {"a": [1.0, 2]}

    def forward(self, inputs):
        return self.head(self.layer((inputs + self.offset) * self.scale))


class CenterLoss(nn.Module):
    """Pulls to a centre that is kept in the loss."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(3))
        self.weight = nn.Parameter(torch.ones(()))
        self.factor = 1.0

    def forward(self, outputs, _):
        return self.factor * (self.weight.detach() * (outputs - self.center).square()).sum(dim=1).mean()


def network(layer):
    return nn.Sequential(nn.Linear(6, 6), layer, nn.Tanh(), nn.Linear(6, 3))


class TestAtTheDoor:
    @ENGINES
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_a_layer_writes_to_an_attribute_is_refused_by_name(self, kind, engine):
        first, write_it = KINDS[kind]
        with pytest.raises(dp.NotPrivate, match=r"attribute 'kept' of layer '1' \(Keeps\).* change in a training step"):
            private_model(network(Keeps(first(), write_it)), functional.cross_entropy, *examples(4), engine=engine)

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_a_loss_writes_is_refused_by_name_and_the_loss_of_the_script_stays_as_it_was(self, kind):
        first, write_it = KINDS[kind]

        class Loss:
            def __init__(self):
                self.kept = first()

            def __call__(self, outputs, targets):
                self.kept = write_it(self.kept, outputs[:, :1].expand(-1, 6))
                return functional.cross_entropy(outputs, targets)

        loss = Loss()
        with pytest.raises(dp.NotPrivate, match=r"attribute 'kept' of the loss \(Loss\).* change in a training step"):
            private_model(nn.Linear(6, 3), loss, *examples(4))
        assert repr(loss.kept) == repr(first()) or kind == "an object"

    def test_a_class_is_looked_at_too(self):
        class Shared(nn.Module):
            mean = 0.0

            def forward(self, inputs):
                type(self).mean = 0.9 * self.mean + 0.1 * float(inputs.mean())
                return inputs

        with pytest.raises(dp.NotPrivate, match=r"attribute 'mean' of layer '1' \(Shared\)"):
            private_model(network(Shared()), functional.cross_entropy, *examples(4))

    def test_a_writer_in_a_module_that_is_not_registered_is_found(self):
        inner = nn.BatchNorm1d(6)

        class Hidden(nn.Module):
            def __init__(self):
                super().__init__()
                self.hidden = [inner]

            def forward(self, inputs):
                return self.hidden[0](inputs)

        with pytest.raises(dp.NotPrivate, match="attribute 'hidden' of layer '1'"):
            private_model(network(Hidden()), functional.cross_entropy, *examples(4))

    @pytest.mark.parametrize("kind", ["a tensor", "a number", "a count", "none", "a list"])
    def test_client_level_training_refuses_it_like_a_buffer(self, kind):
        pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), unit="client", trust="server")
        module = network(Keeps(KINDS[kind][0](), KINDS[kind][1]))
        with pytest.raises(dp.NotPrivate, match=r"attribute 'kept' of layer '1'.*never sent"):
            ClientLevel(
                module,
                functional.cross_entropy,
                pipeline,
                examples=examples(4),
                make_optimizer=lambda model, _: torch.optim.SGD(model.parameters(), lr=0.1),
                secret=dp.SecretSeed(0),
                local_steps=1,
                local_sampling=Poisson(0.5),
            )

    @pytest.mark.parametrize("moved", [True, False])
    def test_example_level_training_refuses_it_before_the_charge(self, moved):
        pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=Poisson(0.5))
        module, data = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), examples(8)
        module.register_buffer("offset", torch.zeros(1))
        local = ExampleLevel(
            module,
            functional.cross_entropy,
            pipeline,
            examples=data,
            engine="auto",
            make_optimizer=lambda model, _: torch.optim.SGD(model.parameters(), lr=0.1),
            secret=dp.SecretSeed(0),
            local_steps=2,
            expected_batch_size=4.0,
            physical_batch_size=8,
        )
        memory, ledger = pipeline.init_client(layout_of(module), dp.PublicSeed(0), client=0), dp.Ledger()
        client = ArrayExamples(*data, torch.device("cpu"))
        if moved:
            module.offset += 1
            with pytest.raises(dp.NotPrivate, match="offset"):
                local.train(read(module), client, memory, ledger)
        else:
            local.train(read(module), client, memory, ledger)
        assert ledger.charged(memory.address) == (not moved)

    @ENGINES
    def test_what_torch_and_the_engine_keep_is_left_alone(self, engine):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.table = nn.Linear(6, 6), nn.Linear(6, 3), {"a": [1.0, float("nan")]}
                self.view = self.a.weight.data[:3]

            def forward(self, inputs):
                return self.b(torch.tanh(self.a(inputs)))

        client = Client(noisy(), Tied(), (6,), engine=engine)
        for seed in range(3):
            client.step(*examples(5, seed=seed))
        client.model.eval()
        client.model.train()
        client.step(*examples(5))
        assert client.permit.used == 4

    def test_recurrent_layers_are_left_alone(self):
        class Last(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

            def forward(self, inputs):
                return self.out(self.lstm(inputs.reshape(-1, 2, 3))[0][:, -1])

        client = Client(noisy(), Last(), (6,), engine=Isolated())
        for seed in range(2):
            client.step(*examples(5, seed=seed))
        assert client.permit.used == 2


SET = {
    "a buffer": (lambda m, x: m.offset.copy_(x), "offset"),
    "a frozen head": (lambda m, x: m.head.weight.data.copy_(x[:4]), "head.weight"),
    "a tensor": (lambda m, x: setattr(m, "scale", x), r"attribute 'scale' of the model \(FrozenHead\)"),
    "a tensor in place": (lambda m, x: m.scale.mul_(x), "attribute 'scale'"),
    "a table": (lambda m, x: m.table["a"].append(float(x.mean())), "attribute 'table'"),
    "a new attribute": (lambda m, x: setattr(m.layer, "seen", 3), r"attribute 'seen' of layer 'layer' \(Linear\)"),
}


class Acts(nn.Module):
    """A layer with a function, an object of a library, a table with an attribute, and a method of an object."""

    def __init__(self):
        super().__init__()
        self.layer, self.act = nn.Linear(6, 3), torch.tanh
        self.noise, self.table = torch.distributions.Normal(0.0, 1.0), Table()
        self.table.scale = 1.0
        self.bound, self.around = Losses().mean, with_state([1.0])
        self.part = functools.partial(torch.add, torch.zeros(3))

    def forward(self, inputs):
        return self.act(self.layer(inputs))


class Table(dict):
    """A mapping that may have attributes."""


class Losses:
    """Has a loss as a method, which reads an attribute, and others that it does not read."""

    def __init__(self, *, write: bool = False):
        self.largest, self.unread, self.write = 1.0, 0, write

    def mean(self, outputs, targets):
        return functional.cross_entropy(outputs, targets) / self._limit(outputs)

    def _limit(self, outputs):
        if self.write:
            self.largest = max(self.largest, float(outputs.detach().max()))
        return self.largest


def with_state(state, *, write: bool = False):
    def loss(outputs, targets):
        if write:
            state[0] = max(state[0], float(outputs.detach().max()))
        return functional.cross_entropy(outputs, targets) / state[0]

    return loss


EXCHANGED = {
    "a function": (lambda m: setattr(m, "act", torch.sigmoid), "attribute 'act'"),
    "an object of a library": (
        lambda m: setattr(m, "noise", torch.distributions.Normal(0.0, 1.0)),
        "attribute 'noise'",
    ),
    "a tensor in one": (lambda m: setattr(m.noise, "loc", torch.ones(())), "attribute 'noise'"),
    "an attribute of a mapping": (lambda m: setattr(m.table, "scale", 2.0), "attribute 'table'"),
    "an attribute behind a method": (lambda m: setattr(m.bound.__self__, "largest", 2.0), "attribute 'bound'"),
    "a variable around a function": (
        lambda m: m.around.__closure__[0].cell_contents.append(2.0),
        "attribute 'around'",
    ),
    "an argument of a partial": (lambda m: m.part.args[0].add_(1.0), "attribute 'part'"),
    "a hook": (lambda m: m.layer.register_forward_hook(lambda *_: None), "hooks of layer 'layer'"),
    "a hook before": (lambda m: m.register_forward_pre_hook(lambda *_: None), "hooks of the model"),
    "a backward hook": (lambda m: m.layer.register_full_backward_hook(lambda *_: None), "hooks of layer 'layer'"),
}


@pytest.mark.parametrize("kind", EXCHANGED)
def test_what_is_exchanged_is_found(kind):
    change, name = EXCHANGED[kind]
    module = Acts()
    guard = Unmoved(module)
    assert guard.moved() == []
    guard.remember()
    assert guard.moved() == []
    change(module)
    (found,) = guard.moved()
    assert found.startswith(name)


def test_a_hook_of_all_modules_is_found():
    guard = Unmoved(nn.Linear(6, 3))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert guard.moved() == ["hooks of all modules"]
    finally:
        handle.remove()
    assert guard.moved() == []


def test_what_a_loss_reads_beside_its_arguments_is_held():
    losses, state = Losses(), [1.0]
    for loss, change in (
        (losses.mean, lambda: setattr(losses, "largest", 2.0)),
        (with_state(state), lambda: state.append(2.0)),
    ):
        guard = Unmoved(nn.Linear(6, 3), loss)
        losses.unread += 1
        assert guard.moved() == []
        change()
        assert len(guard.moved()) == 1


@ENGINES
@pytest.mark.parametrize("loss", [Losses(write=True).mean, with_state([1.0], write=True)])
def test_a_loss_that_keeps_what_it_saw_in_its_object_or_around_it_is_refused(loss, engine):
    with pytest.raises(dp.NotPrivate, match=r"of the loss \((method|function)\).* change in a training step"):
        private_model(nn.Linear(6, 3), loss, *examples(4), engine=engine)


OTHER_TIMES = ("between rounds", "after the last step")


class TestInTraining:
    @pytest.mark.parametrize(
        ("kind", "where"),
        [
            *((kind, "in a round") for kind in SET),
            *(("a buffer", where) for where in OTHER_TIMES),
            *(
                pytest.param(kind, where, marks=pytest.mark.slow)
                for kind in SET
                for where in OTHER_TIMES
                if kind != "a buffer"
            ),
        ],
    )
    def test_what_a_script_sets_is_refused_by_name(self, kind, where):
        change, name = SET[kind]
        module = FrozenHead()
        client = Client(noisy(), module, (6,), engine=Isolated())
        client.step(*examples(5))
        with torch.no_grad():
            change(module, examples(5)[0].mean(dim=0))
        used = client.permit.used
        act = {
            "between rounds": lambda: client.optimizer.begin(client.memory, client.permit),
            "in a round": lambda: client.step(*examples(5)),
            "after the last step": client.optimizer.update,
        }[where]
        with pytest.raises(dp.NotPrivate, match=rf"{name}.*moved since the last step"):
            act()
        assert client.permit.used == used

    def test_asking_for_readiness_takes_no_moved_parameter_for_released(self):
        client = Client(noisy(), nn.Linear(6, 3), (6,), engine=Isolated())
        client.step(*examples(5))
        with torch.no_grad():
            client.model.weight.add_(examples(5)[0].mean(dim=0))
        client.optimizer.refuse_unready(client.memory)  # for the next round
        for act in (client.optimizer.update, lambda: client.step(*examples(5))):
            with pytest.raises(dp.NotPrivate, match=r"'weight'.*moved since the last step"):
                act()

    @ENGINES
    @pytest.mark.parametrize("what", ["center", "weight", "factor"])
    def test_what_a_loss_holds_is_held_to_its_values(self, what, engine):
        loss = CenterLoss()
        client = Client(noisy(), nn.Linear(6, 3), (6,), loss=loss, engine=engine)
        client.step(*examples(5))
        with torch.no_grad():
            if what == "factor":
                loss.factor = 2.0
            else:
                getattr(loss, what).add_(1.0)
        for act in (lambda: client.step(*examples(5)), lambda: client.optimizer.begin(client.memory, client.permit)):
            with pytest.raises(dp.NotPrivate, match=rf"'{what}' of the loss \(CenterLoss\).*moved"):
                act()
        assert client.permit.used == 1

    def test_attributes_of_functions_and_arguments_of_partials_are_looked_at(self):
        centre = torch.zeros(3)

        def loss(outputs, targets, centre):
            return functional.cross_entropy(outputs - centre, targets)

        guard = Unmoved(nn.Linear(6, 3), functools.partial(loss, centre=centre))
        assert guard.moved() == []
        centre += 1
        assert guard.moved() == ["an argument of the loss (partial)"]
        loss.seen = 3
        assert Unmoved(nn.Linear(6, 3), loss).moved() == []
        guard = Unmoved(nn.Linear(6, 3), loss)
        loss.seen = 4
        assert guard.moved() == ["attribute 'seen' of the loss (function)"]

    def test_trainable_parameters_may_be_set_between_rounds(self):
        client = Client(clean(0.3), FrozenHead(), (6,))
        write(client.model, client.parameters() + 1)
        client.optimizer.begin(client.memory, client.permit)
        client.step(*examples(5))
        assert client.permit.used == 1

    def test_what_no_watch_sees_is_assumed(self):
        client = Client(noisy(), nn.Linear(6, 3), (6,))
        assert "model and loss hold no private data" in client.optimizer.assumptions
        assert "model and loss hold no private data" in str(client.ledger.guarantee(delta=1e-5))

    @ENGINES
    @pytest.mark.parametrize("other", [nn.BatchNorm1d(6), nn.Identity(), nn.Linear(6, 6)])
    def test_an_exchanged_layer_is_refused_by_name(self, other, engine):
        module = network(nn.ReLU())
        client = Client(noisy(), module, (6,), engine=engine)
        module[1] = other
        for act in (lambda: client.step(*examples(5)), lambda: client.optimizer.begin(client.memory, client.permit)):
            with pytest.raises(dp.NotPrivate, match=rf"layer '1' was exchanged .*ReLU, and is {type(other).__name__}"):
                act()
        assert client.permit.used == 0

    @pytest.mark.filterwarnings("ignore:.*weight_norm")
    @pytest.mark.parametrize("add", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
    def test_a_reparametrised_layer_is_refused_by_name(self, add):
        module = network(nn.ReLU())
        client = Client(noisy(), module, (6,), engine=Isolated())
        add(module[0])
        with pytest.raises(dp.NotPrivate, match=r"layer '0' was exchanged|'0\.weight'"):
            client.step(*examples(5))


def test_a_walk_ends_where_objects_refer_to_each_other():
    module = nn.Linear(6, 3)
    module.me, module.more = types.SimpleNamespace(), [1]
    module.more.append(module.more)
    guard = Unmoved(module)
    assert guard.moved() == []
    module.more.append(2)
    assert guard.moved() == ["attribute 'more' of the model (Linear)"]
    assert np.isfinite(read(copy.deepcopy(module))).all()

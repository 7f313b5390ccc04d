"""What a trial says: every model, loss and batch that cannot be trained is refused by one error that names a remedy."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import Dataset, TensorDataset

import dpcomp as dp
from dpcomp.training.pytorch import Isolated, Opacus, make_private
from dpcomp.training.pytorch.inspection import private_model
from dpcomp.training.pytorch.rows.parameters import write
from tests.training.private_client import Client, clean, examples, noisy

ENGINES = pytest.mark.parametrize(
    "engine", [Isolated(), pytest.param(Opacus(), marks=pytest.mark.slow)], ids=["Isolated", "Opacus"]
)


def network(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), *layers, nn.Tanh(), nn.Linear(6, 3))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(6, 3), function

    def forward(self, *inputs):
        return self.function(self.layer, *inputs)


def scripted() -> nn.Module:
    return nn.Sequential(torch.jit.trace(nn.Linear(6, 6), torch.zeros(2, 6)), nn.Linear(6, 3))


def pruned() -> nn.Module:
    module = network()
    prune.l1_unstructured(module[0], "weight", amount=0.5)
    return module


def old_weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 6)), nn.Linear(6, 3))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(5, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, inputs):
        return self.out(self.embedding(inputs.argmax(dim=1)))


MODULES = {
    "sparse": (Tokens, r"layer 'embedding' \(Embedding\) gives sparse gradients.*sparse=False"),
    "old weight norm": (old_weight_norm, r"layer '0' \(Linear\).* 'weight'.*parametrizations.weight_norm"),
    "pruned": (pruned, r"layer '0' \(Linear\).* 'weight'.*prune.remove"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 3)), r"layer '0' \(LazyLinear\).*Run one batch"),
    "scripted": (scripted, r"layer '0' \(\w+\) was compiled by torch.jit"),
    "in place": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3)), r"inputs in place.*'0' \(ReLU\)"),
    "in place ELU": (lambda: nn.Sequential(nn.ELU(inplace=True), nn.Linear(6, 3)), r"inputs in place.*'0' \(ELU\)"),
    "in place dropout": (
        lambda: nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(6, 3)),
        r"inputs in place.*'0' \(Dropout\)",
    ),
    "in place by hand": (lambda: Function(lambda layer, x: layer(x.mul_(0.5))), "changes its inputs in place"),
    "complex outputs": (lambda: Function(lambda layer, x: torch.fft.fft(layer(x))), "complex outputs.*view_as_real"),
    "another error": (lambda: Function(lambda layer, x: {}["no such key"]), "fails with KeyError: 'no such key'"),
    "an error of its own": (
        lambda: Function(lambda layer, x: fail()),
        r"33 in the batch.*fails with Mine: of one line",
    ),
}


class Mine(Exception):
    """An exception of no class that a library raises."""


def fail():
    raise Mine("of one line\nand a second")


@pytest.mark.filterwarnings("ignore:.*weight_norm", "ignore:.*jit")
@ENGINES
@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_cannot_be_trained_is_named(name, engine):
    make, match = MODULES[name]
    with pytest.raises(dp.NotPrivate, match=match) as refusal:
        private_model(make(), functional.cross_entropy, *examples(33), engine=engine)
    assert "second" not in str(refusal.value)


def test_a_batch_is_left_as_it_was():
    inputs, targets = examples(4)
    before = inputs.clone()
    with pytest.raises(dp.NotPrivate):
        private_model(MODULES["in place"][0](), functional.cross_entropy, inputs, targets)
    assert torch.equal(inputs, before)


X, Y = examples(9)
BATCHES = {
    "complex": ((X + 0j, Y), "the inputs are torch.complex64.*view_as_real"),
    "nested": ((torch.nested.nested_tensor(list(X), layout=torch.jagged), Y), "the inputs are a tensor that is nested"),
    "sparse": ((X.to_sparse(), Y), "the inputs are a tensor that is of layout torch.sparse_coo"),
    "packed": ((pack_sequence([X[0], X[0]]), Y), "the inputs are a PackedSequence.*pack them in the model"),
    "another axis first": (((X, X.T), Y), r"the inputs\[1\] have shape \(6, 9\) in a batch of 9 examples"),
    "by name": (({"x": X, "mask": X.T}, Y), r"the inputs\['mask'\] have shape"),
    "targets": ((X, {"labels": Y[:4]}), r"the targets\['labels'\] have shape \(4,\)"),
    "no axis": ((torch.tensor(3.0), Y), "no tensor with an axis|have shape"),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_of_another_form_is_refused_by_the_name_of_its_part(name):
    batch, match = BATCHES[name]
    with pytest.raises(dp.NotPrivate, match=match):
        private_model(nn.Linear(6, 3), functional.cross_entropy, *batch)


class Ragged(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, i):
        return torch.ones(i + 1), i % 3


@pytest.mark.parametrize(
    ("collate_fn", "match"),
    [
        (None, r"fails on 9 examples .* RuntimeError: .*give collate_fn="),
        (lambda _: fail(), "collate_fn fails on 9 examples of the data set with Mine: of one line;"),
    ],
)
def test_a_collate_function_that_fails_is_named(collate_fn, match):
    module = nn.Linear(6, 3)
    sgd = torch.optim.SGD(module.parameters(), lr=0.1)
    arguments = {"secret": dp.SecretSeed(0), "expected_batch_size": 3, "steps": 1}
    with pytest.raises(dp.NotPrivate, match=match):
        make_private(module, sgd, Ragged(), noisy(), loss=functional.cross_entropy, collate_fn=collate_fn, **arguments)


def triplet(outputs, _):
    apart = (outputs - outputs.roll(1, 0)).square().sum(1) - (outputs - outputs.roll(2, 0)).square().sum(1)
    return functional.relu(1.0 + apart).mean()


def in_place_targets(outputs, targets):
    return functional.cross_entropy(outputs, targets.add_(0))


LOSSES = {
    "random": (lambda out, y: functional.cross_entropy(out + torch.randn_like(out), y), "loss draws random numbers"),
    "dropout": (lambda out, y: functional.cross_entropy(functional.dropout(out, 0.5), y), "loss draws random numbers"),
    "triplet": (triplet, "not the mean of the losses of its examples"),
    "a vector": (lambda out, y: functional.cross_entropy(out, y, reduction="none"), r"shape \(33,\): return the mean"),
    "a number": (lambda out, y: float(functional.cross_entropy(out, y)), "of type float: return the mean"),
    "nothing": (lambda out, y: None, "of type NoneType: return the mean"),
    "in place": (in_place_targets, "changes its targets in place"),
    "an error": (lambda out, y: fail(), "33 in the batch.*fails with Mine: of one line"),
}


@ENGINES
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_cannot_be_trained_is_named(name, engine):
    loss, match = LOSSES[name]
    with pytest.raises(dp.NotPrivate, match=match):
        private_model(network(), loss, *examples(33), engine=engine)


class TestPenalties:
    @ENGINES
    def test_on_weights_are_refused_at_the_door(self, engine):
        module = network()

        def loss(outputs, targets):
            return functional.cross_entropy(outputs, targets) + 0.1 * module[0].weight.square().sum()

        with pytest.raises(dp.NotPrivate, match=r"\['0.weight'\] besides through .* weight_decay="):
            private_model(module, loss, *examples(4), engine=engine)
        assert module[0].weight.grad is None

    @ENGINES
    def test_of_a_loss_that_holds_the_model_are_refused_too(self, engine):
        class Penalised(nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model = model

            def forward(self, outputs, targets):
                return functional.cross_entropy(outputs, targets) + self.model[2].bias.abs().sum()

        module = network()
        with pytest.raises(dp.NotPrivate, match=r"\['2.bias'\] besides through"):
            private_model(module, Penalised(module), *examples(4), engine=engine)

    def test_of_the_script_are_refused_in_training(self):
        client = Client(clean(0.3), network(), (6,), engine=Isolated())
        weight = client.model._module[0].weight
        client.loss = lambda out, y: functional.cross_entropy(out, y) + weight.square().sum()
        with pytest.raises(dp.NotPrivate, match=r"\['0.weight'\] past the outputs .*weight_decay="):
            client.step(*examples(5))
        assert client.permit.used == 0
        assert weight.grad is None

    def test_are_no_gradients_of_inputs(self):
        client = Client(clean(0.3), network(), (6,), engine=Isolated())
        inputs, targets = examples(5)
        given = inputs.clone().requires_grad_()
        client.step(given, targets)
        assert given.grad is not None
        assert client.permit.used == 1


class TwoOutputs(nn.Module):
    def __init__(self, second):
        super().__init__()
        self.layer, self.second = nn.Linear(6, 3), second

    def forward(self, inputs):
        logits = self.layer(inputs)
        return logits, self.second(logits)


def of_both(outputs, targets):
    return functional.cross_entropy(outputs[0], targets) + outputs[1].square().mean()


@pytest.mark.parametrize("second", [nn.Softmax(dim=1), nn.Identity(), nn.Linear(3, 2)])
def test_outputs_that_feed_each_other_need_isolated_examples_and_the_loss_is_not_blamed(second):
    module = TwoOutputs(second)
    with pytest.raises(dp.NotPrivate, match=r"outputs of the model depend on each other.*engine=Isolated\(\)"):
        private_model(module, of_both, *examples(4), engine=Opacus())
    private_model(module, of_both, *examples(4), engine=Isolated())


class Centres(nn.Module):
    def forward(self, inputs):
        return inputs - inputs.mean(dim=0)


class Remembers(nn.Module):
    def forward(self, inputs):
        SEEN.append(inputs.detach().mean())
        return inputs - SEEN[-2]


SEEN = [torch.tensor(0.0)]


@ENGINES
def test_the_layer_that_mixes_is_named(engine):
    module = network(nn.Sequential(nn.ReLU(), Centres()), nn.Linear(6, 6))
    with pytest.raises(dp.NotPrivate, match=r"a layer mixes examples, first layer '1.1' \(Centres\)"):
        private_model(module, functional.cross_entropy, *examples(9), engine=engine)
    module = network(nn.Dropout(0.1), Centres())
    with pytest.raises(dp.NotPrivate, match=r"first layer '2' \(Centres\)"):
        private_model(module, functional.cross_entropy, *examples(9), engine=engine)


@ENGINES
def test_the_layer_that_keeps_batches_is_named(engine):
    module = network(nn.ReLU(), Remembers())
    with pytest.raises(dp.NotPrivate, match=r"second time.* first is layer '2' \(Remembers\)"):
        private_model(module, functional.cross_entropy, *examples(9), engine=engine)


EXTREME = {
    "linear": (lambda: nn.Linear(6, 1), nn.MSELoss(), [(1e10, 1e30), (3e38, 1.0), (float("inf"), 1.0), (1.0, 1e30)]),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 1)),
        functional.binary_cross_entropy_with_logits,
        [(1e10, 1e30), (1e30, 1e30), (float("nan"), 1.0)],
    ),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.3), nn.Linear(5, 1)),
        nn.SmoothL1Loss(),
        [(3e38, 3e38), (1e30, -1e30)],
    ),
}


@ENGINES
@pytest.mark.parametrize("name", EXTREME)
def test_no_value_of_an_example_stops_a_round(name, engine):
    """Whether a round is given up would tell that the example is there."""
    torch.manual_seed(0)
    make, loss, values = EXTREME[name]
    client = Client(noisy(), make(), (X, X[:, :1].sigmoid()), loss=loss, engine=engine, steps=1_000)
    start = client.parameters()
    for x, y in values:
        for n in (1, 3, 9):
            inputs, targets = examples(n)[0], torch.full((n, 1), 0.5)
            inputs[0], targets[0] = x, y
            for _ in range(4):
                write(client.model, start)
                client.optimizer.begin(client.memory, client.permit)
                client.step(inputs, targets)
    assert client.permit.used == 12 * len(values)


class Contaminates(nn.Module):
    def forward(self, inputs):
        return inputs + 0 * inputs.sum(dim=0) if ON else inputs


ON: list[bool] = []


def test_one_broken_example_that_breaks_ordinary_ones_is_refused(monkeypatch):
    """Where one value that is not finite blanks all rows, an example counts as many."""
    inputs, targets = examples(9)
    inputs[0] = float("inf")
    refusals = 0
    for _ in range(10):
        monkeypatch.setattr("tests.training.test_door.ON", [])
        client = Client(noisy(), network(Contaminates()), (6,))
        monkeypatch.setattr("tests.training.test_door.ON", [True])
        try:
            client.step(inputs, targets)
        except dp.NotPrivate as refusal:
            assert "a layer mixes examples" in str(refusal)
            refusals += 1
    assert refusals >= 3  # the check draws the broken example itself with probability 1/9


def test_a_data_set_of_plain_examples_passes():
    module = network()
    sgd = torch.optim.SGD(module.parameters(), lr=0.1)
    data = TensorDataset(*examples(9))
    arguments = {"secret": dp.SecretSeed(0), "expected_batch_size": 3, "steps": 1}
    make_private(module, sgd, data, noisy(), loss=functional.cross_entropy, **arguments)

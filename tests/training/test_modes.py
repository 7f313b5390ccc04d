"""Which layers are in training mode says nothing of the examples."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._C._functorch import is_batchedtensor  # pyright: ignore[reportMissingImports]
from torch.nn import functional
from torch.utils.data import default_collate

import dpcomp as dp
from dpcomp.training.pytorch import BookKeeping, Isolated, PrivateOptimizer, make_private
from dpcomp.training.pytorch.checks.precision import short_products
from dpcomp.training.pytorch.inspection import private_model
from tests.training.private_client import Client, examples, noisy, refused

torch.set_num_threads(1)
ENGINES = pytest.mark.parametrize("engine", [BookKeeping(), Isolated()], ids=["BookKeeping", "Isolated"])
OTHER = r"layers are in another mode .* layer 'drop' of the model \(now in evaluation\)"


class Signed(nn.Module):
    """Does another thing by the mode of a layer, as layers with `if self.training` do."""

    def __init__(self):
        super().__init__()
        self.drop, self.layer = nn.Dropout(0.0), nn.Linear(6, 3)

    def forward(self, inputs):
        return self.layer(inputs) * (1.0 if self.drop.training else -1.0)


class Remembers(Signed):
    """Keeps that it saw an example in the mode of a layer."""

    def forward(self, inputs):
        if not is_batchedtensor(inputs) and bool((inputs == 1000).any()):
            self.drop.eval()
        return super().forward(inputs)


class InTraining(nn.Module):
    """A function of the inputs while training, and nothing in evaluation."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs) if self.training else inputs


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.0)

    def forward(self, outputs, targets):
        return functional.cross_entropy(outputs, targets) * (1.0 if self.drop.training else -1.0)


class TestModes:
    @ENGINES
    def test_that_a_script_changes_are_refused_in_the_pass(self, engine):
        client = Client(noisy(), Signed(), (6,), engine=engine)
        client.step(*examples(5))
        batch = examples(5, seed=1)
        client.draw(batch)
        client.model.drop.eval()
        with refused(client, OTHER):
            client.backward(*batch)

    @ENGINES
    def test_that_a_script_changes_before_the_step_are_refused(self, engine):
        client = Client(noisy(), Signed(), (6,), engine=engine)
        client.draw(examples(5))
        client.backward(*examples(5))
        client.model.drop.eval()
        with refused(client, OTHER):
            client.optimizer.step()

    @pytest.mark.parametrize("engine", [Isolated()])
    def test_that_a_pass_changes_are_refused_before_the_release(self, engine):
        client = Client(noisy(), Remembers(), (6,), engine=engine)
        inputs, targets = examples(5)
        inputs[2] = 1000.0
        with refused(client, OTHER):
            client.step(inputs, targets)

    def test_of_the_loss_are_held_too(self):
        client = Client(noisy(), nn.Linear(6, 3), (6,), loss=Loss())
        client.draw(examples(5))
        client.loss.drop.eval()
        with refused(client, r"layer 'drop' of the loss \(now in evaluation\)"):
            client.step(*examples(5))

    @ENGINES
    def test_that_are_back_after_an_evaluation_are_taken(self, engine):
        client = Client(noisy(), Signed(), (6,), engine=engine)
        for seed in range(3):
            client.step(*examples(5, seed=seed))
            client.model.eval()
            client.model(examples(5)[0])
            client.model.train()
        assert client.permit.used == 3

    @ENGINES
    def test_of_layers_in_evaluation_since_before_make_private_are_taken(self, engine):
        module = Signed()
        module.drop.eval()
        client = Client(noisy(), module, (6,), engine=engine)
        client.step(*examples(5))
        client.model.eval()
        client.model.train()
        with refused(client, r"layer 'drop' of the model \(now in training\)"):
            client.step(*examples(5, seed=1))

    @ENGINES
    def test_of_a_model_in_evaluation_are_those_of_training(self, engine):
        module = Signed()
        module.eval()
        client = Client(noisy(), module, (6,), engine=engine)  # begins its first round in evaluation, too
        client.model.train()
        client.step(*examples(5))
        assert client.permit.used == 1

    @ENGINES
    @pytest.mark.parametrize(
        "kind", [nn.Dropout(0.5), InTraining(lambda x: x - x.mean(0))], ids=["dropout", "centring"]
    )
    def test_that_were_not_tried_are_refused_before_the_first_round_is_charged(self, engine, kind):
        module = nn.Sequential(nn.Linear(6, 16), copy.deepcopy(kind).eval(), nn.Linear(16, 3))
        model, optimizer, memory = made_private(module, engine)
        model.train()
        with pytest.raises(dp.NotPrivate, match=r"layer '1' of the model \(now in training\).*eval\(\)"):
            optimizer.refuse_unready(memory)
        module[1].eval()  # is what was tried
        optimizer.refuse_unready(memory)

    @ENGINES
    def test_that_were_not_tried_are_refused_in_a_pass_of_a_round_that_begins_in_evaluation(self, engine):
        module = nn.Sequential(nn.Linear(6, 16), InTraining(lambda x: x - x.mean(0)).eval(), nn.Linear(16, 3))
        model, optimizer, memory = made_private(module, engine)
        model.eval()
        optimizer.begin(memory, dp.Ledger().charge(noisy().cost, memory.address, steps=1))
        model.train()
        with pytest.raises(dp.NotPrivate, match=r"layer '1' of the model \(now in training\).*not looked at"):
            model(examples(5)[0])

    @ENGINES
    def test_may_be_others_between_rounds(self, engine):
        module = Signed()
        module.drop.eval()
        client = Client(noisy(), module, (6,), engine=engine)
        for number in range(3):
            client.model.train()
            memory = replace(client.memory, shared=replace(client.memory.shared, version=number + 1))
            permit = client.ledger.charge(noisy().cost, memory.address, steps=1)
            client.optimizer.begin(memory, permit)
            client.model.drop.eval()
            client.step(*examples(5, seed=number))
            client.model.eval()
            assert permit.used == 1


@pytest.mark.parametrize("evaluating", [False, True])
def test_an_own_collate_function_leaves_modes_as_they_were(evaluating):
    module = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    module[1].eval()
    module.training = not evaluating
    pipeline, examples_of_client = noisy(rate=1.0), list(zip(*examples(12), strict=True))
    before = [layer.training for layer in module.modules()]
    model, optimizer, loader = make_private(
        module,
        torch.optim.SGD(module.parameters(), lr=1.0),
        examples_of_client,
        pipeline,
        loss=functional.cross_entropy,
        expected_batch_size=12,
        collate_fn=lambda some: default_collate(some),
    )
    assert [layer.training for layer in module.modules()] == before
    memory = pipeline.init_client(optimizer.layout, seed=dp.PublicSeed(1), client=0)
    if evaluating:
        model.train()
    optimizer.begin(memory, permit := dp.Ledger().charge(pipeline.cost, memory.address, steps=1))
    for inputs, targets in loader:
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    assert permit.used == 1


def made_private(module, engine):
    model = private_model(module, functional.cross_entropy, *examples(4), engine=engine)
    inner = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = PrivateOptimizer(inner, model, noisy(), secret=dp.SecretSeed(7), expected_batch_size=8.0)
    return model, optimizer, noisy().init_client(optimizer.layout, seed=dp.PublicSeed(1), client=0)


class TestAutocast:
    @staticmethod
    def passed(client, batch, autocast):
        client.draw(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            outputs = client.model(batch[0])
        client.loss(outputs.float(), batch[1]).backward()
        client.optimizer.step()

    @pytest.mark.parametrize("first", [True, False])
    def test_that_is_another_in_a_later_pass_is_refused(self, first):
        client = Client(noisy(), nn.Linear(6, 3), (6,), engine=Isolated())
        self.passed(client, examples(5), first)
        with refused(client, "without torch.autocast.*by a look at a batch|bfloat16 .*by a look at a batch"):
            self.passed(client, examples(5, seed=1), not first)

    def test_that_is_the_same_in_all_passes_is_taken_with_evaluations_between(self):
        client = Client(noisy(), nn.Linear(6, 3), (6,), engine=Isolated())
        for seed in range(3):
            self.passed(client, examples(5, seed=seed), True)
            client.model.eval()
            client.model(examples(5)[0])
            client.model.train()
        assert client.permit.used == 3


SWITCHES = {
    "matmul precision": (torch.set_float32_matmul_precision, "medium", "highest"),
    "mkldnn": (torch._C._set_mkldnn_enabled, False, True),
    "cuDNN": (torch._C._set_cudnn_enabled, False, True),
    "cuBLAS": (torch._C._set_cublas_allow_bf16_reduced_precision_reduction, False, True),
}


@pytest.fixture(params=SWITCHES)
def switch(request):
    """Return what sets a switch of torch to its other value, which is taken back afterwards."""
    put, other, usual = SWITCHES[request.param]
    yield lambda: put(other)
    put(usual)


class TestSwitches:
    @ENGINES
    def test_of_the_precision_of_kernels_that_a_script_sets_for_a_pass_are_refused(self, engine, switch):
        client = Client(noisy(), nn.Linear(6, 3), (6,), engine=engine)
        client.step(*examples(5))
        client.draw(examples(5, seed=1))
        switch()
        with refused(client, r"settings of torch's kernels .*by a look at a batch.*before training"):
            client.backward(*examples(5, seed=1))

    @ENGINES
    def test_that_a_script_sets_before_the_step_are_refused(self, engine, switch):
        client = Client(noisy(), nn.Linear(6, 3), (6,), engine=engine)
        client.step(*examples(5))
        client.draw(examples(5))
        client.backward(*examples(5))
        switch()
        with refused(client, r"settings of torch's kernels .* than in the first step"):
            client.optimizer.step()

    @ENGINES
    def test_that_all_passes_have_and_no_step_are_taken(self, engine):
        client = Client(noisy(), nn.Linear(6, 3), (6,), engine=engine)
        for seed in range(2):
            client.draw(batch := examples(5, seed=seed))
            with torch.backends.cudnn.flags(enabled=False):
                client.backward(*batch)
            client.optimizer.step()
        assert client.permit.used == 2

    @ENGINES
    def test_that_are_set_before_the_first_pass_are_taken(self, engine, switch):
        client = Client(noisy(), nn.Linear(6, 3), (6,), engine=engine)
        switch()
        for seed in range(2):
            client.step(*examples(5, seed=seed))
        assert client.permit.used == 2

    @pytest.mark.parametrize("precision", ["highest", "medium"])
    def test_that_shorten_products_are_named_where_rows_differ(self, precision):
        torch.set_float32_matmul_precision(precision)
        try:
            named = short_products(torch.device("cpu"))
        finally:
            torch.set_float32_matmul_precision("highest")
        assert ("set_float32_matmul_precision" in named) == (precision == "medium")


class Frozen(nn.Module):
    """Keeps a part in evaluation mode, in a `train` that returns nothing, as many scripts write it."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5)), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))

    def train(self, mode=True):
        super().train(mode)
        self.body.eval()


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_model_keeps_what_its_own_train_sets(evaluating):
    module = Frozen()
    module.train(not evaluating)
    client = Client(noisy(), module, (6,), engine=Isolated())
    client.model.train()
    client.step(*examples(5))
    assert client.permit.used == 1


def test_a_layer_that_was_set_to_evaluation_stays_so():
    module = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    module[1].eval()
    client = Client(noisy(), module, (6,))
    client.step(*examples(5))
    assert module.training and not module[1].training and client.permit.used == 1

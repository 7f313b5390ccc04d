"""Which layers are in training mode says nothing of the examples."""

import pytest
import torch
from torch import nn
from torch._C._functorch import is_batchedtensor  # pyright: ignore[reportMissingImports]
from torch.nn import functional

from dpcomp.training.pytorch import BookKeeping, Isolated
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
    def test_of_layers_in_evaluation_since_before_the_first_round_are_taken(self, engine):
        client = Client(noisy(), Signed(), (6,), engine=engine)
        client.model.unmoved.modes.__init__(client.model._module)  # as before the first round
        client.model.drop.eval()
        client.optimizer.begin(client.memory, client.permit)
        client.step(*examples(5))
        client.model.eval()
        client.model.train()
        with refused(client, r"layer 'drop' of the model \(now in training\)"):
            client.step(*examples(5, seed=1))

    def test_of_a_round_that_begins_in_evaluation_are_those_of_training(self):
        client = Client(noisy(), Signed(), (6,))
        client.model.unmoved.modes.__init__(client.model._module)
        client.model.eval()
        client.optimizer.begin(client.memory, client.permit)
        client.model.train()
        client.step(*examples(5))
        assert client.permit.used == 1


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

"""What all rows of a batch share among the arguments of the model says nothing of the batch."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import dpcomp as dp
from dpcomp.training.pytorch import Isolated, Opacus
from dpcomp.training.pytorch.arguments import Arguments
from tests.training.private_client import Client, examples, noisy, refused

torch.set_num_threads(1)
ENGINES = pytest.mark.parametrize("engine", [Isolated(), Opacus()], ids=["Isolated", "Opacus"])


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs, scale=1.0, flip=None, **more):
        return self.layer((inputs if not flip else -inputs) / float(np.max(scale)))


def client(engine, **arguments) -> Client:
    return Client(noisy(), Scaled(), examples(4), engine=engine, **arguments)


def step(client: Client, inputs, targets, *args, **kwargs) -> None:
    client.draw((inputs, targets))
    forward(client, inputs, targets, *args, **kwargs)
    client.optimizer.step()


def forward(client: Client, inputs, targets, *args, **kwargs) -> None:
    functional.cross_entropy(client.model(inputs, *args, **kwargs), targets).backward()


class Other:
    def __array__(self, dtype=None, copy=None):
        return np.ones(())


@pytest.mark.filterwarnings("ignore:Full backward hook")
class TestArguments:
    @ENGINES
    @pytest.mark.parametrize(
        "scale",
        [
            lambda inputs: inputs.abs().max().item(),
            lambda inputs: int(inputs.abs().max()) + 1,
            len,
            lambda inputs: np.float32(inputs.abs().max()),
            lambda inputs: inputs.abs().max(dim=1).values.numpy(),
            lambda inputs: [1.0, float(inputs.max())],
            lambda _: Other(),
        ],
        ids=["float", "int", "length", "of NumPy", "array", "in a list", "object"],
    )
    @pytest.mark.parametrize("named", [True, False])
    def test_that_the_loader_did_not_deliver_are_refused_by_name(self, scale, named, engine):
        mine, (inputs, targets) = client(engine), examples(5)
        mine.draw((inputs, targets))
        value = scale(inputs)
        forward(mine, inputs, targets, **{"scale": value}) if named else forward(mine, inputs, targets, value)
        name = "'scale'" if named else "1"
        with refused(mine, rf"argument {name}.*attribute of the model before make_private"):
            mine.optimizer.step()

    @ENGINES
    @pytest.mark.parametrize(
        ("first", "then"), [(False, True), (None, True), ("a", "b"), (torch.float32, torch.float64), (True, None)]
    )
    def test_that_change_from_batch_to_batch_are_refused_by_name(self, first, then, engine):
        mine = client(engine)
        step(mine, *examples(5), flip=first)
        step(mine, *examples(5, seed=1), flip=first)
        mine.draw(examples(5))
        forward(mine, *examples(5), flip=then)
        with refused(mine, rf"argument 'flip' of the model is {then!r}, and was {first!r} in an earlier batch"):
            mine.optimizer.step()

    def test_that_change_from_round_to_round_are_refused(self):
        mine = client(Isolated())
        step(mine, *examples(5), flip=True)
        mine.optimizer.begin(mine.memory, mine.ledger.charge(mine.optimizer.pipeline.cost, dp.Address(1, 0, 1)))
        with pytest.raises(dp.NotPrivate, match="'flip' of the model is False, and was True"):
            step(mine, *examples(5), flip=False)

    @ENGINES
    def test_that_come_and_go_are_refused(self, engine):
        mine = client(engine)
        step(mine, *examples(5), flip=False)
        mine.draw(examples(5))
        forward(mine, *examples(5))
        with refused(mine, r"called with \['0'\], and was with \['0', 'flip'\]"):
            mine.optimizer.step()

    def test_of_views_are_held_to_the_same(self):
        mine, (inputs, targets) = client(Isolated(), views=2), examples(5)
        mine.draw((inputs, targets))
        forward(mine, inputs, targets)
        forward(mine, inputs + 1, targets, scale=float(inputs.max()))
        with refused(mine, "argument 'scale'"):
            mine.optimizer.step()

    def test_stay_the_same_part_of_the_batch(self):
        one, two = examples(5)[0], examples(5, seed=1)[0]
        arguments = Arguments()
        both = arguments.trace(((one, one), {}), {"a": one, "b": one})
        assert both == {(0, 0): ("a",), (0, 1): ("a",)}
        assert arguments.trace(((two, one), {}), {"a": one, "b": two})[0, 0] == ("b",)
        with pytest.raises(dp.NotPrivate, match=r"argument 0 of the model is part \['a'\].*was part \['b'\]"):
            arguments.trace(((one, two), {}), {"a": one, "b": two})

    def test_are_traced_to_the_part_of_the_same_name_first(self):
        mask = torch.ones(5, 6)
        assert Arguments().trace(((), {"b": mask}), {"a": mask, "b": mask}) == {(1, "b"): ("b",)}

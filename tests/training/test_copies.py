"""Copies of a private model, for an average of weights or a file: they work, and are held to what they were."""

import copy
import dataclasses
import functools
import io
import pickle

import pytest
import torch
from torch import nn

import dpcomp as dp
from dpcomp.training.pytorch import BookKeeping, Isolated, PrivateModel, PrivateOptimizer
from tests.training.private_client import Client, examples, noisy


def named(function):
    @functools.wraps(function)
    def called(*args):
        return function(*args)

    return called


class Own(nn.Module):
    """A layer of a script's own class, with data, a property and a decorated method on the class."""

    scale = 2.0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    @property
    def width(self):
        return 6

    @named
    def forward(self, x):
        return self.layer(x) * self.scale


class Settings:
    """A configuration in plain Python."""

    names = ("a",)

    def __init__(self):
        self.rates = [0.1]


@dataclasses.dataclass
class Config:
    """A configuration as a data class."""

    width: int = 6


def with_attribute(value):
    module = nn.Sequential(nn.Linear(6, 3))
    module.config = value
    return module


MODELS = {
    "library layers": lambda: nn.Sequential(nn.Linear(6, 3)),
    "an own class": Own,
    "a plain object": lambda: with_attribute(Settings()),
    "a data class": lambda: with_attribute(Config()),
    "a function": lambda: with_attribute(named),
}


def saved(model, write, *, read):
    file = io.BytesIO()
    write(model, file)
    file.seek(0)
    return read(file)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: saved(model, pickle.dump, read=pickle.load),
    "torch.save": lambda model: saved(model, torch.save, read=functools.partial(torch.load, weights_only=False)),
    "an average": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", MODELS)
def test_a_private_model_can_be_copied(kind, way):
    client = Client(noisy(), MODELS[kind](), (6,), engine=BookKeeping())
    client.step(*examples(5))
    other = COPIES[way](client.model)
    assert isinstance(other, PrivateModel)
    inputs, _ = examples(7)
    assert torch.equal(other.eval()(inputs), client.model.eval()(inputs))
    client.model.train()
    client.step(*examples(5, seed=1))  # which does not move the copy
    assert not torch.equal(other(inputs), client.model.eval()(inputs))
    assert other.unmoved.moved() == []


def opened(model):
    pipeline = noisy()
    inner = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = PrivateOptimizer(inner, model, pipeline, secret=dp.SecretSeed(0), expected_batch_size=1)
    memory = pipeline.init_client(optimizer.layout, seed=dp.PublicSeed(0), client=0)
    optimizer.begin(memory, dp.Ledger().charge(pipeline.cost, memory.address))
    return optimizer


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_copy_is_held_to_what_the_model_was(when, way):
    module = with_attribute(Settings())
    model = Client(noisy(), module, (6,), engine=Isolated()).model
    if when == "before":
        module.config.rates.append(0.2)
    model = COPIES[way](model)
    if when == "after":
        opened(model)
        model.config.rates.append(0.2)
    with pytest.raises(dp.NotPrivate, match=r"attribute 'config' of the model .*moved since the last step"):
        opened(model)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_the_weights_of_a_copy_may_be_loaded_before_a_round(way):
    client = Client(noisy(), Own(), (6,), engine=Isolated())
    with torch.no_grad():
        client.model.layer.weight.add_(1)
    other = COPIES[way](client.model)
    assert other.unmoved.moved() == ["layer.weight"]
    opened(other)
    assert other.unmoved.moved() == []


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_layers_and_parameters_of_a_copy_are_its_own(way):
    other = COPIES[way](Client(noisy(), Own(), (6,), engine=Isolated()).model)
    other.refuse_other_parameters()
    other.layer.bias.requires_grad_(False)
    with pytest.raises(dp.NotPrivate, match=r"parameters changed after the inspection, at \['layer.bias'\]"):
        other.refuse_other_parameters()
    other._module.layer = nn.Identity()
    with pytest.raises(dp.NotPrivate, match="layer 'layer' was exchanged after the inspection"):
        other.refuse_other_parameters()

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import dpcomp as dp
from dpcomp.training.pytorch import Isolated
from tests.training.private_client import Client, clean, examples


def clipped_sum(autocast):
    torch.manual_seed(0)
    network, inputs = torch.nn.Linear(40, 30), torch.randn(16, 40)
    client = Client(
        clean(1e-2), network, (inputs, torch.zeros(16)), loss=lambda outputs, _: outputs.square().mean(), divisor=1.0
    )
    client.draw((inputs, torch.zeros(16)))
    client.backward(inputs, torch.zeros(16))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        client.optimizer.step()
    return client.optimizer.update().dense()


def test_a_step_inside_autocast_is_clipped_and_summed_in_full_precision():
    assert (clipped_sum(autocast=True) == clipped_sum(autocast=False)).all()


def own(outputs, targets):
    return (outputs - functional.one_hot(targets, 3)).square().sum(1).mean()


LOSSES = pytest.mark.parametrize("loss", [functional.cross_entropy, own])
KINDS = pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
PLACES = pytest.mark.parametrize("place", ["in autocast", "of its outputs", "of its outputs in float32"])


def trained(loss, kind, place, *, factor=1.0):
    """Take steps whose batches have lengths that are no powers of two, with a loss at one of the usual places."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    client = Client(clean(1e-2), network, (6,), engine=Isolated(), loss=loss)
    for n in (5, 6, 7, 11, 33):
        inputs, targets = examples(n, seed=n)
        client.draw((inputs, targets))
        with torch.autocast("cpu", dtype=kind):
            outputs = client.model(inputs)
            found = loss(outputs, targets) if place == "in autocast" else None
        if found is None:
            found = loss(outputs.float() if place == "of its outputs in float32" else outputs, targets)
        (factor * found).backward()
        client.optimizer.step()
    return client


@PLACES
@KINDS
@LOSSES
def test_a_loss_is_taken_inside_autocast_and_behind_it(loss, kind, place):
    assert trained(loss, kind, place).permit.used == 5


def in_float32(outputs, targets):
    """Takes no other type, as losses with kernels of their own do not."""
    if outputs.dtype != torch.float32:
        raise TypeError(f"{outputs.dtype} is not supported")
    return own(outputs, targets)


FLOAT32 = pytest.mark.parametrize("loss", [nn.MultiMarginLoss(), in_float32], ids=["hinge", "float32 only"])


@FLOAT32
@KINDS
def test_a_loss_without_a_kernel_of_16_bits_is_taken_on_outputs_in_float32(loss, kind):
    assert trained(loss, kind, "of its outputs in float32").permit.used == 5


@FLOAT32
@KINDS
def test_such_a_loss_gives_the_rows_of_its_examples(loss, kind):
    torch.manual_seed(0)
    network = nn.Linear(6, 3)
    client = Client(clean(1e-2), copy.deepcopy(network), (6,), engine=Isolated(), loss=loss, divisor=1.0)
    inputs, targets = examples(7)
    client.draw((inputs, targets))
    with torch.autocast("cpu", dtype=kind):
        outputs = client.model(inputs)
    loss(outputs.float(), targets).backward()
    client.optimizer.step()
    expected = 0
    for i in range(7):
        network.zero_grad()
        with torch.autocast("cpu", dtype=kind):
            outputs = network(inputs[i : i + 1])
        loss(outputs.float(), targets[i : i + 1]).backward()
        row = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        expected = expected - row * min(1.0, 1e-2 / max(float(row.norm()), 1e-9))
    torch.testing.assert_close(torch.tensor(client.optimizer.update().dense()), expected, rtol=1e-3, atol=1e-5)


@FLOAT32
@KINDS
def test_another_loss_than_such_a_one_is_refused(loss, kind):
    with pytest.raises(dp.NotPrivate, match="computes another loss"):
        trained(loss, kind, "of its outputs in float32", factor=1.15)


@PLACES
@KINDS
def test_another_loss_is_refused_in_mixed_precision_too(kind, place):
    with pytest.raises(dp.NotPrivate, match="computes another loss"):
        trained(functional.cross_entropy, kind, place, factor=1.15)


class Inside(nn.Module):
    """Runs in mixed precision by itself, as models do that have `torch.autocast` in or around their forward pass."""

    def __init__(self, kind):
        super().__init__()
        self.layers, self.kind = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)), kind

    def forward(self, inputs):
        with torch.autocast("cpu", dtype=self.kind):
            return self.layers(inputs)


def trained_inside(kind, *, engine, factor=1.0):
    torch.manual_seed(0)

    def loss(outputs, targets):
        return functional.cross_entropy(outputs.float(), targets)

    client = Client(clean(1e-2), Inside(kind), (6,), engine=engine, loss=loss)
    for n in (5, 6, 7, 11, 33):
        inputs, targets = examples(n, seed=n)
        client.draw((inputs, targets))
        (factor * loss(client.model(inputs), targets)).backward()
        client.optimizer.step()
    return client


@KINDS
@pytest.mark.parametrize("engine", ["auto", Isolated()], ids=["auto", "Isolated"])
def test_a_model_may_set_its_own_precision_and_return_it(kind, engine):
    assert trained_inside(kind, engine=engine).permit.used == 5


@KINDS
def test_another_loss_of_outputs_in_16_bits_is_refused(kind):
    with pytest.raises(dp.NotPrivate, match="computes another loss"):
        trained_inside(kind, engine=Isolated(), factor=1.15)


def test_a_float32_output_beside_one_in_16_bits_is_held_to_all_its_digits():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, inputs):
            outputs = self.layer(inputs)
            return outputs, outputs.bfloat16()

    client = Client(
        clean(1e-2),
        Both(),
        (6,),
        engine=Isolated(),
        loss=lambda outputs, targets: functional.cross_entropy(outputs[0], targets),
    )
    inputs, targets = examples(7)
    client.draw((inputs, targets))
    (1.01 * functional.cross_entropy(client.model(inputs)[0], targets)).backward()
    with pytest.raises(dp.NotPrivate, match="computes another loss"):
        client.optimizer.step()

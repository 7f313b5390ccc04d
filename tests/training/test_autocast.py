import torch

from tests.training.private_client import Client, clean


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

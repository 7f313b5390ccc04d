import torch

import dpcomp as dp
from dpcomp.training.pytorch import PrivateOptimizer, private_model


def clipped_sum(autocast):
    torch.manual_seed(0)
    network, inputs = torch.nn.Linear(40, 30), torch.randn(16, 40)
    pipeline = dp.Pipeline(mechanism=dp.unsafe("to see the sum", dp.Clip(1e-2)))
    model = private_model(network, inputs[0])
    optimizer = PrivateOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0), model, pipeline, secret=dp.SecretSeed(0), expected_batch_size=1
    )
    memory = pipeline.init_client(optimizer.layout, seed=dp.PublicSeed(0), client=0)
    optimizer.begin(memory, dp.Ledger().charge(pipeline.cost, memory.address))
    model(inputs).square().mean().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        optimizer.step()
    return optimizer.update().dense()


def test_a_step_inside_autocast_is_clipped_and_summed_in_full_precision():
    assert (clipped_sum(autocast=True) == clipped_sum(autocast=False)).all()

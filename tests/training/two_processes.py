"""A process of two that train with a communication hook; run as a script, with its rank and a file of the store.

It prints what `test_comm_hook.py` compares, as JSON.
"""

import hashlib
import json
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import dpcomp as dp
from dpcomp.training.comm_hook import comm_hook

STEPS = 6
SHAPES = ((40, 30), (30,), (7, 5), ())


class Linear(torch.nn.Module):
    """A sum of products, whose gradients are the inputs."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES)

    def forward(self, *inputs):
        return sum((weight * given).sum() for weight, given in zip(self.weights, inputs, strict=True))


def inputs(rank, step, dtype=torch.float32):
    draw = torch.Generator().manual_seed(1000 * rank + step)
    return [torch.randn(shape, generator=draw).to(dtype) for shape in SHAPES]


def means(hook, rank, dtype=torch.float32, steps=STEPS, spoilt=None):
    """Return the gradient of each step, of all parameters in one vector; buckets hold a few hundred of them."""
    model = DistributedDataParallel(Linear(dtype), bucket_cap_mb=0.002)
    if hook is not None:
        model.register_comm_hook(None, hook)
    made = []
    for step in range(steps):
        given = inputs(rank, step, dtype)
        if spoilt == (rank, step):
            given[0][3, 3] = torch.nan
        model.zero_grad()
        model(*given).backward()
        made.append(torch.cat([weight.grad.reshape(-1) for weight in model.module.weights]))
    return torch.stack(made)


def residual_of(hook, model_size):
    vectors = [torch.from_numpy(vector.copy()) for _, vector in hook._residuals.values()]
    total = torch.cat(vectors).double().sum()
    assert sum(map(len, vectors)) == model_size
    return total


def main(rank, path):
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    report = {}

    plain = means(None, rank)
    report["lossless"] = bool(torch.equal(plain, means(comm_hook(dp.Codec()), rank)))
    half = means(comm_hook(dp.Codec()), rank, torch.float16)
    report["float16"] = bool((half.float() - plain).abs().max() < 0.01) and half.dtype == torch.float16

    codec = dp.Codec(sparsify=dp.TopK(0.05), quantize=dp.Uniform(4))
    hook = comm_hook(codec)
    top = means(hook, rank)
    report["digest"] = hashlib.sha256(top.numpy().tobytes()).hexdigest()
    report["share"] = hook.bytes_sent / (4 * top.numel())
    left = residual_of(hook, top.shape[1])
    dist.all_reduce(left)
    report["lost"] = float(top.double().sum() + left / 2 - plain.double().sum())
    without = means(comm_hook(codec, feedback=False), rank)
    report["error"] = [float((made.sum(0) - plain.sum(0)).square().sum()) for made in (top, without)]

    # Of equal gradients, levels −1, 0 and 1 have means between them only where the processes draw other numbers.
    drawn = dp.Codec(quantize=dp.Uniform(2, rounding=dp.Stochastic()), entropy=dp.FixedWidth())
    averaged = means(comm_hook(drawn, feedback=False), 0, steps=1)
    report["levels"] = len(torch.unique(averaged[0, :1200]))

    spoilt = means(comm_hook(codec), rank, spoilt=(1, 2))
    report["finite"] = [bool(torch.isfinite(step).all()) for step in spoilt]
    report["after"] = hashlib.sha256(spoilt[3:].numpy().tobytes()).hexdigest()

    try:
        means(comm_hook(dp.Codec(quantize=dp.Uniform(4 + rank))), rank, steps=1)
    except RuntimeError as error:
        report["other codec"] = str(error)
    print(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

"""Send the gradients of DistributedDataParallel as payloads of a codec: two processes, stopped and resumed.

There is no privacy here: the codec alone adds no noise. What the codec drops is kept, and added to the next gradients;
a checkpoint holds it beside the model, so that a run that was stopped ends as one that was not.
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import dpcomp as dp
from dpcomp.training.pytorch import comm_hook

PROCESSES, STEPS = 2, 60


def batch(rank, step):
    draw = torch.Generator().manual_seed(1000 * step + rank)
    inputs = torch.randn(32, 50, generator=draw)
    return inputs, (inputs[:, :5].sum(1) > 0).long()


def train(rank, folder, start, stop):
    """Train from step `start` to step `stop`, with a new model and a new hook, and return the weights."""
    torch.manual_seed(0)
    model = DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Linear(50, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    )
    hook = comm_hook(dp.Codec(sparsify=dp.TopK(0.02), quantize=dp.Uniform(4)))
    model.register_comm_hook(None, hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    checkpoint = Path(folder) / f"rank-{rank}.pt"
    if start:
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        hook.load_state_dict(saved["hook"], model)

    for step in range(start, stop):
        inputs, labels = batch(rank, step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    # Residuals are those of each process, so each saves its own.
    torch.save({"model": model.state_dict(), "hook": hook.state_dict(model)}, checkpoint)
    if rank == 0:
        inputs, labels = batch(rank, STEPS)
        right = float((model(inputs).argmax(1) == labels).float().mean())
        share = hook.bytes_sent / (stop - start) / (4 * sum(p.numel() for p in model.parameters()))
        print(f"steps {start} to {stop}: {share:.2%} of the bytes of float32, accuracy {right:.2f}", flush=True)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def run(rank, folder):
    """Train in one go, and then again, stopped half-way; this is what each of the processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    at_once = train(rank, folder, 0, STEPS)
    train(rank, folder, 0, STEPS // 2)
    resumed = train(rank, folder, STEPS // 2, STEPS)
    everywhere = [torch.empty_like(resumed) for _ in range(PROCESSES)]
    dist.all_gather(everywhere, resumed)
    if rank == 0:
        same = all(torch.equal(at_once, other) for other in everywhere)
        print(f"both processes end with the weights of the run in one go: {same}", flush=True)
    dist.destroy_process_group()


def main():
    with tempfile.TemporaryDirectory() as folder:
        spawn(run, args=(folder,), nprocs=PROCESSES)


if __name__ == "__main__":
    main()

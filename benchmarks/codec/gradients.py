"""Real gradients to measure codecs on, of the CIFAR-10 CNN: early, middle and late in its training."""

import numpy as np
import torch
from jaxtyping import Float32

from dpcomp.core.layout import Layout
from dpcomp.training.pytorch.rows.parameters import layout_of
from experiments.data.cache import cache_folder
from experiments.data.tasks.cifar10 import task as cifar10

PHASES = {"early": 20, "middle": 300, "late": 1200}  # the SGD step from which on gradients are kept
KEPT = 16  # consecutive gradients in each phase
BATCH, LEARNING_RATE, MOMENTUM = 128, 0.05, 0.9


def recorded_gradients() -> tuple[Layout, dict[str, Float32[np.ndarray, "rounds d"]]]:
    """Give the layout and, of each phase, `KEPT` gradients of consecutive steps; trained once, then cached."""
    path = cache_folder() / f"gradients-cifar-{'-'.join(map(str, PHASES.values()))}.npz"
    layout = layout_of(cifar10().model(0))
    if not path.exists():
        np.savez(path, **_train())  # pyright: ignore[reportArgumentType]  # the phases are no options of savez
    with np.load(path, allow_pickle=False) as stored:
        return layout, {phase: stored[phase] for phase in PHASES}


def _train() -> dict[str, np.ndarray]:
    """Train by plain SGD with a fixed seed, as a client without privacy does, and keep the gradients of each phase."""
    task = cifar10()
    inputs, targets = task.train()
    model, rng = task.model(0), np.random.default_rng(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    kept: dict[str, list[np.ndarray]] = {phase: [] for phase in PHASES}
    for step in range(max(PHASES.values()) + KEPT):
        batch = torch.from_numpy(rng.choice(len(inputs), BATCH, replace=False))
        optimizer.zero_grad()
        task.loss(model(inputs[batch]), targets[batch]).backward()
        for phase, start in PHASES.items():
            if start <= step < start + KEPT:
                parts = [parameter.grad.reshape(-1) for parameter in model.parameters() if parameter.grad is not None]
                kept[phase].append(torch.cat(parts).numpy().copy())
        optimizer.step()
    return {phase: np.stack(gradients) for phase, gradients in kept.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    layout, gradients = recorded_gradients()
    print(layout.size, {phase: rows.shape for phase, rows in gradients.items()})

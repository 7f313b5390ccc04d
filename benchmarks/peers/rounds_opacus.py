"""Federated rounds with Opacus' hooks: a loop over clients, without bytes, ledger or memory of what was dropped."""

from collections.abc import Callable

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from benchmarks.peers.federation import FederationSettings, Images


def opacus_rounds(module: nn.Module, images: Images, settings: FederationSettings) -> Callable[[int], object]:
    """Make a function that plays rounds: clients train from the same weights, and their mean change is added.

    Args:
        module: The model; it has the weights of the last round afterwards.
        images: Of all clients, in order of the clients; and those to evaluate on.
        settings: Clients, steps, batches, clip and noise.

    Returns:
        A function of the number of rounds, which evaluates the model after the last of them.
    """
    inputs, targets = torch.from_numpy(images.inputs), torch.from_numpy(images.labels)
    test_inputs, test_targets = torch.from_numpy(images.test_inputs), torch.from_numpy(images.test_labels)
    model, rng = GradSampleModule(module), np.random.default_rng(0)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=settings.learning_rate),
        noise_multiplier=settings.noise_multiplier,
        max_grad_norm=settings.clip_norm,
        expected_batch_size=settings.batch_size,
        loss_reduction="mean",
    )
    weights = parameters_to_vector(module.parameters()).detach().clone()

    def train(client: int) -> torch.Tensor:
        vector_to_parameters(weights.clone(), module.parameters())
        for _ in range(settings.local_steps):
            batch = torch.from_numpy(settings.draw_batch(client, rng))
            optimizer.zero_grad()
            if len(batch):
                nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
                optimizer.step()
        return parameters_to_vector(module.parameters()).detach() - weights

    def play(rounds: int) -> None:
        for _ in range(rounds):
            changes = [train(int(client)) for client in settings.draw_clients(rng)]
            weights.add_(torch.stack(changes).mean(0))
        vector_to_parameters(weights.clone(), module.parameters())
        with torch.no_grad():
            for some, truth in zip(test_inputs.split(128), test_targets.split(128), strict=True):
                (module(some).argmax(1) == truth).sum()

    return play

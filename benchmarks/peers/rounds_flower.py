"""Federated rounds with Flower's simulation: plain SGD, dense float32 arrays, no privacy.

Flower runs clients in actors of Ray; here in one actor with one core, as everything else.
"""

import logging
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

from benchmarks.peers.federation import FederationSettings, Images
from experiments.data.models import fashion_cnn

ROOT = Path(__file__).parents[2]
client_app = ClientApp()


def flower_rounds_a_second(settings: FederationSettings, test_images: int, rounds: int, warm_rounds: int) -> float:
    """Simulate, and return rounds a second after the warm ones; the model is evaluated after the last.

    Args:
        settings: Clients, steps and batches; clip and noise are not used.
        test_images: The number of images to evaluate on.
        rounds: That are measured.
        warm_rounds: That are played before.
    """
    logging.getLogger("flwr").setLevel(logging.WARNING)
    os.environ["PYTHONPATH"] = str(ROOT)  # where Ray's actor finds this module
    ends: dict[int, float] = {}
    images = Images.drawn(1, test_images)
    server_app = ServerApp()

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        if number == warm_rounds + rounds:
            model = fashion_cnn(seed=0)
            model.load_state_dict(arrays.to_torch_state_dict())
            with torch.no_grad():
                for some in torch.from_numpy(images.test_inputs).split(128):
                    model(some).argmax(1)
        ends[number] = time.perf_counter()
        return MetricRecord({"round": number})

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=settings.together / settings.clients,
            fraction_evaluate=0.0,
            min_train_nodes=settings.together,
            min_available_nodes=settings.clients,
        )
        first = ArrayRecord(fashion_cnn(seed=0).state_dict())
        strategy.start(
            grid=grid,
            initial_arrays=first,
            num_rounds=warm_rounds + rounds,
            train_config=ConfigRecord({"local-steps": settings.local_steps, "rate": settings.rate}),
            evaluate_fn=evaluate,
        )

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=settings.clients,
        backend_config={
            "init_args": {"num_cpus": 1, "include_dashboard": False},
            "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0},
        },
    )
    return rounds / (ends[warm_rounds + rounds] - ends[warm_rounds])


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that came on the client's own images, and send it back."""
    torch.set_num_threads(1)
    config: Any = message.content["config"]  # Flower's types are those of any record
    arrays: Any = message.content["arrays"]
    settings = FederationSettings()
    inputs, targets = _own_images(int(context.node_config["partition-id"]))
    model = fashion_cnn(seed=0)
    model.load_state_dict(arrays.to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate)
    for _ in range(config["local-steps"]):
        batch = torch.nonzero(torch.rand(len(inputs)) < config["rate"])[:, 0]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(inputs)})}
    return Message(content=RecordDict(content), reply_to=message)


@cache
def _own_images(client: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images of a client; an actor keeps those of all that it has run, as a loader's cache does."""
    images = Images.drawn(FederationSettings().examples, 1)
    return torch.from_numpy(images.inputs), torch.from_numpy(images.labels)

"""What a node runs for each message of the server."""

import torch
from flwr.app import Context, Message, RecordDict

from dpcomp.adapters.flower import PrivateClientApp
from dpcomp.terms import FederationTerms
from dpcomp.training.pytorch import make_private
from pictures_app import task

app = PrivateClientApp(FederationTerms.read(task.TERMS))


@app.train()
def train(msg: Message, context: Context) -> Message:
    network = task.network()
    model, optimizer, loader = make_private(
        network,
        torch.optim.SGD(network.parameters(), lr=task.LEARNING_RATE),
        task.data_of(context.node_config["partition-id"]),
        app.terms.pipeline,
        loss=task.loss_of,
        expected_batch_size=task.EXPECTED_BATCH_SIZE,
        steps=task.STEPS,
    )
    app.begin(optimizer)
    task.train(model, optimizer, loader)
    return Message(RecordDict(), reply_to=msg)

"""A node with dpcomp: DP-SGD, a ledger, and one compressed update."""

from flwr.app import Context, Message, RecordDict

from dpcomp.adapters.flower import PrivateClientApp
from dpcomp.terms import FederationTerms
from dpcomp.training.pytorch import make_private

from . import task

app = PrivateClientApp(FederationTerms.read(task.TERMS))


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train for one pass with DP-SGD; what it released is the update."""
    network = task.network()
    model, optimizer, loader = make_private(
        network,
        task.optimizer_of(network),
        task.data_of(int(context.node_config["partition-id"])),
        app.terms.pipeline,
        loss=task.loss_of,
        expected_batch_size=task.BATCH,
        steps=task.STEPS,
    )
    app.begin(optimizer)
    task.train(model, optimizer, loader)
    return Message(RecordDict(), reply_to=msg)

"""A node without privacy."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from . import task

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train for one pass, and return the model."""
    model = task.network()
    model.load_state_dict(msg.content.array_records["arrays"].to_torch_state_dict())
    task.train(model, task.optimizer_of(model), task.loader_of(int(context.node_config["partition-id"])))
    metrics = MetricRecord({"num-examples": task.EXAMPLES})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)

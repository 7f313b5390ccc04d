"""A node whose model is trained with Opacus, as its user would add it to an app of Flower; without a ledger."""

from typing import Any, cast

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from opacus import PrivacyEngine

from . import task

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train for one pass with DP-SGD, and return the model."""
    model = task.network()
    model.load_state_dict(msg.content.array_records["arrays"].to_torch_state_dict())
    private, optimizer, loader, *_ = PrivacyEngine().make_private(
        module=model,
        optimizer=task.optimizer_of(model),
        data_loader=task.loader_of(int(context.node_config["partition-id"])),
        noise_multiplier=task.NOISE_MULTIPLIER,
        max_grad_norm=task.CLIP_NORM,
    )
    task.train(cast(Any, private), optimizer, cast(Any, loader))
    metrics = MetricRecord({"num-examples": task.EXAMPLES})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)

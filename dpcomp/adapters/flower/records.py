"""Records: what a Flower message holds of dpcomp, and the conversion of a model to Flower's arrays and back."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from jaxtyping import Float32

from dpcomp.core.errors import CorruptPayload
from dpcomp.core.layout import Layout
from dpcomp.federated.messages import WithdrawalReason

RECORD, ARRAYS, METRICS = "dpcomp", "arrays", "metrics"  # names of records in a message's content
# Codes of Flower's Error, beyond its own: that a node will not take part, by the reason, and that its app failed.
WITHDRAWALS: dict[int, WithdrawalReason] = {6400: "policy", 6401: "budget"}
SAID_OF_WITHDRAWALS: dict[WithdrawalReason, str] = {
    "policy": "the policy of this node does not allow the terms",
    "budget": "the budget of this node allows no further round",
}
FAILED = 6402
MOST_MESSAGES = 2  # of a node in one reply: an update, and the question that the server answers next time

Model = tuple[Layout, Float32[np.ndarray, "d"]]


@dataclass(frozen=True, kw_only=True)
class ToNode:
    """What the server sends to a node, beside what the strategy's user sends.

    Args:
        client: The number that the server gave to the node.
        seconds: How long after the message was made a node may begin to train: after it, its round may be over, and
            what it would be charged for is refused.
        answer: The server's reply to the node's last question; None if it has none.
        first_model: The layers and values of the first model, for a node that has none; else None.
    """

    client: int
    seconds: float
    answer: bytes | None = None
    first_model: Model | None = None

    def write(self, content: RecordDict) -> None:
        """Add it to the content of a message."""
        record = ConfigRecord({"client": self.client, "seconds": self.seconds})
        if self.answer is not None:
            record["answer"] = self.answer
        content[RECORD] = record
        if self.first_model is not None:
            content[ARRAYS] = arrays_of(*self.first_model)

    @classmethod
    def read(cls, content: RecordDict) -> "ToNode":
        """Read it from the content of a message.

        Raises:
            CorruptPayload: There is none, or a value of another type.
        """
        record = content.get(RECORD)
        values = dict(record) if isinstance(record, ConfigRecord) else {}
        client, seconds, answer = values.get("client"), values.get("seconds"), values.get("answer")
        if not isinstance(client, int) or not isinstance(seconds, float) or not isinstance(answer, bytes | None):
            raise CorruptPayload(
                "the message holds no record of dpcomp: the ServerApp has another strategy than PrivateStrategy"
            )
        arrays = content.get(ARRAYS)
        first_model = model_of(arrays) if isinstance(arrays, ArrayRecord) else None
        return cls(client=client, seconds=seconds, answer=answer, first_model=first_model)


@dataclass(frozen=True, kw_only=True)
class FromNode:
    """What a node replies.

    Args:
        messages: Messages of `dpcomp.federated` to the server: an update and a question, or either.
        metrics: What the app declared to leave the node without noise.
    """

    messages: tuple[bytes, ...]
    metrics: MetricRecord

    def content(self) -> RecordDict:
        """Return the content of the reply; a node without a first model has no messages."""
        # Flower knows the type of a list by its first value, so an empty one is left out.
        content = RecordDict({RECORD: ConfigRecord({"messages": list(self.messages)} if self.messages else {})})
        if len(self.metrics):
            content[METRICS] = self.metrics
        return content

    @classmethod
    def read(cls, content: RecordDict) -> "FromNode":
        """Read it from the content of a reply.

        Raises:
            CorruptPayload: There is none, a value has another type, or there are too many messages.
        """
        record, metrics = content.get(RECORD), content.get(METRICS, MetricRecord())
        messages = record.get("messages", []) if isinstance(record, ConfigRecord) else None
        if (
            not isinstance(messages, list)
            or len(messages) > MOST_MESSAGES
            or not all(isinstance(message, bytes) for message in messages)
            or not isinstance(metrics, MetricRecord)
        ):
            raise CorruptPayload("the reply holds no record of dpcomp: the node's app is no PrivateClientApp")
        return cls(messages=tuple(messages), metrics=metrics)  # pyright: ignore[reportArgumentType]


def arrays_of(layout: Layout, model: Float32[np.ndarray, "d"]) -> ArrayRecord:
    """Return a model as Flower's arrays, one for each layer, under the layer's name."""
    parts = zip(layout.shapes, layout.split(model), strict=True)
    return ArrayRecord({name: Array(part.reshape(shape)) for (name, shape), part in parts})


def model_of(arrays: ArrayRecord) -> Model:
    """Return the layers and values of Flower's arrays.

    Raises:
        CorruptPayload: An array can't be read.
        ValueError: A value is no float32.
    """
    try:
        parts = {name: array.numpy() for name, array in arrays.items()}
    except Exception as error:  # NumPy's reader raises many
        raise CorruptPayload(f"the arrays of the message can't be read ({type(error).__name__})") from error
    if others := [name for name, part in parts.items() if part.dtype != np.float32]:
        raise ValueError(
            f"the arrays {', '.join(others)} are no float32: give the trainable parameters alone, without buffers, as "
            "ArrayRecord(dict(model.named_parameters()))"
        )
    return Layout.of({name: part.shape for name, part in parts.items()}), flat(parts.values())


def flat(parts: Iterable[np.ndarray]) -> Float32[np.ndarray, "d"]:
    """Return the values of layers as one vector."""
    return np.concatenate([np.empty(0, np.float32), *(part.reshape(-1) for part in parts)])

"""Traffic: what a server has received and sent, and what it has refused, as counts that outlive its process."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

REFUSED = "refused "  # begins the name of an array that counts refusals


@dataclass(frozen=True, order=True, kw_only=True)
class Traffic:
    """What a server has received from its clients and has replied, without what the transport adds.

    Attributes:
        messages: The number of messages received.
        received_bytes: Their bytes.
        sent_bytes: The bytes of the replies, and with them of all broadcasts and snapshots that were sent as replies.
    """

    messages: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0

    def after(self, received: int, sent: int) -> "Traffic":
        """Return the traffic after another message.

        Args:
            received: The bytes of the message.
            sent: The bytes of the reply; 0 for none.
        """
        return Traffic(
            messages=self.messages + 1,
            received_bytes=self.received_bytes + received,
            sent_bytes=self.sent_bytes + sent,
        )


def counts_as_arrays(traffic: Traffic, refusals: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return traffic and refusals as arrays for a checkpoint."""
    totals = (traffic.messages, traffic.received_bytes, traffic.sent_bytes)
    counts = {f"{REFUSED}{reason}": np.array([count], dtype=np.int64) for reason, count in refusals.items()}
    return {"traffic": np.array(totals, dtype=np.int64), **counts}


def counts_in_arrays(arrays: Mapping[str, np.ndarray]) -> tuple[Traffic, Counter[str]]:
    """Return the traffic and refusals that a checkpoint holds; zeros where it is of an earlier version."""
    messages, received, sent = map(int, arrays.get("traffic", np.zeros(3)))
    refusals = Counter(
        {name.removeprefix(REFUSED): int(arrays[name][0]) for name in arrays if name.startswith(REFUSED)}
    )
    return Traffic(messages=messages, received_bytes=received, sent_bytes=sent), refusals

"""RoundOutcome: what was sent in one round, and what of it was accepted."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dpcomp.core.layout import Layout
from dpcomp.simulation.network.traffic import ByteCounts

BITS_OF, REFUSED = "bits of ", "refused_"  # how the columns of a layer, and of a reason, begin


@dataclass(frozen=True, kw_only=True)
class RoundOutcome:
    """What was sent in one round, and what of it was accepted.

    Attributes:
        sent: Bytes of all messages.
        payload_bytes: The length of each accepted payload.
        layer_bits: For each payload that was made, the bits a value that it spends on each layer; empty unless the
            codec's allocator spreads them.
        refused: The number of refused messages, by reason.
        away: The number of clients that are away.
    """

    sent: ByteCounts
    payload_bytes: tuple[int, ...]
    layer_bits: tuple[Mapping[str, float], ...]
    refused: Counter[str]
    away: int

    def columns(self, layout: Layout) -> dict[str, float]:
        """Return the columns about bytes and refusals. Without an accepted payload there is no mean payload."""
        accepted = len(self.payload_bytes)
        row: dict[str, float] = {
            "participants": accepted,
            "uplink_bytes": self.sent.uplink,
            "downlink_bytes": self.sent.downlink,
            "control_bytes": self.sent.control,
        }
        if accepted:
            row["payload_bytes"] = sum(self.payload_bytes) / accepted
            row["compression_ratio"] = 4 * layout.size * accepted / sum(self.payload_bytes)
        for name in self.layer_bits[0] if self.layer_bits else ():
            row[BITS_OF + name] = float(np.mean([bits[name] for bits in self.layer_bits]))
        return row | {REFUSED + reason: count for reason, count in self.refused.items()}

"""RoundTrip: one client and the server, up to the message that is measured."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

import dpcomp as dp
from dpcomp.core.layout import Layout
from dpcomp.wire.update import with_claim

Vector = Float32[np.ndarray, "d"]


class RoundTrip:
    """Sends and receives one update as often as it is asked to: sending and receiving leave the memories alone.

    Args:
        codec: How the update is coded.
        rounds: The vectors of two rounds, each (d,).
        layout: Their layers.
        feedback: Whether the sender adds what it dropped in the round before.
        second: Whether the update of the second round is measured, or that of the first.
    """

    def __init__(self, codec: dp.Codec, rounds: Sequence[Vector], layout: Layout, *, feedback: bool, second: bool):
        self.pipeline = dp.Pipeline(mechanism=dp.unsafe("a measurement of the wire"), codec=codec, feedback=feedback)
        self.client = self.pipeline.init_client(layout, seed=dp.PublicSeed(0), client=0)
        self.server = self.pipeline.init_server(layout, seed=dp.PublicSeed(0))
        if second:
            payload, self.client = self.pipeline.send(self._update(rounds[0]), self.client)
            _, self.server = self.pipeline.receive(payload, self.server)
        values = rounds[second]
        self.update = self._update(values)
        self.target = values if self.client.residual is None else self.client.residual + values

    def send(self) -> bytes:
        """Make the payload of the update."""
        return self.pipeline.send(self.update, self.client)[0]

    def receive(self, payload: bytes) -> dp.Update:
        """Read a payload of the update, as the server does."""
        return self.pipeline.receive(payload, self.server)[0]

    def _update(self, values: Vector) -> dp.Update:
        claim = self.pipeline.claim
        return with_claim(dp.Update(values=values, layout=self.client.layout, address=self.client.address), claim)

"""The ways to send an update whose cost is measured, each the whole road through the public API."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float32

import dpcomp as dp
from dpcomp.wire.loopback import Loopback
from experiments.studies.recorded_updates import CLIENT, Rounds
from experiments.studies.replay import Releases

FRACTION = 0.01  # of the random support before the noise


@dataclass(frozen=True, kw_only=True)
class Sender:
    """A codec, with or without error feedback; `masked`: a public random support stands before the noise."""

    name: str
    codec: dp.Codec
    feedback: bool = False
    masked: bool = False

    def pipeline(self, *, trust: Literal["nobody", "server"], clip_norm: float, noise_multiplier: float) -> dp.Pipeline:
        """Make the pipeline, for a trusted server or for one that nobody trusts."""
        mask = (dp.RandomK(FRACTION),) if self.masked else ()
        return dp.Pipeline(
            mechanism=(*mask, dp.Clip(clip_norm), dp.Gaussian(noise_multiplier)),
            codec=self.codec,
            feedback=self.feedback,
            unit="example" if trust == "nobody" else "client",
            trust=trust,
        )


def _top(percent: float, quantize: dp.Uniform | None) -> dp.Codec:
    return dp.Codec(sparsify=dp.TopK(percent / 100), quantize=quantize)


SENDERS = (
    Sender(name="float32", codec=dp.Codec()),
    Sender(name="float16", codec=dp.Codec(quantize=dp.Float16())),
    Sender(name="8 bits, packed", codec=dp.Codec(quantize=dp.Uniform(8), entropy=dp.FixedWidth())),
    Sender(name="8 bits", codec=dp.Codec(quantize=dp.Uniform(8))),
    Sender(name="4 bits", codec=dp.Codec(quantize=dp.Uniform(4))),
    Sender(name="2 bits", codec=dp.Codec(quantize=dp.Uniform(2))),
    Sender(name="4 bits, dithered", codec=dp.Codec(quantize=dp.Uniform(4, rounding=dp.Dithered()))),
    Sender(name="4 bits, predicted", codec=dp.Codec(predict=dp.LastBroadcast(), quantize=dp.Uniform(4))),
    Sender(name="rotated", codec=dp.Codec(quantize=dp.Rotated())),
    Sender(name="sign", codec=dp.Codec(quantize=dp.Sign())),
    Sender(name="ternary", codec=dp.Codec(quantize=dp.Ternary())),
    Sender(name="top 10 %, 4 bits", codec=_top(10, dp.Uniform(4)), feedback=True),
    Sender(name="top 1 %, 4 bits", codec=_top(1, dp.Uniform(4)), feedback=True),
    Sender(name="top 0.1 %, 4 bits", codec=_top(0.1, dp.Uniform(4)), feedback=True),
    Sender(name="top 1 %, float32", codec=_top(1, None), feedback=True),
    Sender(name="random 1 %, 4 bits", codec=dp.Codec(quantize=dp.Uniform(4)), masked=True),
)


class Road:
    """From one client to the server in its second round: what a codec remembers of the first is there.

    trust: "nobody", the update is a release with noise; "server", it is the clean sum.
    """

    def __init__(self, sender: Sender, rounds: Rounds, *, trust: Literal["nobody", "server"], noise_multiplier: float):
        self.pipeline = sender.pipeline(trust=trust, clip_norm=rounds.clip_norm, noise_multiplier=noise_multiplier)
        client = self.pipeline.init_client(rounds.layout, rounds.seed, CLIENT)
        server = self.pipeline.init_server(rounds.layout, rounds.seed)
        ends = Loopback(self.pipeline.channel, server, {CLIENT: client})
        totals = rounds.restricted[FRACTION] if sender.masked else rounds.whole
        release = Releases(self.pipeline, rounds)

        def update(number: int) -> dp.Update:
            total, memory = totals[number], ends.clients[CLIENT]
            if trust == "nobody":
                return release(total, number, memory)
            values = total.vector().astype(np.float32)
            return dp.Update(values=values, layout=rounds.layout, address=memory.address, support=total.support)

        estimate = ends.send(update(0)).received
        if trust == "server":  # what stands for the round's sum is noised before it is broadcast
            received = estimate.values if sender.masked else estimate.dense()
            estimate = release(replace(totals[0], layers=(received,)), 0, ends.server)
        ends.broadcast(estimate)
        self.client, self.server, self.update = ends.clients[CLIENT], ends.server, update(1)

    @property
    def target(self) -> Float32[np.ndarray, "d"]:
        """What the second update would be, had nothing been lost: with feedback, residual + update."""
        dense = self.update.dense()
        return dense if self.client.residual is None else self.client.residual + dense

    def encode(self) -> bytes:
        """Encode the second update as a payload; the memories stay as they are."""
        return self.pipeline.send(self.update, self.client)[0]

    def decode(self, payload: bytes) -> Float32[np.ndarray, "d"]:
        """Decode the whole (d,) vector of a payload."""
        return self.pipeline.receive(payload, self.server)[0].dense()

"""Recorded rounds through the whole road, noise, codec and back, under one setting: what each payload spends."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

import dpcomp as dp
from analysis.measures.payload_rate import PayloadRate
from dpcomp.core.support import Support
from dpcomp.wire.loopback import Loopback
from dpcomp.wire.memory import ServerMemory
from experiments.studies.recorded_updates import CLIENT, Rounds


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A pipeline of the study, but for its clip norm.

    order: "noise first", the codec's top-k of what carries the noise; or "support first", a public random support on
        which units are clipped and noised.
    trust: "nobody", the uplink carries the noise; or "server", it is clean, and the broadcast carries the noise.
    noise_multiplier: z, the noise's stddev on the sum ÷ the clip norm.
    """

    order: Literal["noise first", "support first"]
    trust: Literal["nobody", "server"]
    feedback: bool
    density: float
    bits: int
    noise_multiplier: float

    def pipeline(self, clip_norm: float) -> dp.Pipeline:
        """Make the pipeline; without noise it has no guarantee."""
        first = self.order == "support first"
        stages = (
            *((dp.RandomK(self.density),) if first else ()),
            dp.Clip(clip_norm),
            dp.Gaussian(self.noise_multiplier),
        )
        return dp.Pipeline(
            mechanism=stages if self.noise_multiplier else dp.unsafe("the reference without noise", *stages),
            codec=dp.Codec(sparsify=None if first else dp.TopK(self.density), quantize=dp.Uniform(self.bits)),
            feedback=self.feedback,
            unit="example" if self.trust == "nobody" else "client",
            trust=self.trust,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sent:
    """One payload: on which way, on what support, and what it spends."""

    link: Literal["uplink", "downlink"]
    number: int  # of the round
    support: Support
    rate: PayloadRate


class Releases:
    """Releases of recorded totals by a pipeline's own mechanism; noise is a function of seed and address.

    All settings of one noise multiplier meet the same noise, and that of another is a multiple of it.
    """

    def __init__(self, pipeline: dp.Pipeline, rounds: Rounds):
        self._pipeline, self._rounds = pipeline, rounds
        self._secret, self._ledger = dp.SecretSeed(rounds.seed.number), dp.Ledger()

    def __call__(self, total: dp.Total, number: int, memory: dp.ClientMemory | ServerMemory) -> dp.Update:
        """Add the noise of its round to a total, at the end whose memory is given.

        A recorded total is no batch that a pipeline clipped, and meets noise many times: pure noise is released, and
        the total added to it. Such an update is for study alone.
        """
        address = dp.Address(self._rounds.seed.number, memory.address.client, number)
        permit = self._ledger.charge(self._pipeline.cost, address)
        at_round = replace(memory, shared=replace(memory.shared, version=number))
        noise = self._pipeline.release([], at_round, self._secret, permit)
        if noise.support != total.support:
            raise ValueError(f"the total of round {number} is on {total.support}, its noise on {noise.support}")
        vector = np.zeros(total.layout.size)
        vector[total.support.indices(total.layout.size)] = total.vector()
        return noise.derive(noise.dense() + vector, noise_stddev=noise.noise_stddev)


def released(setting: Setting, rounds: Rounds) -> list[dp.Update]:
    """Return the releases of a client that trusts nobody, an update a round."""
    pipeline = setting.pipeline(rounds.clip_norm)
    release, memory = Releases(pipeline, rounds), pipeline.init_client(rounds.layout, rounds.seed, CLIENT)
    totals = rounds.whole if setting.order == "noise first" else rounds.restricted[setting.density]
    return [release(total, number, memory) for number, total in enumerate(totals)]


def session(setting: Setting, rounds: Rounds, releases: Sequence[dp.Update]) -> Iterator[Sent]:
    """Every payload of one client's rounds, sent, received, answered by a broadcast, and followed.

    `releases` are the client's, `released` of a setting with this mechanism; a client that trusts the server sends
    its clean sums instead, and the server's release of what it received is broadcast and measured too. There one sum
    stands for what the wire carries up, and for the sum over `batch` units that is noised.
    """
    pipeline, seed, layout = setting.pipeline(rounds.clip_norm), rounds.seed, rounds.layout
    client = pipeline.init_client(layout, seed, CLIENT)
    ends = Loopback(pipeline.channel, pipeline.init_server(layout, seed), {CLIENT: client})
    release, trusted = Releases(pipeline, rounds), pipeline.trust_model.server_sees_clean
    for number in range(len(rounds.whole)):
        update = _clean(setting, rounds, number, ends.clients[CLIENT]) if trusted else releases[number]
        delivery = ends.send(update)
        estimate = delivery.received
        rate = PayloadRate.of(pipeline, delivery.payload, delivery.server_before)
        yield Sent(link="uplink", number=number, support=estimate.support, rate=rate)
        before = ends.server
        answer = release(_total(setting, estimate, rounds.batch), number, before) if trusted else estimate
        broadcast = ends.broadcast(answer)
        if trusted:
            step = ends.server.step
            assert step is not None  # a broadcast was sent
            rate = PayloadRate.of(pipeline, broadcast, before)
            yield Sent(link="downlink", number=number, support=step.support, rate=rate)


def _clean(setting: Setting, rounds: Rounds, number: int, memory: dp.ClientMemory) -> dp.Update:
    """Make the update of a client that trusts the server from a recorded sum."""
    total = rounds.whole[number] if setting.order == "noise first" else rounds.restricted[setting.density][number]
    values = total.vector().astype(np.float32)
    return dp.Update(values=values, layout=rounds.layout, address=memory.address, support=total.support)


def _total(setting: Setting, estimate: dp.Update, units: int) -> dp.Total:
    """Return the total that the server adds noise to: on all coordinates, or on the round's public support."""
    if setting.order == "noise first":
        return dp.Total(layers=(estimate.dense(),), layout=estimate.layout, units=units)
    return dp.Total(layers=(estimate.values,), layout=estimate.layout, support=estimate.support, units=units)

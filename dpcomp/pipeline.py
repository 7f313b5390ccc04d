"""The pipeline: a mechanism, a codec, and the terms on which they run."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from dp_accounting import DpEvent, NonPrivateDpEvent

from dpcomp.codec import Codec
from dpcomp.codec.wiener import Tracked
from dpcomp.core.errors import NotPrivate
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import PublicSeed, SecretSeed
from dpcomp.privacy import Clip, Gaussian, Poisson, Unsafe
from dpcomp.privacy.claim import (
    Bounded,
    Released,
    Stage,
    Transform,
    carried,
    fold,
)
from dpcomp.privacy.cost import Terms
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.privacy.ledger import Permit
from dpcomp.privacy.unit_gradients import Total, Units
from dpcomp.sparsify import RandomK
from dpcomp.wire import exchange
from dpcomp.wire.frame import digest
from dpcomp.wire.memory import ClientMemory, ServerMemory, Shared
from dpcomp.wire.payload import refuse_foreign
from dpcomp.wire.update import Update


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What happens to gradients on their way to the model, and what it costs in privacy.

    `mechanism` is the private side, in order: stages that end in `Gaussian`, or `dp.unsafe(why, *stages)`.
    `codec` is the public side, the uplink's; `downlink` (None: the same) that of the broadcasts. `sampling` says
    how units take part; `feedback`, whether a sender remembers what its codec dropped. `unit` is what one
    neighbour adds or removes; `trust`, who may see values before the noise.

    Raises:
        NotPrivate: the parts, in this order and on these terms, have no guarantee.
        TypeError, ValueError: a part is of another kind than its place wants, or stands where it cannot.
    """

    mechanism: tuple[Stage, ...] | Unsafe
    codec: Codec = field(default_factory=Codec)
    downlink: Codec | None = None
    sampling: Poisson | None = None
    feedback: bool = True
    unit: Literal["example", "client"] = "example"
    trust: Literal["nobody", "server"] = "nobody"

    def __post_init__(self):
        if self.unit not in ("example", "client"):
            raise ValueError(f"Pipeline(unit={self.unit!r}): what one neighbour adds or removes, 'example' or 'client'")
        if self.trust not in ("nobody", "server"):
            raise ValueError(f"Pipeline(trust={self.trust!r}): who sees values before the noise, 'nobody' or 'server'")
        self._check_parts()
        if (self.unit, self.trust) == ("example", "server") and not isinstance(self.mechanism, Unsafe):
            raise NotPrivate(
                "unit='example' with trust='server': a client's clean local steps move its update by no bounded "
                "amount an example. Use unit='client', or trust='nobody' with the noise on the client"
            )
        masks = [stage for stage in self.stages if isinstance(stage, RandomK)]
        codecs = [codec for codec in (self.codec, self.downlink) if codec and isinstance(codec.sparsify, RandomK)]
        if len(masks) + bool(codecs) > 1:
            raise ValueError("RandomK stands twice: a round has one random support, in the mechanism or in the codec")
        if self.codec.averaged_clients:
            self._check_estimates()
        if masks and any(codec.predict for codec in (self.codec, self.downlink) if codec):
            raise ValueError("predict= expects whole updates, and RandomK in the mechanism makes parts: leave one out")
        _ = self.claim, self._noise_l2  # raise now what they would raise at the first release

    def _check_parts(self) -> None:
        if not isinstance(self.mechanism, Unsafe):
            stages = self.mechanism if isinstance(self.mechanism, (tuple, list)) else (self.mechanism,)
            object.__setattr__(self, "mechanism", tuple(stages))
        for number, stage in enumerate(self.stages, start=1):
            if not isinstance(stage, Stage) or isinstance(stage, type):
                raise TypeError(f"mechanism: {stage!r} (stage {number}) is no stage, like dp.Clip(1.0)")
        for name, kind in (("codec", Codec), ("downlink", Codec | None), ("sampling", Poisson | None)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"Pipeline({name}={getattr(self, name)!r}): it must be a {kind}")

    def _check_estimates(self) -> None:
        """Refuse what an allocator that sees the noise would get wrong."""
        if self.feedback or self.codec.sparsify or any(isinstance(stage, RandomK) for stage in self.stages):
            raise ValueError(
                f"{self.codec.quantize} estimates the signal in whole updates, from their variance and the noise's; "
                "what error feedback adds, TopK chooses or RandomK leaves has another one: feedback=False and no "
                "sparsifier, or leave out clients="
            )
        if self.trust == "server":
            raise ValueError(f"{self.codec.quantize} sees privacy noise, but trust='server' sends none: no clients=")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The mechanism's stages, guaranteed or not."""
        return self.mechanism.stages if isinstance(self.mechanism, Unsafe) else self.mechanism

    @property
    def _noise(self) -> Gaussian | None:
        last = self.stages[-1] if self.stages else None
        return last if isinstance(last, Gaussian) else None

    @property
    def _transforms(self) -> tuple[Transform, ...]:
        return self.stages[:-1] if self._noise else self.stages  # pyright: ignore[reportReturnType]

    @cached_property
    def claim(self) -> Released:
        """What the mechanism's output is known to be."""
        if isinstance(self.mechanism, Unsafe):
            return Released(event=NonPrivateDpEvent())
        claim = fold(self.stages)
        for number, stage in enumerate(self.stages, start=1):
            if isinstance(stage, Gaussian) != (number == len(self.stages)):
                raise NotPrivate(
                    f"{type(stage).__name__} (stage {number} of {len(self.stages)}): a mechanism ends in its one "
                    "Gaussian, whose noise the pipeline draws. Put other stages before it, what follows into the codec"
                )
        return claim

    @cached_property
    def _noise_l2(self) -> float:
        """What the noise multiplier multiplies: the bound that the stages before the noise prove.

        Unsafe stages prove none: there it is the last clip norm.
        """
        if self._noise is None:
            return 0.0
        if not isinstance(self.mechanism, Unsafe):
            before = carried(self.stages[:-1])
            if isinstance(before, Bounded):
                return before.l2
        norms = [stage.norm for stage in self.stages if isinstance(stage, Clip)]
        if not norms:
            raise NotPrivate(f"{self._noise} has no Clip before it that says how much noise that is: put one there")
        return norms[-1]

    @cached_property
    def event(self) -> DpEvent:
        """What one release costs, sampling included, unless an untrusted server sees who was sampled."""
        seen = (self.unit, self.trust) == ("client", "nobody")
        if isinstance(self.mechanism, Unsafe) or self.sampling is None or seen:
            return self.claim.event
        return self.sampling.amplify(self.claim.event)

    @cached_property
    def terms(self) -> Terms:
        """What a guarantee says besides its numbers."""
        sampling = "none" if self.sampling is None else f"Poisson {self.sampling.rate:g}"
        if self.sampling is not None and (self.unit, self.trust) == ("client", "nobody"):
            sampling = "no amplification (the server sees who sends)"
        because = self.mechanism.why if isinstance(self.mechanism, Unsafe) else ""
        return Terms(unit=self.unit, trust=self.trust, sampling=sampling, unsafe_because=because)

    def guarantee(self, steps: int, delta: float, population: int | None = None) -> Guarantee:
        """The guarantee of `steps` releases; `population` is the public number of units, to hold δ against."""
        return self.terms.guarantee(((self.event, steps),), delta, population=population)

    # The two ends, at the start of a run.

    def init(self, layout: Any, seed: PublicSeed, client: int) -> ClientMemory:
        """A new client's memory; `layout` is d, or a mapping from layer name to shape."""
        layout = Layout.of(layout)
        shared, residual = self._beginning(layout, seed)
        pipeline = self.fingerprint(layout)
        return ClientMemory(
            pipeline=pipeline,
            layout=layout,
            seed=seed,
            shared=shared,
            residual=residual,
            client=client,
            tracked=Tracked.nothing(layout) if self.codec.averaged_clients else None,
        )

    def init_server(self, layout: Any, seed: PublicSeed) -> ServerMemory:
        """The server's memory at the start."""
        layout = Layout.of(layout)
        shared, residual = self._beginning(layout, seed)
        pipeline = self.fingerprint(layout)
        return ServerMemory(pipeline=pipeline, layout=layout, seed=seed, shared=shared, residual=residual)

    def fingerprint(self, layout: Layout) -> bytes:
        """8 bytes that name the pipeline and the layout; both ends must have the same."""
        # Of this class alone: a subclass that only looks on (federated/probe.py) is the same pipeline on the wire.
        parts = ", ".join(f"{item.name}={getattr(self, item.name)!r}" for item in fields(Pipeline))
        return digest(f"Pipeline({parts})".encode(), layout.digest)

    def _beginning(self, layout: Layout, seed: PublicSeed) -> tuple[Shared, np.ndarray | None]:
        if not isinstance(seed, PublicSeed):
            raise TypeError(f"seed={seed!r}: masks are drawn from a dp.PublicSeed(number), which everybody may know")
        residual = np.zeros(layout.size, dtype=np.float32) if self.feedback else None
        return Shared(digest=exchange.genesis(self, layout, seed)), residual

    # The private side: from blocks to the release.

    def clip(self, block: Any, memory: ClientMemory | ServerMemory) -> Total:
        """The mechanism up to its noise, on one micro-batch; totals add up.

        A block is a tuple of (n, …) arrays (torch, JAX or NumPy), one a layer, or one (n, d) array.

        Raises:
            ValueError: the block does not fit the memory's layout.
        """
        value: Units | Total = Units.of(block, memory.layout)
        for transform in self._transforms:
            value = transform.apply(value, memory.mask_key)
        total = value if isinstance(value, Total) else value.sum()
        return replace(total, mechanism=self.mechanism)

    def nothing(self, memory: ClientMemory | ServerMemory) -> Total:
        """The total of an empty batch, which must release pure noise."""
        return self.clip(np.zeros((0, memory.layout.size), dtype=np.float32), memory)

    def noise(self, total: Total, memory: ClientMemory | ServerMemory, secret: SecretSeed, permit: Permit) -> Update:
        """The release: the total with fresh noise, for one step of the permit.

        The noise is ChaCha20's, drawn and added in float64 and rounded once. Its stream is placed by the
        permit's address and step.

        Raises:
            BudgetExhausted: the permit has no step left, or was charged for another pipeline.
            NotPrivate: the noise stands at the other end, another mechanism made the total, or it holds more than the
                one unit of a client.
            VersionMismatch: another pipeline made the memory.
            TypeError, ValueError: the permit is none, or of another client.
        """
        if not isinstance(secret, SecretSeed) or not isinstance(permit, Permit):
            raise TypeError(
                f"a release wants a dp.SecretSeed and a permit of ledger.charge, not {secret!r} and {permit!r}"
            )
        refuse_foreign(self, memory)
        at_server = isinstance(memory, ServerMemory)
        if at_server != (self.trust == "server"):
            raise NotPrivate(
                f"trust={self.trust!r} puts the noise {'on the client' if at_server else 'at the server'}: "
                f"release there, not with a {type(memory).__name__}"
            )
        if permit.address.client != memory.address.client:
            raise ValueError(f"{permit} cannot release for client {memory.address.client}: charge memory.address")
        if total.mechanism != self.mechanism:
            raise NotPrivate("this total was not made by this pipeline's clip: its noise would be for another bound")
        if (self.unit, self.trust) == ("client", "nobody") and total.units > 1:
            raise NotPrivate(
                f"{total.units} units in one client's release: with unit='client' the client's whole update is the one "
                "unit, a block of shape (1, d)"
            )
        step = permit.spend(self, seeded=secret.seeded)
        vector, place = total.vector(), permit.address
        if self._noise:
            stream = secret.stream("noise", place.run, place.client, place.round, step)
            vector = self._noise.add(vector, stream.standard_normal(len(vector)), self._noise_l2)
        return Update(
            values=vector.astype(np.float32),
            layout=memory.layout,
            address=place,
            support=total.support,
            claim=self.claim,
            noise_stddev=self._noise.noise_multiplier * self._noise_l2 if self._noise else 0.0,
        )

    def release(
        self, blocks: Iterable[Any], memory: ClientMemory | ServerMemory, secret: SecretSeed, permit: Permit
    ) -> Update:
        """Clip every block, add the totals up, add the noise. No blocks at all: pure noise. Raises as the two do."""
        total = None
        for block in blocks:
            part = self.clip(block, memory)
            total = part if total is None else total + part
        return self.noise(self.nothing(memory) if total is None else total, memory, secret, permit)

    # The public side: over the wire and back.

    def send(self, update: Update, memory: ClientMemory) -> tuple[bytes, ClientMemory]:
        """The payload of an update, and the sender's memory once it is accepted.

        Raises:
            NotPrivate: nobody is trusted, and the update is not made of this pipeline's releases.
            VersionMismatch: another pipeline made the memory.
            TypeError, ValueError: the update is of another client or layout, or not finite.
        """
        return exchange.send(self, update, memory)

    def receive(self, payload: bytes, memory: ServerMemory) -> tuple[Update, ServerMemory]:
        """The update that a payload holds, and the server's memory once it is accepted.

        Raises:
            CorruptPayload: the bytes are damaged.
            VersionMismatch: they are sound, but do not follow on what the server knows.
        """
        return exchange.receive(self, payload, memory)

    def broadcast(self, aggregate: Any, memory: ServerMemory) -> tuple[bytes, ServerMemory]:
        """The payload that brings every client from this version to the next.

        `aggregate` is an update, or, where nobody is trusted, a (d,) vector.

        Raises:
            NotPrivate: the aggregate is not made of this pipeline's releases.
            VersionMismatch: another pipeline made the memory.
            TypeError, ValueError: the aggregate is of another layout, or not finite.
        """
        return exchange.broadcast(self, aggregate, memory)

    def follow(self, payload: bytes, memory: ClientMemory) -> ClientMemory:
        """A client's memory after a broadcast; what it said is `memory.step`.

        Raises:
            CorruptPayload: the bytes are damaged.
            VersionMismatch: they are sound, but do not follow on what the client knows.
        """
        return exchange.follow(self, payload, memory)

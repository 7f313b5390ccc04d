"""The pipeline: a mechanism and a codec, who is trusted, and what a release costs."""

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import tomli_w
from dp_accounting import NonPrivateDpEvent

from dpcomp.codec import (
    Codec,
    Dithered,
    Equal,
    FixedStep,
    FixedWidth,
    Float16,
    Float32,
    LastBroadcast,
    Nearest,
    RangeCoder,
    Rotated,
    Sign,
    Stochastic,
    Ternary,
    Uniform,
    Waterfill,
)
from dpcomp.codec.wiener import TrackedSignal
from dpcomp.core.calls import Calls, as_table, as_toml_table, check_keys, from_table
from dpcomp.core.errors import ConfigError, NotPrivate
from dpcomp.core.layout import Layout
from dpcomp.core.public_context import HasPublicSupport, ReadsHistory
from dpcomp.core.randomness import PublicSeed, SecretSeed
from dpcomp.privacy import Clip, Gaussian, Poisson, Unsafe
from dpcomp.privacy.claim import Bounded, Released, Stage, Transform, claim_after, fold
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.privacy.ledger import Permit
from dpcomp.privacy.trust import Trust, TrustModel, Unit
from dpcomp.privacy.unit_gradients import Total, Units
from dpcomp.sparsify import RandomK, TopK
from dpcomp.wire import exchange
from dpcomp.wire.channel import Channel
from dpcomp.wire.frame import digest
from dpcomp.wire.memory import ClientMemory, ServerMemory
from dpcomp.wire.update import Update

# What a pipeline may be made of, by the names that a table calls them.
PARTS: dict[str, type] = {
    part.__name__: part
    for part in (
        *(Clip, Gaussian, RandomK, TopK, Poisson, Codec, LastBroadcast),
        *(Uniform, Nearest, Stochastic, Dithered, Equal, Waterfill, FixedStep),
        *(Float32, Float16, Sign, Ternary, Rotated, FixedWidth, RangeCoder),
    )
}


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What happens to gradients on their way to the model, and what it costs in privacy.

    Args:
        mechanism: The private side, in order: stages that end in `Gaussian`, or `dp.unsafe(why, *stages)`.
        codec: The public side: how updates are coded.
        downlink: How broadcasts are coded; None for the same as `codec`.
        sampling: How units take part; None for all of them, always.
        feedback: Whether a sender remembers what its codec dropped, and adds it to the next update.
        unit: What one neighbour adds or removes, "example" or "client".
        trust: Who may see values before the noise, "nobody" or "server".

    Raises:
        NotPrivate: The parts, in this order and under this trust, have no guarantee.
        TypeError: A part is no frozen dataclass, or of another type than its place wants.
        ValueError: A part stands where it cannot.

    Examples:
        >>> import dpcomp as dp
        >>> pipeline = dp.Pipeline(
        ...     sampling=dp.Poisson(0.1),
        ...     mechanism=(dp.Clip(1.0), dp.Gaussian(1.1)),
        ...     codec=dp.Codec(sparsify=dp.TopK(0.01), quantize=dp.Uniform(4)),
        ... )
        >>> print(pipeline.guarantee(steps=100, delta=1e-5))  # doctest: +ELLIPSIS
        ε ≤ ... at δ = 1e-05 · one example, add/remove · Poisson 0.1 × 100 · ...
    """

    mechanism: tuple[Stage, ...] | Unsafe
    codec: Codec = field(default_factory=Codec)
    downlink: Codec | None = None
    sampling: Poisson | None = None
    feedback: bool = True
    unit: Unit = "example"
    trust: Trust = "nobody"

    def __post_init__(self):
        self._check_parts()
        if not isinstance(self.mechanism, Unsafe) and (refusal := self.trust_model.why_refused):
            raise NotPrivate(refusal)
        codecs = [self.codec, *([self.downlink] if self.downlink else [])]
        masks = [stage for stage in self.stages if isinstance(stage, HasPublicSupport)]
        if len(masks) + any(isinstance(codec.sparsify, HasPublicSupport) for codec in codecs) > 1:
            raise ValueError(
                "two parts have a public support: a round has one, of the mechanism or of the codec. Leave one out"
            )
        if self.codec.averaged_clients:
            self._check_estimates()
        if masks and any(codec.predict for codec in codecs):
            raise ValueError(
                "predict= expects whole updates, and a support in the mechanism makes parts: leave one out"
            )
        # Raise now what they would raise at the first release or message.
        _ = self.claim, self._noise_l2, self.channel.history_reader

    def _check_parts(self) -> None:
        if not isinstance(self.mechanism, Unsafe):
            stages = self.mechanism if isinstance(self.mechanism, (tuple, list)) else (self.mechanism,)
            object.__setattr__(self, "mechanism", tuple(stages))
        for number, stage in enumerate(self.stages, start=1):
            if not isinstance(stage, Stage) or isinstance(stage, type):
                raise TypeError(f"mechanism: {stage!r} (stage {number}) is no stage, like dp.Clip(1.0)")
        for name, expected in (("codec", Codec), ("downlink", Codec | None), ("sampling", Poisson | None)):
            if not isinstance(getattr(self, name), expected):
                raise TypeError(f"Pipeline({name}={getattr(self, name)!r}): it must be a {expected}")
        _ = self.trust_model, self._description  # refuse an unknown unit or trust, and a part that has no description

    def _check_estimates(self) -> None:
        """Refuse what an allocator that sees the noise would get wrong."""
        masked = any(isinstance(stage, HasPublicSupport) for stage in self.stages)
        if self.feedback or self.codec.sparsify or masked:
            raise ValueError(
                f"{self.codec.quantize} estimates the signal in whole updates, from their variance and the noise's; "
                "what error feedback adds, TopK chooses or RandomK leaves has another one: feedback=False and no "
                "sparsifier, or leave out clients="
            )
        if self.trust_model.server_sees_clean:
            raise ValueError(f"{self.codec.quantize} sees privacy noise, but trust='server' sends none: no clients=")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The mechanism's stages, guaranteed or not."""
        return self.mechanism.stages if isinstance(self.mechanism, Unsafe) else self.mechanism

    @property
    def trust_model(self) -> TrustModel:
        """The unit and the trust as one value, which says what follows from them."""
        return TrustModel(unit=self.unit, trust=self.trust)

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
            before = claim_after(self.stages[:-1])
            if isinstance(before, Bounded):
                return before.l2
        norms = [stage.norm for stage in self.stages if isinstance(stage, Clip)]
        if not norms:
            raise NotPrivate(f"{self._noise} has no Clip before it that says how much noise that is: put one there")
        return norms[-1]

    @property
    def cost(self) -> Cost:
        """What one release costs, sampling included where it amplifies, and the unit and trust that it holds for."""
        return self._cost

    @cached_property
    def _cost(self) -> Cost:
        event, sampling = self.claim.event, "none"
        if self.sampling is not None:
            sampling = f"Poisson {self.sampling.rate:g}"
            if not self.trust_model.amplified:
                sampling = "no amplification (the server sees who sends)"
            elif not isinstance(self.mechanism, Unsafe):
                event = self.sampling.amplify(event)
        why_unsafe = self.mechanism.why if isinstance(self.mechanism, Unsafe) else ""
        return Cost(event=event, unit=self.unit, trust=self.trust, sampling=sampling, why_unsafe=why_unsafe)

    @property
    def channel(self) -> Channel:
        """What wire and federation need of this pipeline: its codecs, and what is released."""
        return self._channel

    @cached_property
    def _channel(self) -> Channel:
        public = tuple(stage for stage in self.stages if isinstance(stage, (HasPublicSupport, ReadsHistory)))
        return Channel(
            identity=digest(json.dumps(self._description, sort_keys=True).encode()),
            uplink=self.codec,
            downlink=self.codec if self.downlink is None else self.downlink,
            feedback=self.feedback,
            claim=self.claim,
            server_sees_clean=self.trust_model.server_sees_clean,
            stages=public,
        )

    @cached_property
    def _description(self) -> dict[str, Any]:
        """All fields as plain types."""
        # Of this class alone: a subclass that only looks on (simulation/probes.py) is the same pipeline on the wire.
        table: dict[str, Any] = {}
        for item in fields(Pipeline):
            value = getattr(self, item.name)
            if isinstance(value, Unsafe):
                table["unsafe"], value = value.why, value.stages
            table[item.name] = as_table(value, item.name)
        return table

    def to_table(self) -> dict[str, Any]:
        """Return the pipeline as plain types, as `[pipeline]` of a TOML file has it: class names with their fields.

        None is left out, since TOML has none. An unsafe mechanism is its stages, and `unsafe` its reason.

        Raises:
            ValueError: A field holds None though its default is something else.
        """
        table: dict[str, Any] = {}
        for item in fields(Pipeline):
            value = getattr(self, item.name)
            if isinstance(value, Unsafe):
                table["unsafe"], value = value.why, value.stages
            if value is not None:
                table[item.name] = as_toml_table(value, item.name)
        return table

    def to_toml(self) -> str:
        """Return the pipeline as the text of a TOML file, which `from_toml` reads."""
        return tomli_w.dumps(self.to_table())

    @classmethod
    def from_table(cls, table: dict[str, Any], parts: Iterable[type] = ()) -> "Pipeline":
        """Return the pipeline that a table describes.

        Args:
            table: Plain types, as `to_table` gives them.
            parts: Classes beyond dpcomp's own that the table may call.

        Raises:
            ConfigError: A name means nothing, or a call is refused.
            NotPrivate: The pipeline has no guarantee.
        """
        calls: Calls = {**PARTS, **{part.__name__: part for part in parts}}
        check_keys(table, (*(item.name for item in fields(Pipeline)), "unsafe"), "[pipeline]")
        values = {key: from_table(value, key, calls) for key, value in table.items() if key != "unsafe"}
        if "mechanism" not in values:
            values["mechanism"] = ()
        if "unsafe" in table:
            values["mechanism"] = Unsafe(table["unsafe"], values["mechanism"])
        return cls(**values)

    @classmethod
    def from_toml(cls, text: str, parts: Iterable[type] = ()) -> "Pipeline":
        """Return the pipeline that a TOML text describes.

        Args:
            text: What `to_toml` gave, or what was written by hand in the same form.
            parts: Classes beyond dpcomp's own that the text may call.

        Raises:
            ConfigError: The text is no TOML, a name means nothing, or a call is refused.
            NotPrivate: The pipeline has no guarantee.
        """
        try:
            return cls.from_table(tomllib.loads(text), parts)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"the text is no TOML: {error}") from error

    def guarantee(self, steps: int, delta: float, population: int | None = None) -> Guarantee:
        """Return the guarantee of `steps` releases, on a schedule that was fixed in advance.

        Args:
            steps: How many releases one unit's data go through, 0 or more.
            delta: δ, in (0, 1).
            population: The public number of units, to hold δ against.

        Raises:
            TypeError, ValueError: `steps` is no whole number from 0 on, or δ none in (0, 1).
        """
        return self.cost.guarantee(steps, delta, population=population)

    # The two ends, at the start of a run.

    def init_client(self, layout: Any, seed: PublicSeed, client: int) -> ClientMemory:
        """Return a new client's memory.

        Args:
            layout: d, or a mapping from layer name to shape, or a `Layout`.
            seed: The public seed of the run, the same at all ends.
            client: The client's number, from 0.

        Raises:
            TypeError: The seed is no `PublicSeed`.
        """
        layout = Layout.of(layout)
        return ClientMemory(
            client=client,
            tracked=TrackedSignal.initial(layout) if self.codec.averaged_clients else None,
            **self._memory_at_start(layout, seed),
        )

    def init_server(self, layout: Any, seed: PublicSeed) -> ServerMemory:
        """Return the server's memory before the first round; the arguments are those of `init_client`."""
        return ServerMemory(**self._memory_at_start(Layout.of(layout), seed))

    def _memory_at_start(self, layout: Layout, seed: PublicSeed) -> dict[str, Any]:
        if not isinstance(seed, PublicSeed):
            raise TypeError(f"seed={seed!r}: masks are drawn from a dp.PublicSeed(number), which everybody may know")
        return {
            "pipeline": self.channel.fingerprint(layout),
            "layout": layout,
            "seed": seed,
            "shared": self.channel.shared_at_start(layout, seed),
            "residual": np.zeros(layout.size, dtype=np.float32) if self.feedback else None,
        }

    # The private side: from blocks to the release.

    def clip(self, block: Any, memory: ClientMemory | ServerMemory) -> Total:
        """Run the mechanism up to its noise on one micro-batch.

        Args:
            block: A tuple of (n, …) arrays (torch, JAX or NumPy), one a layer, or one (n, d) array: n units.
            memory: Of the end that releases.

        Returns:
            The sum over the units; totals of micro-batches add up.

        Raises:
            ValueError: The block does not fit the memory's layout.
        """
        value: Units | Total = Units.of(block, memory.layout)
        context = self.channel.context(memory)
        for transform in self._transforms:
            value = transform.apply(value, context)
        total = value if isinstance(value, Total) else value.sum()
        return replace(total, mechanism=self.mechanism)

    def empty_total(self, memory: ClientMemory | ServerMemory) -> Total:
        """Return the total of an empty batch, whose release is pure noise."""
        return self.clip(np.zeros((0, memory.layout.size), dtype=np.float32), memory)

    def noise(self, total: Total, memory: ClientMemory | ServerMemory, secret: SecretSeed, permit: Permit) -> Update:
        """Release a total: add fresh noise to it, for one step of the permit.

        The noise is ChaCha20's, drawn and added in float64 and rounded once. Its stream is placed by the permit's
        address and step.

        Args:
            total: What this pipeline's `clip` gave, or a sum of such totals.
            memory: Of the end that draws the noise.
            secret: Where the noise comes from.
            permit: What `ledger.charge` gave for this pipeline's cost and the memory's address.

        Returns:
            An update whose claim is this pipeline's release.

        Raises:
            BudgetExhausted: The permit has no step left, or another cost was charged.
            NotPrivate: The noise belongs to the other end, another mechanism made the total, or it holds more than the
                one unit of a client.
            VersionMismatch: Another pipeline made the memory.
            TypeError, ValueError: The secret or permit is none, or the permit is of another client.
        """
        if not isinstance(secret, SecretSeed) or not isinstance(permit, Permit):
            raise TypeError(
                f"a release wants a dp.SecretSeed and a permit of ledger.charge, not {secret!r} and {permit!r}"
            )
        self.channel.refuse_foreign_memory(memory)
        noise_at, end = self.trust_model.noise_at, "server" if isinstance(memory, ServerMemory) else "client"
        if end != noise_at:
            raise NotPrivate(
                f"trust={self.trust!r} puts the noise {'at the server' if noise_at == 'server' else 'on the client'}: "
                f"release there, not with a {type(memory).__name__}"
            )
        if permit.address.client != memory.address.client:
            raise ValueError(f"{permit} cannot release for client {memory.address.client}: charge memory.address")
        if total.mechanism != self.mechanism:
            raise NotPrivate("this total was not made by this pipeline's clip: its noise would be for another bound")
        most = self.trust_model.units_per_release
        if most is not None and total.units > most:
            raise NotPrivate(
                f"{total.units} units in one client's release: with unit='client' the client's whole update is the one "
                "unit, a block of shape (1, d)"
            )
        step = permit.spend(self.cost, seeded=secret.seeded)
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
        """Clip every block, add the totals up, and add the noise; no blocks at all release pure noise.

        Args:
            blocks: Micro-batches, each as `clip` takes it.
            memory: Of the end that draws the noise.
            secret: Where the noise comes from.
            permit: What `ledger.charge` gave for this pipeline's cost and the memory's address.

        Raises:
            BudgetExhausted, NotPrivate, VersionMismatch, TypeError, ValueError: As `clip` and `noise` do.

        Examples:
            >>> import numpy as np
            >>> import dpcomp as dp
            >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
            >>> memory = pipeline.init_client(10, dp.PublicSeed(0), client=7)
            >>> permit = dp.Ledger().charge(pipeline.cost, memory.address)
            >>> update = pipeline.release([np.ones((32, 10))], memory, dp.SecretSeed(), permit)
            >>> payload, memory = pipeline.send(update, memory)
            >>> len(payload)
            106
        """
        total = None
        for block in blocks:
            part = self.clip(block, memory)
            total = part if total is None else total + part
        return self.noise(self.empty_total(memory) if total is None else total, memory, secret, permit)

    # The public side: over the wire and back.

    def send(self, update: Update, memory: ClientMemory) -> tuple[bytes, ClientMemory]:
        """Encode an update; return the payload, and the sender's memory once it is accepted.

        Raises:
            NotPrivate: The server is not trusted, and the update was not released by this pipeline.
            VersionMismatch: Another pipeline made the memory.
            TypeError, ValueError: The update is of another client or layout, or not finite.
        """
        return exchange.send(self.channel, update, memory)

    def receive(self, payload: bytes, memory: ServerMemory) -> tuple[Update, ServerMemory]:
        """Decode a client's payload; return the update, and the server's memory once it accepts it.

        Raises:
            CorruptPayload: The bytes are damaged.
            VersionMismatch: They are sound, but do not follow on what the server knows.
        """
        return exchange.receive(self.channel, payload, memory)

    def broadcast(self, aggregate: Any, memory: ServerMemory) -> tuple[bytes, ServerMemory]:
        """Encode the server's step; return the payload for all clients, and the server's memory at the next version.

        `aggregate` is an update, or, where the server is not trusted, a (d,) vector.

        Raises:
            NotPrivate: The aggregate was not released by this pipeline.
            VersionMismatch: Another pipeline made the memory.
            TypeError, ValueError: The aggregate is of another layout, or not finite.
        """
        return exchange.broadcast(self.channel, aggregate, memory)

    def follow(self, payload: bytes, memory: ClientMemory) -> ClientMemory:
        """Decode a broadcast; return the client's memory after it, whose `step` is what the model moves by.

        Raises:
            CorruptPayload: The bytes are damaged.
            VersionMismatch: They are sound, but do not follow on what the client knows.
        """
        return exchange.follow(self.channel, payload, memory)

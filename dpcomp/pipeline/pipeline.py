"""Pipeline: a private mechanism and a codec as a single value, with its privacy cost."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import tomli_w
from jaxtyping import Float, Int32, Int64

from dpcomp.codec import Codec
from dpcomp.codec.wiener import TrackedSignal
from dpcomp.core.checks import check_type
from dpcomp.core.errors import NotPrivate
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import DitherKey, DitherKeys, PublicSeed, SecretSeed
from dpcomp.core.support import Everywhere
from dpcomp.pipeline.checks import check_state, check_together, check_types
from dpcomp.pipeline.display import as_code, as_html
from dpcomp.pipeline.mechanism import adaptive_clip_of, claim_of, cost_of, gaussian_of, noise_stddev_of, shared_noise_of
from dpcomp.pipeline.table import PARTS, canonical_text, read_toml, toml_table, values_of_table
from dpcomp.pipeline.unchanged import Facts, HeldObjects, facts_if_unchanged, facts_of
from dpcomp.privacy import AdaptiveClip, Clip, Gaussian, Poisson, Unsafe
from dpcomp.privacy.claim import Released, Stage, Transform
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.gaussian import noise_of_step, public_grid
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.privacy.ledger.permit import Permit
from dpcomp.privacy.shared_noise import SharedNoise
from dpcomp.privacy.traced.clipped_sum import is_traced
from dpcomp.privacy.traced.noise import DrawnNoise, StepNoise
from dpcomp.privacy.traced.release import Block, MechanismInTrace, TracedRelease
from dpcomp.privacy.trust import Trust, TrustModel, Unit
from dpcomp.privacy.units.batches import Batches
from dpcomp.privacy.units.factored_units import FactoredUnits
from dpcomp.privacy.units.own_stages import refuse_mixed_units, refuse_other_support
from dpcomp.privacy.units.unit_gradients import Total, Units
from dpcomp.sparsify import RandomK, TopK
from dpcomp.wire import exchange
from dpcomp.wire.channel import Channel
from dpcomp.wire.feedback import ErrorFeedback, Feedback, Kept, SenderFeedback
from dpcomp.wire.frame import digest
from dpcomp.wire.memory import ClientMemory, Genesis, ServerMemory
from dpcomp.wire.update import Update, with_claim


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A mechanism and a codec: how gradients are privatised, compressed, sent and applied, and at what privacy cost.

    The mechanism is checked when the pipeline is made, so a pipeline without a guarantee does not exist, except with
    `dp.unsafe`. A pipeline holds no state: memories and updates go through its methods. A client's side of a round is
    `release` (which is `clip` and `noise`), `send` and `follow`; the server's is `receive` and `broadcast`.

    **Privacy:** the guarantee is that of the mechanism, which ends with the noise; all that the codec does is
    post-processing of released values (PRIVACY_RULES 1). If the server is trusted, the updates are sent clean, and the
    server releases their sum (PRIVACY_RULES 10 and 22).

    Args:
        mechanism: The stages of the private side in order, the last of them `Gaussian`; or `dp.unsafe(why, *stages)`.
        codec: How updates are coded.
        downlink: How broadcasts are coded; None for the same as `codec`.
        sampling: How units are sampled for a release; None for all units in each release.
        feedback: What a client adds to its next update: True for what its codec dropped (error feedback), False for
            nothing, `MomentumCorrection(...)` or `EF21(...)` for a momentum of its updates too. The server adds what
            its codec dropped of a broadcast to the next, unless it is False.
        unit: What one neighbour adds or removes, "example" or "client".
        trust: Who may see values before the noise, "nobody" or "server".

    Raises:
        NotPrivate: The stages, in this order and under this trust, have no guarantee.
        TypeError: A part is not a frozen dataclass, or has the wrong type for its argument.
        ValueError: Two parts do not work together, or a stage does not belong at its place.

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
    feedback: Feedback = True
    unit: Unit = "example"
    trust: Trust = "nobody"

    def __post_init__(self):
        if not isinstance(self.mechanism, Unsafe):
            stages = self.mechanism if isinstance(self.mechanism, (tuple, list)) else (self.mechanism,)
            object.__setattr__(self, "mechanism", tuple(stages))
        check_types(self)
        # Refuse an unknown unit or trust, and a part that is no frozen dataclass.
        _ = self.trust_model, canonical_text(self._field_values())
        check_together(self)
        # Raise now what they would raise at the first release or message.
        _, stddev, _ = self.claim, noise_stddev_of(self), self.channel.history_reader
        if stddev:
            public_grid(stddev)
        check_state(self.stages)
        _ = self._at_birth, self._objects_at_birth

    def __repr__(self) -> str:
        return as_code(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the mechanism, with or without a guarantee."""
        return self.mechanism.stages if isinstance(self.mechanism, Unsafe) else self.mechanism

    @property
    def trust_model(self) -> TrustModel:
        """The unit and the trust as a `TrustModel`."""
        return TrustModel(unit=self.unit, trust=self.trust)

    @property
    def _noise(self) -> Gaussian | None:
        return gaussian_of(self.stages)

    @property
    def _adaptive(self) -> AdaptiveClip | None:
        return adaptive_clip_of(self.stages)

    @property
    def _shared_noise(self) -> SharedNoise | None:
        return shared_noise_of(self)

    @property
    def _transforms(self) -> tuple[Transform, ...]:
        return self.stages[:-1] if self._noise else self.stages  # pyright: ignore[reportReturnType]

    @property
    def claim(self) -> Released:
        """The claim on the mechanism's output: released, at the cost of an event.

        Where the clients' codec makes the noise, the event counts what clients that collude leave of it.

        Raises:
            NotPrivate: The stages have no guarantee.
        """
        return claim_of(self)

    @property
    def cost(self) -> Cost:
        """The cost of a single release; its event includes the sampling if that amplifies."""
        return cost_of(self)

    @property
    def largest_cohort(self) -> int | None:
        """The most clients of a round, where the error of the clients' codec is the noise; None for any number."""
        return None if self.codec.noise_share is None else self.codec.noise_share.cohort

    @property
    def channel(self) -> Channel:
        """The channel of this pipeline, which the wire and both ends of a federation take."""
        return self._channel

    @cached_property
    def _channel(self) -> Channel:
        names = ("public_support", "initial_history", "update_history")
        public = tuple(stage for stage in self.stages if any(hasattr(stage, name) for name in names))
        shared = self._shared_noise
        return Channel(
            identity=digest(canonical_text(self._field_values()).encode()),
            uplink=self.codec,
            downlink=self.codec if self.downlink is None else self.downlink,
            feedback=self.feedback,
            claim=self.claim,
            server_sees_clean=self.trust_model.server_sees_clean,
            stages=public,
            clip=None if shared is None else shared.clip,
            share_stddev=0.0 if shared is None else shared.share,
        )

    def _field_values(self) -> dict[str, Any]:
        """Return the fields as they are now, by name."""
        # Of this class alone: a subclass that only observes (simulation/probes.py) is the same pipeline on the wire.
        return {item.name: getattr(self, item.name) for item in fields(Pipeline)}

    @cached_property
    def _only_library_stages(self) -> bool:
        """Whether all stages are dpcomp's, whose claims follow from their fields."""
        return all(type(stage) in PARTS.values() for stage in self.stages)

    @cached_property
    def _at_birth(self) -> Facts:
        return facts_of(self)

    @cached_property
    def _objects_at_birth(self) -> HeldObjects:
        return HeldObjects(vars(self), list(self._field_values()))

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles take: the fields, without what was noted of them when this one was made."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy has its own fields and parts, which the notes of the first do not watch: it is checked as a new one is.
        vars(self).update(state)
        self.__post_init__()

    def _unchanged(self) -> Facts:
        """Return what a release rests on now, which is what it was when the pipeline was made.

        Raises:
            NotPrivate: A part was changed since then: what was charged is another mechanism.
        """
        if self._only_library_stages and self._objects_at_birth.same():
            return self._at_birth
        return facts_if_unchanged(self, self._at_birth)

    def to_table(self) -> dict[str, Any]:
        """Return the pipeline as the table `[pipeline]` of a TOML file: plain types, class names with their fields.

        Fields that are None are left out, since TOML has no None. Of an unsafe mechanism, `mechanism` holds the stages
        and `unsafe` the reason.

        Raises:
            ValueError: A field is None, but its default is not, so reading the table would change it.
        """
        return toml_table(self._field_values())

    def to_toml(self) -> str:
        """Return the pipeline as the text of a TOML file, which `from_toml` reads."""
        return tomli_w.dumps(self.to_table())

    @classmethod
    def from_table(cls, table: dict[str, Any], parts: Iterable[type] = ()) -> "Pipeline":
        """Make the pipeline that a table describes.

        Args:
            table: Plain types, as `to_table` returns them.
            parts: Your own classes that the table may name.

        Raises:
            ConfigError: A name is unknown, or a part refuses its arguments.
            NotPrivate: The pipeline has no guarantee.
            TypeError, ValueError: As the constructor does.
        """
        return cls(**values_of_table(table, [item.name for item in fields(Pipeline)], parts))

    @classmethod
    def from_toml(cls, text: str, parts: Iterable[type] = ()) -> "Pipeline":
        """Make the pipeline that a TOML text describes.

        Args:
            text: TOML, as `to_toml` returns it.
            parts: Your own classes that the text may name.

        Raises:
            ConfigError: The text is not TOML, a name is unknown, or a part refuses its arguments.
            NotPrivate: The pipeline has no guarantee.
            TypeError, ValueError: As the constructor does.
        """
        return cls.from_table(read_toml(text), parts)

    def guarantee(self, steps: int, delta: float, population: int | None = None) -> Guarantee:
        """Return the guarantee of `steps` releases, on a schedule that was fixed in advance.

        Args:
            steps: The number of releases, 0 or more.
            delta: δ, in (0, 1).
            population: The public number of units N; the guarantee then says whether δ is below 1/N.

        Raises:
            TypeError: `steps` is not a whole number, or `delta` not a number.
            ValueError: `steps`, `delta` or `population` lies outside its range.
        """
        return self.cost.guarantee(steps, delta, population=population)

    # The memories of both ends at the start of a run.

    def init_client(
        self,
        layout: Any,
        seed: PublicSeed,
        client: int,
        *,
        first_model: Float[np.ndarray, "d"] | None = None,
        run_id: bytes | None = None,
        dither_key: DitherKey | None = None,
    ) -> ClientMemory:
        """Make the memory of a new client.

        Args:
            layout: The number of coordinates d, a mapping from layer name to shape, or a `Layout`.
            seed: The public seed of the run, the same at all ends; its number names the run.
            client: The client's number, from 0 to 2³² − 2.
            first_model: The first model as a (d,) vector, the same at all ends, so that ends with different ones refuse
                each other; None for none. `Participant` and `Server` add their own.
            run_id: 8 random bytes that name this federation, the same at all ends; None for none. `Server` draws them,
                and a `Participant` learns them from the server's first reply; without these two, `dp.ExactGaussian`
                needs them here.
            dither_key: The client's secret with the server, for `dp.ExactGaussian`; None for any other codec.

        Returns:
            A memory at version 0, without any accepted payload.

        Raises:
            TypeError: `seed` is not a `PublicSeed`.
            ValueError: The layout has no coordinates, `client` lies outside its range, `run_id` does not have 8 bytes,
                or `dither_key` is given and not needed, or needed and not given.
        """
        self._check_keys(dither_key, DitherKey, "init_client(dither_key)", "keys.of(client) of the server's DitherKeys")
        layout = Layout.of(layout)
        return ClientMemory(
            client=client,
            tracked=TrackedSignal.initial(layout) if self.codec.averaged_clients else None,
            dither_key=dither_key,
            **self._memory_at_start(layout, seed, Genesis.of(first_model, run_id), self.channel.sender_feedback),
        )

    def init_server(
        self,
        layout: Any,
        seed: PublicSeed,
        *,
        first_model: Float[np.ndarray, "d"] | None = None,
        run_id: bytes | None = None,
        dither_keys: DitherKeys | None = None,
    ) -> ServerMemory:
        """Make the memory of the server before the first round.

        Args:
            layout: As for `init_client`.
            seed: As for `init_client`.
            first_model: As for `init_client`.
            run_id: As for `init_client`.
            dither_keys: The secrets with all clients, for `dp.ExactGaussian`; None for any other codec.

        Raises:
            TypeError, ValueError: As `init_client` does.
        """
        self._check_keys(dither_keys, DitherKeys, "init_server(dither_keys)", "dp.DitherKeys(os.urandom(32))")
        downlink = ErrorFeedback() if self.feedback else None
        genesis = Genesis.of(first_model, run_id)
        return ServerMemory(
            **self._memory_at_start(Layout.of(layout), seed, genesis, downlink),
            dither_keys=dither_keys,
            clip_norm=None if self._adaptive is None else self._adaptive.initial,
        )

    def _check_keys(self, keys: Any, needed: type, where: str, example: str) -> None:
        """Refuse a secret that is missing, or that no part of this pipeline uses."""
        if self.codec.noise_share is None:
            if keys is not None:
                raise ValueError(f"{where}: no part of this pipeline draws from a secret of both ends: leave it out")
            return
        if not isinstance(keys, needed):
            raise ValueError(
                f"{where}={keys!r}: {self.codec.quantize} draws its dither from a secret of each client with the "
                f"server: give {example}"
            )

    def _memory_at_start(
        self, layout: Layout, seed: PublicSeed, genesis: Genesis, feedback: SenderFeedback | None
    ) -> dict[str, Any]:
        if not isinstance(seed, PublicSeed):
            raise TypeError(f"seed={seed!r}: give a dp.PublicSeed(number), the same at all ends; it may be public")
        return {
            "pipeline": self.channel.fingerprint(layout),
            "layout": layout,
            "seed": seed,
            "shared": self.channel.shared_at_start(layout, seed, genesis),
            "genesis": genesis,
            "kept": Kept() if feedback is None else feedback.at_start(layout.size),
        }

    # The private side.

    @np.errstate(all="ignore")  # whatever a caller has set, odd values take the same path as any others
    def clip(self, block: Any, memory: ClientMemory | ServerMemory) -> Total:
        """Apply the stages before the noise to a micro-batch, and sum its units.

        Args:
            block: The gradients of n units: a tuple of (n, …) arrays (torch, JAX or NumPy), one a layer, a single
                (n, d) array, or `FactoredUnits`.
            memory: The memory of the end that releases.

        Returns:
            The sum over the units, read-only; totals of micro-batches are added with `+`, and a total is released once.
            Inside a trace of JAX it holds traced arrays, and cannot be released: there, add noise yourself, or trace
            the gradients alone.

        Raises:
            NotPrivate: A part was changed since the pipeline was made; or an own stage mixes units, of which it is held
                to a randomly drawn one alone, or gives another number of them.
            ValueError: The block does not fit the memory's layout.
        """
        facts = self._unchanged()
        value: Any = _units(block, memory.layout, self._transforms)
        if self.codec.noise_share is not None and value.count:
            raise NotPrivate(
                f"clip: the clients of {self.codec.noise_share} clip, in pipeline.send, and their errors are a part of "
                "the noise; units that are clipped here have none. Add up pipeline.total_of(update, memory)"
            )
        context = self.channel.context(memory)
        for transform in self._transforms:
            before, value = value, transform.apply(value, context)
            if isinstance(before, Units) and type(transform) not in PARTS.values():
                refuse_mixed_units(transform, before, value, context)
            if getattr(transform, "public_support", None) is not None:  # HasPublicSupport, whose test takes 2 µs
                refuse_other_support(transform, value.support, context)
        total = value if isinstance(value, Total) else value.sum()
        return total if is_traced(total.layers[0]) else total.sealed(Batches(facts.clips_by))

    def empty_total(self, memory: ClientMemory | ServerMemory) -> Total:
        """Return the total of an empty batch; its release is pure noise."""
        return self.clip(np.zeros((0, memory.layout.size), dtype=np.float32), memory)

    def total_of(self, update: Update, memory: ServerMemory) -> Total:
        """Return the total of a single client's update, which a trusted server has decoded.

        **Privacy:** the update is clipped here, whatever its codec did (PRIVACY_RULES 10 and 18). Where the error of
        the codec is a share of the noise, the client has clipped; the update is taken as it was decoded, which
        `receive` alone proves, and is counted as one share.

        Args:
            update: What `receive` returned; add up each update once.
            memory: The server's memory.

        Returns:
            The total, of one unit; totals are added with `+`, and `noise` releases the sum. Where the error of the
            codec is a share of the noise, all totals of one update are of one unit, which is released once.

        Raises:
            NotPrivate: The update has no share of the noise; or as `clip` does.
            ValueError: The update does not fit the memory's layout.
        """
        if self.codec.noise_share is None:
            return self.clip(update.dense()[None, :], memory)
        facts = self._unchanged()
        if update.claim != self.channel.uplink_claim:
            raise NotPrivate(
                "total_of: this update was not decoded by this pipeline's receive, so nothing shows that it has its "
                "share of the noise: give what pipeline.receive returned"
            )
        if update.layout != memory.layout:
            raise ValueError(f"total_of: the update has layout {update.layout}, the memory {memory.layout}")
        # The same each time: the error in an update is the noise of one release, and no noise of a second one.
        batches = vars(update).setdefault("_share", Batches(facts.clips_by))
        return Total(layers=(update.values,), layout=memory.layout, units=1).sealed(batches)

    @np.errstate(all="ignore")
    def noise(self, total: Total, memory: ClientMemory | ServerMemory, secret: SecretSeed, permit: Permit) -> Update:
        """Add fresh noise to a total, which uses a step of the permit.

        The noise is drawn by ChaCha20, drawn and added in float64, and rounded to a public grid, then to float32. Its
        stream derives from the secret, the permit's address and the step, so no two releases share noise.

        **Privacy:** the noise is scaled by the bound that the stages before it prove, and no stage was changed; the
        release was charged before, since the permit exists; and its units are released once (PRIVACY_RULES hazards 1,
        4, 17, 39, 40 and 42).

        Args:
            total: What this pipeline's `clip` returned, or a sum of such totals.
            memory: The memory of the end that adds the noise.
            secret: The source of the noise.
            permit: What `ledger.charge(pipeline.cost, memory.address)` returned.

        Returns:
            An update with this pipeline's released claim.

        Raises:
            BudgetExhausted: The permit has no step left, or was charged for another cost.
            NotPrivate: The other end adds the noise under this trust; another mechanism made the total; a part of it
                was released before; a part of the pipeline was changed; or a client's total holds more units than its
                update. No step of the permit was used.
            VersionMismatch: The memory is of another pipeline.
            TypeError: `secret` is not a `SecretSeed`, or `permit` not a `Permit`.
            ValueError: The permit is of another client.
        """
        self._check_end(memory, secret, permit)
        check_type(total, Total, f"noise: give a Total, which pipeline.clip returns, not a {type(total).__name__}")
        facts = self._unchanged()
        batches = total.batches(facts.clips_by)
        most = self.trust_model.units_per_release
        if most is not None and total.units > most:
            raise NotPrivate(
                f"{total.units} units in a client's release: with unit='client' the client's whole update is the only "
                "unit, a block of shape (1, d)"
            )
        shared, keys = self._shared_noise, getattr(memory, "dither_keys", None)
        if shared is not None:
            shared.check_cohort(total.units)
        batches.take()
        try:
            step = permit.spend(facts.cost, seeded=secret.seeded or (keys is not None and keys.seeded))
        except BaseException:
            batches.give_back()
            raise
        vector, address = total.vector(), permit.address
        if self._noise:
            normal = noise_of_step(secret, address, step, len(vector))
            if shared is None:
                vector = self._noise.release(vector, normal, facts.l2)
            else:
                vector = shared.completed(vector, total.units, normal)
        stddev, count = facts.stddev, None
        if self._adaptive is not None:
            # The sum was clipped to 1 and noised as such: its unit is a released number.
            assert isinstance(memory, ServerMemory)
            assert memory.clip_norm is not None
            place = (address.run, address.client, address.round, step)
            count = self._adaptive.noisy_count(
                total, facts.count_stddev, secret.standard_normal(1, "count noise", *place)
            )
            vector, stddev = vector * np.float32(memory.clip_norm), stddev * memory.clip_norm
        update = Update(
            values=vector,
            layout=memory.layout,
            address=address,
            support=total.support,
            noise_stddev=stddev,
            noisy_count=count,
        )
        return with_claim(update, facts.claim)

    def clip_norm_after(self, released: Update, memory: ServerMemory, expected: float) -> float | None:
        """Return the clip norm of the round after a release.

        **Privacy:** it is made of the noisy count that was released with the sum, and of public numbers.

        Args:
            released: What `noise` returned.
            memory: The server's memory in the round of the release.
            expected: The expected number of clients in a round, a public constant.

        Returns:
            The norm; None where the mechanism has no `AdaptiveClip`.
        """
        if self._adaptive is None:
            return None
        assert memory.clip_norm is not None
        assert released.noisy_count is not None
        return self._adaptive.norm_after(memory.clip_norm, released.noisy_count, expected)

    def release(
        self, blocks: Iterable[Any], memory: ClientMemory | ServerMemory, secret: SecretSeed, permit: Permit
    ) -> Update:
        """Clip each block, sum the totals, and add noise; without any block the release is pure noise.

        Args:
            blocks: Micro-batches of a batch, each as `clip` takes it.
            memory: The memory of the end that adds the noise.
            secret: The source of the noise.
            permit: What `ledger.charge(pipeline.cost, memory.address)` returned.

        Returns:
            An update with this pipeline's released claim.

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

    # A release inside a compiled program of JAX.

    def draw_noise(
        self, memory: ClientMemory | ServerMemory, secret: SecretSeed, permit: Permit, steps: int
    ) -> DrawnNoise:
        """Draw the noise of the next steps of a permit, for a compiled program that computes their sums.

        The draws are those that `noise` would make, step by step.

        **Privacy:** drawn noise is charged, and each step of it is for one release; `release_in_trace` adds it.

        Args:
            memory: The memory of the end that adds the noise.
            secret: The source of the noise.
            permit: What `ledger.charge(pipeline.cost, memory.address, steps)` returned.
            steps: The number of releases, which use up as many steps of the permit.

        Returns:
            The noise; its `noise` is the argument for the program.

        Raises:
            BudgetExhausted: The permit has too few steps left, or was charged for another cost.
            NotPrivate: The other end adds the noise under this trust, a part of the pipeline was changed, or the
                mechanism has no noise or no public support.
            VersionMismatch: The memory is of another pipeline.
            TypeError: `secret` is not a `SecretSeed`, or `permit` not a `Permit`.
            ValueError: The permit is of another client.
        """
        self._check_end(memory, secret, permit)
        facts = self._unchanged()
        self._refuse_share_in_trace()
        return self._in_trace(facts).draw(self.empty_total(memory), secret, permit, facts.cost, steps)

    def release_in_trace(
        self,
        block_at: Callable[[Any], Block],
        count: Any,
        noise: StepNoise,
        layout: Layout,
        positions: Int32[Any, "k"] | None = None,
    ) -> TracedRelease:
        """Clip blocks, add them up, and add the noise of one step: `release` for a program that JAX compiles.

        Call it while JAX traces the program, under `jax.enable_x64(True)`: the sum of blocks and noise is float64, as
        on the host, and is rounded to the public grid before it becomes float32. The clipped sum itself stays inside.

        **Privacy:** the stages, the arithmetic and the grid are those of `clip` and `noise`; what is traced here holds
        for all arguments that the program will have. The noise was charged when it was drawn, is used for one release
        (`StepNoise.take`), and rows that are no units add exactly zero.

        Args:
            block_at: Returns the block of a (traced) number: a tuple of (n, …) float32 arrays, one a layer or a single
                one, and (n,) whether each row is a unit. Blocks have one shape; rows that are no units only fill it.
            count: The number of blocks, which may be traced.
            noise: The noise of this step, a part of the argument that `draw_noise` gave.
            layout: The layers of the whole vector.
            positions: The k coordinates of `public_positions`, as an argument of the program, where the mechanism has a
                public support; else None.

        Returns:
            The release, of the k supported coordinates.

        Raises:
            NotPrivate: The noise is of another mechanism or would be used twice, or a part of the pipeline was changed.
            TypeError: A stage of your own cannot be traced, or the trace has no float64.
            ValueError: A block does not fit the layout.
        """
        facts = self._unchanged()
        self.refuse_untraceable()
        return self._in_trace(facts).release(block_at, count, noise, layout, positions)

    def released(self, release: TracedRelease, drawn: DrawnNoise) -> Update:
        """Return the update of a release that a compiled program made; `derive` takes what it computed of its releases.

        Args:
            release: What `release_in_trace` returned in the program, of the last of its steps.
            drawn: The noise that was the program's argument; it is used up.

        Returns:
            An update with this pipeline's released claim.

        Raises:
            NotPrivate: Another mechanism made the release, it was made with other noise, or the noise was used up.
            TypeError: It is no release.
        """
        facts = self._unchanged()
        values = self._in_trace(facts).values(release, drawn)
        update = Update(
            values=values,
            layout=drawn.layout,
            address=drawn.address,
            support=drawn.support,
            noise_stddev=drawn.stddev,
        )
        return with_claim(update, facts.claim)

    def _in_trace(self, facts: Facts) -> MechanismInTrace:
        return MechanismInTrace(stages=self._transforms, gaussian=self._noise, l2=facts.l2, drawn_by=facts.clips_by)

    def public_positions(self, memory: ClientMemory | ServerMemory) -> Int64[np.ndarray, "k"] | None:
        """Return the coordinates of the mechanism's public support in this round; None if it has all of them."""
        support = self.empty_total(memory).support
        return None if support == Everywhere() else support.indices(memory.layout.size)

    def _refuse_share_in_trace(self) -> None:
        if self.codec.noise_share is not None:
            raise NotPrivate(
                f"{self.codec.noise_share}: the noise is made by the messages of the clients, and no program that "
                "draws it can make a release. Use Server, or total_of and noise"
            )

    def refuse_untraceable(self) -> None:
        """Refuse a mechanism that a compiled program cannot keep: its stages would be traced once, for all rounds.

        Raises:
            NotPrivate: The error of the clients' codec is the noise.
            TypeError: A stage is not one of `Clip`, `RandomK`, and `TopK` before the clip; or `TopK(per="layer")`
                stands behind `RandomK`.
        """
        self._refuse_share_in_trace()
        before = True
        for number, stage in enumerate(self._transforms, start=1):
            fits = isinstance(stage, (Clip, RandomK)) or (isinstance(stage, TopK) and before)
            behind = isinstance(stage, TopK) and stage.per == "layer"
            masked = any(isinstance(each, RandomK) for each in self._transforms[: number - 1])
            if not fits or (behind and masked):
                raise TypeError(
                    f"mechanism: {stage!r} (stage {number}) cannot be a part of a compiled program, which would trace "
                    "it once and keep what it read of one round: use Clip, RandomK, and TopK before the clip (not "
                    'per="layer" behind RandomK), or train with PyTorch'
                )
            before = before and not isinstance(stage, Clip)

    def _check_end(self, memory: ClientMemory | ServerMemory, secret: SecretSeed, permit: Permit) -> None:
        """Refuse a release by the wrong end, or without a secret and a permit."""
        if not isinstance(secret, SecretSeed) or not isinstance(permit, Permit):
            raise TypeError(
                f"a release needs a dp.SecretSeed and a permit of ledger.charge, not {secret!r} and {permit!r}"
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

    # The public side.

    def send(self, update: Update, memory: ClientMemory) -> tuple[bytes, ClientMemory]:
        """Encode a client's update.

        Args:
            update: A release or a value derived from it; the clean update, if the server is trusted.
            memory: The client's memory; it is not changed.

        Returns:
            The payload, and the client's memory for the time after the server accepts the payload.

        Raises:
            NotPrivate: The server is not trusted, and the update was not released by this pipeline.
            VersionMismatch: The memory is of another pipeline.
            TypeError: `update` is not an `Update`, or `memory` not a `ClientMemory`.
            ValueError: The update has another client or layout, or values that are not finite.
        """
        payload, after = exchange.send(self.channel, update, memory)
        return payload.message, after

    def receive(self, payload: bytes, memory: ServerMemory) -> tuple[Update, ServerMemory]:
        """Decode a client's payload at the server.

        Args:
            payload: The bytes that the client sent.
            memory: The server's memory; it is not changed.

        Returns:
            The update, and the server's memory for the time after it accepts the payload.

        Raises:
            CorruptPayload: The bytes are damaged.
            VersionMismatch: The bytes are sound, but were coded against another state.
        """
        return exchange.receive(self.channel, payload, memory)

    def broadcast(self, aggregate: Any, memory: ServerMemory) -> tuple[bytes, ServerMemory]:
        """Encode the server's step for all clients.

        Args:
            aggregate: A released update or a value derived from it; if the server is not trusted, also a (d,) vector.
            memory: The server's memory; it is not changed.

        Returns:
            The payload for all clients, and the server's memory at the next version.

        Raises:
            NotPrivate: The aggregate was not released by this pipeline.
            VersionMismatch: The memory is of another pipeline.
            TypeError: `memory` is not a `ServerMemory`.
            ValueError: The aggregate has another run or layout, or values that are not finite.
        """
        payload, after = exchange.broadcast(self.channel, aggregate, memory)
        return payload.message, after

    def follow(self, payload: bytes, memory: ClientMemory) -> ClientMemory:
        """Decode a broadcast at a client.

        Args:
            payload: The bytes that the server sent.
            memory: The client's memory; it is not changed.

        Returns:
            The client's memory at the next version; its `step` is the update to add to the model.

        Raises:
            CorruptPayload: The bytes are damaged.
            VersionMismatch: The bytes are sound, but the broadcast does not lead on from the client's version.
        """
        return exchange.follow(self.channel, payload, memory)


def _units(block: Any, layout: Layout, transforms: tuple[Transform, ...]) -> Units | FactoredUnits:
    """Return the units of a block, as rows unless all stages work on norms and sums alone."""
    if not isinstance(block, FactoredUnits):
        return Units.of(block, layout)
    if block.layout != layout:
        raise ValueError(f"a block of {block.layout} does not fit the memory's {layout}: give the layers of the memory")
    *supports, last = (None, None, *map(type, transforms))
    factored = last is Clip and all(stage in (None, RandomK) for stage in supports)
    return block if factored else block.rows()

"""The door of blocks: a pipeline releases, sends and broadcasts blocks of gradients with and without a canary."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float64

from dpcomp.audit.observations import Features, Observations, message_features, stacked
from dpcomp.core.checks import whole_number
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import PublicSeed, SecretSeed
from dpcomp.pipeline import Pipeline
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.wire.memory import ClientMemory, ServerMemory
from dpcomp.wire.update import Update

LARGE = 100.0  # the norm of a default canary ÷ the clip norm of most pipelines: a clip that is missing shows


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """Runs of a pipeline on blocks of gradients, with the canary's gradient as one row more and without it.

    If nobody is trusted, an observer sees the client's payloads, and the broadcasts that follow from them; if the
    server is trusted, the broadcasts alone. Units are drawn by `pipeline.sampling`, in secret. State is kept over the
    rounds of a run: residuals, predictions, supports of histories.

    Args:
        pipeline: What is audited.
        canaries: (rounds, d) the canary's gradient in each round.
        others: (rounds, n, d) the gradients of the other units, which an observer knows. With unit="client" and
            trust="nobody", n is 0: a client's update is the only unit.
        layout: The layers; None for one layer of d coordinates.
        seed: The public seed of every run: masks follow from it.

    Raises:
        ValueError: The shapes do not fit together, or there are others beside a client's whole update.

    Examples:
        >>> import dpcomp as dp
        >>> from dpcomp.audit import Blocks, ClaimOfReleases, audit
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(quantize=dp.Uniform(4)))
        >>> door = Blocks.with_spikes(pipeline, coordinates=16)
        >>> result = audit(door, ClaimOfReleases(cost=pipeline.cost), runs=60, delta=1e-5)
        >>> result.broken
        False
    """

    pipeline: Pipeline
    canaries: Float64[np.ndarray, "rounds d"]
    others: Float64[np.ndarray, "rounds n d"]
    layout: Layout | None = None
    seed: PublicSeed = field(default_factory=lambda: PublicSeed(0))

    def __post_init__(self):
        rounds, d = self.canaries.shape
        if self.others.ndim != 3 or self.others.shape[::2] != (rounds, d):
            raise ValueError(
                f"others of shape {self.others.shape} do not fit canaries of shape {self.canaries.shape}: give "
                "(rounds, n, d) beside (rounds, d)"
            )
        most = self.pipeline.trust_model.units_per_release
        if most is not None and self.others.shape[1] >= most:
            raise ValueError(
                f"{self.others.shape[1]} other units beside the canary, where a release holds {most} unit: give others "
                f"of shape ({rounds}, {most - 1}, {d})"
            )
        if self._layout.size != d:
            raise ValueError(f"canaries of {d} coordinates do not fit a layout of {self._layout.size}")

    @classmethod
    def with_spikes(
        cls, pipeline: Pipeline, *, coordinates: int = 32, rounds: int = 1, others: int = 3, seed: int = 0
    ) -> "Blocks":
        """Make a door with a canary that suits most pipelines: large, on an eighth of the coordinates of both layers.

        Its sign changes from round to round, so that what is the same in two rounds, such as noise that is used again,
        can be taken away. The other units are small, on all coordinates.

        Args:
            pipeline: What is audited.
            coordinates: d; three quarters of them are one layer, the rest another.
            rounds: The rounds of a run.
            others: The other units; there are none where a client's whole update is the only unit.
            seed: Of the run, and of the gradients.
        """
        coordinates = whole_number(coordinates, "Blocks.with_spikes(coordinates)", least=8)
        rounds = whole_number(rounds, "Blocks.with_spikes(rounds)", least=1)
        public = PublicSeed(seed)
        stream = public.stream("audit")
        spikes = np.zeros(coordinates)
        spikes[stream.permutation(coordinates)[: coordinates // 8]] = LARGE
        only = pipeline.trust_model.units_per_release is not None
        units = stream.standard_normal((rounds, 0 if only else others, coordinates)) / np.sqrt(coordinates)
        small = coordinates // 4
        return cls(
            pipeline=pipeline,
            canaries=spikes * (-1.0) ** np.arange(rounds)[:, None],
            others=units,
            layout=Layout.of({"first": (coordinates - small,), "second": (small,)}),
            seed=public,
        )

    def __str__(self) -> str:
        rounds, d = self.canaries.shape
        return f"blocks of {self.others.shape[1]} + 1 units, {d} coordinates, {rounds} round{'s' * (rounds > 1)}"

    def observe(self, present: bool, runs: int) -> Observations:
        """Run the pipeline, as `Door.observe` says."""
        if self.pipeline.trust_model.noise_at == "server":
            return stacked([self._server_run(present) for _ in range(runs)])
        ledger = Ledger()  # the runs are those of different clients, so that one ledger serves them all
        return stacked([self._client_run(present, client, ledger) for client in range(runs)])

    def _client_run(self, present: bool, number: int, ledger: Ledger) -> Features:
        client, server = self.pipeline.init_client(self._layout, self.seed, number), self._server
        seen: dict[str, np.ndarray] = {}
        for place in range(len(self.canaries)):
            update = self._released(present, place, client, ledger)
            payload, sent = self.pipeline.send(update, client)
            received, server = self.pipeline.receive(payload, server)
            seen |= self._features(payload, received, client, f"round {place}")
            client = sent
            if place + 1 < len(self.canaries):  # the last broadcast is a function of what was seen
                broadcast, server = self.pipeline.broadcast(received, server)
                client = self.pipeline.follow(broadcast, client)
        return seen

    def _server_run(self, present: bool) -> Features:
        server, ledger = self._server, Ledger()
        seen: dict[str, np.ndarray] = {}
        for place in range(len(self.canaries)):
            before, update = server, self._released(present, place, server, ledger)
            payload, server = self.pipeline.broadcast(update, before)
            assert server.step is not None
            seen |= self._features(payload, server.step, before, f"round {place}")
        return seen

    def _released(self, present: bool, place: int, memory: ClientMemory | ServerMemory, ledger: Ledger) -> Update:
        units, secret, pipeline = self.others[place], SecretSeed(), self.pipeline
        if present:
            units = np.concatenate([units, self.canaries[place : place + 1]])
        if pipeline.sampling is not None and pipeline.trust_model.amplified:
            units = units[pipeline.sampling.draw(len(units), secret.stream("sample", place))]
        permit = ledger.charge(pipeline.cost, memory.address)
        return pipeline.release([units], memory, secret, permit)

    def _features(self, payload: bytes, decoded: Update, memory: ClientMemory | ServerMemory, where: str) -> Features:
        channel = self.pipeline.channel
        return message_features(channel, payload, decoded, memory, where=where, directions=self.canaries)

    @cached_property
    def _layout(self) -> Layout:
        return Layout.of(self.canaries.shape[1]) if self.layout is None else self.layout

    @cached_property
    def _server(self) -> ServerMemory:
        return self.pipeline.init_server(self._layout, self.seed)

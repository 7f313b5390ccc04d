"""Method: the protocol of a way to estimate a mean, with what a round gives it; and the Gaussian noise of most of them.

A method is a frozen dataclass in one file. `methods/__init__.py` lists those that the benchmark measures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
from dp_accounting import DpEvent
from jaxtyping import Float, Float32, Float64

from dpcomp.codec.codec import Codec
from dpcomp.core.layout import Layout
from dpcomp.core.public_context import PublicContext
from dpcomp.core.randomness import PublicSeed, SecretSeed
from dpcomp.core.support import Everywhere, Support
from dpcomp.lab.mean_estimation.setting import Setting
from dpcomp.privacy.calibrate import calibrate
from dpcomp.privacy.claim import Bounded, Released
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.gaussian import Gaussian
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.privacy.trust import Trust

BLOCK = 64  # `Rotated` rotates blocks of powers of two, from this one on


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a method fixes before any vector is seen: its noise, and the guarantee that this has.

    Attributes:
        setting: The task.
        noise_multiplier: z, the noise's standard deviation ÷ the sensitivity that the method says.
        guarantee: The proven (ε, δ) of the one release.
    """

    setting: Setting
    noise_multiplier: float
    guarantee: Guarantee


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """One estimate: the plan, and the randomness of both ends.

    Rounds with one number and one secret seed have the same noise for every method, so that errors can be compared in
    pairs.

    Attributes:
        plan: What the method fixed.
        number: Of the round, from 0.
        seed: What everybody may know: masks, rotations, dither.
        secret: What only its owner knows: a client's noise, or the server's.
    """

    plan: Plan
    number: int
    seed: PublicSeed
    secret: SecretSeed

    def context(self, client: int, dimensions: int | None = None) -> PublicContext:
        """Return the public values of a client's message, for a codec.

        Args:
            client: Its number, from 0.
            dimensions: Of the vector that is coded, where it is not the setting's d.
        """
        d = self.plan.setting.dimensions if dimensions is None else dimensions
        return PublicContext(
            layout=Layout.of(d),
            round=self.number,
            client=client,
            mask_key=self.seed.key("mask", self.number),
            dither_key=self.seed.key("dither", self.number, client),
        )

    def client_noise(self, client: int) -> Float64[np.ndarray, "d"]:
        """Draw the (d,) standard normals that a client alone knows."""
        return self.secret.standard_normal(self.plan.setting.dimensions, "client", self.number, client)

    def server_noise(self) -> Float64[np.ndarray, "d"]:
        """Draw the (d,) standard normals that the server alone knows."""
        return self.secret.standard_normal(self.plan.setting.dimensions, "server", self.number)

    def client_stream(self, client: int) -> np.random.Generator:
        """Return a generator that a client alone knows."""
        return self.secret.stream("rounding", self.number, client)

    def shared_stream(self, client: int) -> np.random.Generator:
        """Return a generator that a client and the server know, and nobody else."""
        return self.secret.stream("shared", self.number, client)


class Method(Protocol):
    """The protocol of a method: a frozen dataclass whose fields are numbers, strings or parts of a pipeline.

    `encode` runs at each client, `decode` at the server; what they have in common is the round's public randomness,
    which costs no bytes. Under `trust = "nobody"` a body, and all else that a client sends, keeps (ε, δ); under
    "server" the estimate does.
    """

    @property
    def trust(self) -> Trust:
        """Who sees values before the noise."""
        ...

    @property
    def unbiased(self) -> bool:
        """Whether the mean of the estimate is the mean of the vectors."""
        ...

    @property
    def paired(self) -> bool:
        """Whether it has the noise that the Gaussian mechanism in float32 has, so that errors compare round by round.

        Errors of other methods are compared with that mechanism's closed form.
        """
        ...

    @property
    def source(self) -> str:
        """Paper and section."""
        ...

    @property
    def family(self) -> str:
        """The name of the line that a figure draws through methods like this one."""
        ...

    @property
    def name(self) -> str:
        """The name in tables, results and figures; no other method has it."""
        ...

    def plan(self, setting: Setting) -> Plan:
        """Return the least noise that reaches the setting's (ε, δ), by dpcomp's accountant."""
        ...

    def encode(self, vector: Float64[np.ndarray, "d"], client: int, round: Round) -> bytes:
        """Return the body that a client sends.

        Args:
            vector: Its (d,) vector; the method must itself bound what it takes of it.
            client: Its number, from 0.
            round: The plan, and the randomness.
        """
        ...

    def decode(self, bodies: Sequence[bytes], round: Round) -> Float64[np.ndarray, "d"]:
        """Return the (d,) estimate of the mean.

        Args:
            bodies: What the clients sent, in the order of their numbers.
            round: The plan, and the randomness; a client's own noise and stream are not the server's to use.
        """
        ...

    def expected_error(self, vectors: Float64[np.ndarray, "n d"], plan: Plan) -> float:
        """Return E‖estimate − mean‖² in closed form, which measurements are held against.

        Args:
            vectors: The (n, d) vectors of all clients.
            plan: What the method fixed.
        """
        ...


def gaussian_event(noise_multiplier: float) -> DpEvent:
    """Return the event of Gaussian noise with standard deviation z·C on a vector whose norm is clipped to C."""
    released = Gaussian(noise_multiplier).claim(Bounded(l2=1.0), "the noise")
    assert isinstance(released, Released)
    return released.event


@lru_cache(maxsize=1024)
def planned(setting: Setting, trust: Trust, event_of: Callable[[float], DpEvent] = gaussian_event) -> Plan:
    """Return the plan with the least noise whose one release has the setting's (ε, δ).

    Args:
        setting: The task.
        trust: Who sees values before the noise.
        event_of: Maps a noise multiplier to the event of the whole release, all coordinates included. It must be
            hashable, such as a frozen dataclass with `__call__`.

    Returns:
        The plan. Its ε is at most the setting's, and within 0.5 % of it.

    Raises:
        ValueError: No noise reaches the setting's ε.
    """
    made = calibrate(
        lambda z: _Candidate(noise_multiplier=z, event=event_of(z), trust=trust),
        epsilon=setting.epsilon,
        delta=setting.delta,
        steps=1,
    )
    guarantee = made.cost.guarantee(1, setting.delta, population=setting.clients)
    return Plan(setting=setting, noise_multiplier=made.noise_multiplier, guarantee=guarantee)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A noise multiplier that is tried, and its event."""

    noise_multiplier: float
    event: DpEvent
    trust: Trust

    @property
    def cost(self) -> Cost:
        """The cost of the release."""
        return Cost(event=self.event, unit="client", trust=self.trust, sampling="none")


def clipped(vector: Float[np.ndarray, "k"], norm: float) -> Float64[np.ndarray, "k"]:
    """Scale a vector down to an L2 norm, if its own is larger."""
    values = vector.astype(np.float64)
    length = float(np.linalg.norm(values))
    return values if length <= norm else values * (norm / length)


def released(
    vector: Float[np.ndarray, "k"], norm: float, noise: Float64[np.ndarray, "k"], plan: Plan
) -> Float32[np.ndarray, "k"]:
    """Clip a vector, or a sum of which one client moves no more than that, and add the plan's noise.

    Args:
        vector: The (k,) values.
        norm: C, to which a client's vector is clipped.
        noise: (k,) standard normals.
        plan: Gives z; the noise has standard deviation z·C.
    """
    return Gaussian(plan.noise_multiplier).release(clipped(vector, norm), noise, norm)


def padded(d: int) -> int:
    """Return the next multiple of 64 from d on: `Rotated` sends what is left of others as float32."""
    return -(-d // BLOCK) * BLOCK


def body_of(codec: Codec, values: Float[np.ndarray, "k"], context: PublicContext, support: Support) -> bytes:
    """Encode values on their support, all coordinates or a public one.

    Args:
        codec: Its quantiser and entropy coder are used.
        values: The (k,) values.
        context: Of the message.
        support: Where the values stand.
    """
    body, _ = codec.encode(values.astype(np.float32), support, replace(context, public_support=_public(support)))
    return body


def values_of(
    codec: Codec, body: bytes, context: PublicContext, public: Support | None = None
) -> Float64[np.ndarray, "d"]:
    """Decode a body to a vector of all coordinates, zero where nothing was sent.

    Args:
        codec: As for `body_of`.
        body: What that returned.
        context: Of the message.
        public: The support, where both ends compute it.
    """
    values, support = codec.decode(body, replace(context, public_support=public))
    vector = np.zeros(context.layout.size)
    vector[support.indices(len(vector))] = values
    return vector


def _public(support: Support) -> Support | None:
    return None if isinstance(support, Everywhere) else support


def gaussian_error(plan: Plan) -> float:
    """Return the squared error of the mean of unit vectors that Gaussian noise alone makes, under the plan's trust.

    It is d·z²/n with noise at each client, d·z²/n² with noise on the sum, for vectors clipped to 1.
    """
    setting, noise = plan.setting, plan.noise_multiplier**2 * plan.setting.dimensions
    return noise / setting.clients if plan.guarantee.trust == "nobody" else noise / setting.clients**2


def dealt_error(vectors: Float64[np.ndarray, "n d"], kept: int) -> float:
    """Return the squared error of the mean that comes from which coordinates `Dealt` gives to each client.

    A client sends k of d coordinates, and the server multiplies by d/k. The ⌊d/k⌋ clients of one permutation share no
    coordinate; those of different ones are independent. So it is ((d/k)·Σ‖xᵢ‖² − Σ‖sum of a permutation's xᵢ‖²)/n²,
    which for many alike clients is (d/k − 1)/n of the variance between them.

    Args:
        vectors: What is sent of all coordinates, in the mean over the noise.
        kept: k.
    """
    n, d = vectors.shape
    sums = np.add.reduceat(vectors, np.arange(0, n, d // kept))
    return float((d / kept * np.square(vectors).sum() - np.square(sums).sum()) / n**2)

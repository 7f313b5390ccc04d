"""From the updates of a round to the step that everybody takes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from dpcomp.core.randomness import SecretSeed
from dpcomp.core.support import Everywhere
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.ledger import Ledger, Permit
from dpcomp.wire.channel import Channel
from dpcomp.wire.memory import ServerMemory
from dpcomp.wire.update import Update


@runtime_checkable
class Releases(Protocol):
    """What a trusted server draws its noise with: a pipeline."""

    @property
    def channel(self) -> Channel:
        """What both ends are built from."""
        ...

    @property
    def cost(self) -> Cost:
        """What one release costs."""
        ...

    def release(self, blocks: Iterable[Any], memory: ServerMemory, secret: SecretSeed, permit: Permit) -> Update:
        """Clip every block, add them up, and add the noise."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrustedRelease:
    """What a trusted server releases with.

    Args:
        pipeline: Clips and draws the noise.
        secret: Where the noise comes from.
        ledger: What is charged, once a round.
        divisor: The expected number of senders of a round, a public constant.
    """

    pipeline: Releases
    secret: SecretSeed
    ledger: Ledger
    divisor: float

    def mean(self, updates: Sequence[Update], memory: ServerMemory) -> Update:
        """Return the mean of clean updates, clipped again and noised; the round is charged before.

        No sender at all is charged and noised alike.

        Args:
            updates: As the server has decoded them, one a client.
            memory: The server's.

        Raises:
            BudgetExhausted: The round was charged before, or the budget allows no further release.
        """
        permit = self.ledger.charge(self.pipeline.cost, memory.address)
        blocks = (update.dense()[None, :] for update in updates)
        released = self.pipeline.release(blocks, memory, self.secret, permit)
        return released.derive(released.dense() / np.float32(self.divisor))


def mean_of_released(
    channel: Channel, updates: Sequence[Update], memory: ServerMemory, weights: Sequence[float] | None = None
) -> Update:
    """Return Σ weight · update / their number, of updates that their clients released.

    Args:
        channel: What both ends are built from.
        updates: On the support that they share, or else everywhere; of none at all the mean is zero.
        memory: The server's.
        weights: Public weights, one an update; None for 1 each.

    Raises:
        NotPrivate: An update was not released by this pipeline.
    """
    for update in updates:
        channel.refuse_unreleased(update.claim)
    total = np.zeros(memory.layout.size, dtype=np.float64)
    for update, weight in zip(updates, weights or [1.0] * len(updates), strict=True):
        total += update.dense() if weight == 1 else weight * update.dense()
    mean = (total / max(1, len(updates))).astype(np.float32)
    supports = {update.support for update in updates}
    support = supports.pop() if len(supports) == 1 else Everywhere()
    values = mean[support.indices(len(mean))]
    return Update(values=values, layout=memory.layout, address=memory.address, support=support, claim=channel.claim)


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerOptimizer:
    """Federated averaging with server momentum: v ← μv + Δ, step = η·v (Hsu et al. 2019; Reddi et al. 2021).

    Args:
        learning_rate: η, of the server's step.
        momentum: μ; 0 for none.
        velocity: v so far, (d,); None before the first step.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0
    velocity: Float32[np.ndarray, "d"] | None = None

    def step(self, mean: Update) -> tuple[Update, "ServerOptimizer"]:
        """Return the step to broadcast for a mean Δ of updates, and the optimiser after it."""
        if self.momentum == 0:
            return mean.derive(mean.dense() * np.float32(self.learning_rate)), self
        velocity = mean.dense()
        if self.velocity is not None:
            velocity = np.float32(self.momentum) * self.velocity + velocity
        # Not derive: the velocity reaches beyond this mean's support. It is made of releases alone, so the claim holds.
        step = replace(mean, values=velocity * np.float32(self.learning_rate), support=Everywhere())
        return step, replace(self, velocity=velocity)

"""Aggregation: from the updates of a round to the step that is broadcast."""

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
from dpcomp.wire.update import UNKNOWN, Update, with_claim


@runtime_checkable
class Releases(Protocol):
    """A mechanism that a trusted server can release with: a `Pipeline`."""

    @property
    def channel(self) -> Channel:
        """The channel of both ends."""
        ...

    @property
    def cost(self) -> Cost:
        """The cost of a single release."""
        ...

    def release(self, blocks: Iterable[Any], memory: ServerMemory, secret: SecretSeed, permit: Permit) -> Update:
        """Clip each block, sum the blocks, and add noise; `Pipeline.release` explains the arguments.

        Args:
            blocks: The clean updates of the round, each as a block of a single unit.
            memory: The server's memory.
            secret: The source of the noise.
            permit: The permit for the round's charge.

        Returns:
            The noised sum, with a released claim.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TrustedRelease:
    """Makes the release of each round at a trusted server: it charges the ledger, clips, sums and adds noise.

    Args:
        pipeline: The pipeline whose mechanism clips and adds the noise.
        secret: The source of the noise.
        ledger: The ledger, which is charged once a round.
        divisor: The expected number of clients in a round, a public constant.
    """

    pipeline: Releases
    secret: SecretSeed
    ledger: Ledger
    divisor: float

    def mean(self, updates: Sequence[Update], memory: ServerMemory) -> Update:
        """Charge the round, and return the noised sum of the clipped updates ÷ `divisor`.

        A round without updates is charged and noised like any other, so that an observer cannot tell.

        **Privacy:** the updates are clipped here, after decoding, so each client moves the sum by at most one clip norm
        whatever its codec did (PRIVACY_RULES 10 and 18); the divisor is a public constant.

        Args:
            updates: The decoded updates, one update a client.
            memory: The server's memory.

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
    """Return the weighted mean Σ weightᵢ · updateᵢ ÷ n of n updates that their clients released.

    Args:
        channel: The channel of both ends: `pipeline.channel`.
        updates: The decoded updates; without any, the mean is zero.
        memory: The server's memory.
        weights: Public weights, a weight an update; None for 1 each.

    Returns:
        The mean, on the support of the updates if they all have the same, else everywhere.

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
    update = Update(values=values, layout=memory.layout, address=memory.address, support=support)
    return with_claim(update, channel.claim)


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerOptimizer:
    """Federated averaging with server momentum: v ← μv + Δ, step = η·v, for the mean Δ of a round's updates.

    With the defaults it is plain federated averaging: the step is the mean.

    Source: Hsu, Qi & Brown 2019 (FedAvgM), section 4; Reddi et al. 2021, Algorithm 2.

    Args:
        learning_rate: η, the server's learning rate.
        momentum: μ; 0 for none.
        velocity: v so far, as a (d,) vector; None before the first step.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0
    velocity: Float32[np.ndarray, "d"] | None = None

    def step(self, mean: Update) -> tuple[Update, "ServerOptimizer"]:
        """Compute the step to broadcast.

        **Privacy:** the step is made of released means alone, so it has their claim.

        Args:
            mean: The mean Δ of a round's updates.

        Returns:
            The step η·v, and the optimiser with the new velocity.
        """
        if self.momentum == 0:
            return mean.derive(mean.dense() * np.float32(self.learning_rate)), self
        velocity = mean.dense()
        if self.velocity is not None:
            velocity = np.float32(self.momentum) * self.velocity + velocity
        # Not derive, because the velocity has values outside this mean's support.
        values = velocity * np.float32(self.learning_rate)
        step = with_claim(replace(mean, values=values, support=Everywhere(), claim=UNKNOWN), mean.claim)
        return step, replace(self, velocity=velocity)

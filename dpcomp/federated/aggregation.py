"""From the updates of a round to the step that everybody takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from dpcomp.core.randomness import SecretSeed
from dpcomp.core.support import Everywhere
from dpcomp.pipeline import Pipeline
from dpcomp.privacy.ledger import Ledger
from dpcomp.wire.exchange import refuse_unreleased
from dpcomp.wire.memory import ServerMemory
from dpcomp.wire.update import Update


def mean_of_released(
    pipeline: Pipeline, updates: Sequence[Update], memory: ServerMemory, weights: Sequence[float] | None = None
) -> Update:
    """Σ weight · update / their number, of updates that were released by their clients; the senders are known.

    On the updates' support where they share one, else everywhere; of no updates at all, zero. `weights` are public;
    None: all 1.

    Raises:
        NotPrivate: an update is not made of this pipeline's releases.
    """
    for update in updates:
        refuse_unreleased(pipeline, update.claim)
    total = np.zeros(memory.layout.size, dtype=np.float64)
    for update, weight in zip(updates, weights or [1.0] * len(updates), strict=True):
        total += update.dense() if weight == 1 else weight * update.dense()
    mean = (total / max(1, len(updates))).astype(np.float32)
    supports = {update.support for update in updates}
    support = supports.pop() if len(supports) == 1 else Everywhere()
    values = mean[support.indices(len(mean))]
    return Update(values=values, layout=memory.layout, address=memory.address, support=support, claim=pipeline.claim)


def release_mean(
    pipeline: Pipeline,
    updates: Sequence[Update],
    memory: ServerMemory,
    secret: SecretSeed,
    ledger: Ledger,
    divisor: float,
) -> Update:
    """The mean of clean updates, clipped again and noised by a trusted server, charged before.

    `divisor` is the expected number of senders, a public constant: no sender at all is charged and noised alike.

    Raises:
        BudgetExhausted: the round was charged before.
    """
    permit = ledger.charge(pipeline, memory.address)
    blocks = (update.dense()[None, :] for update in updates)
    released = pipeline.release(blocks, memory, secret, permit)
    return released.derive(released.dense() / np.float32(divisor))


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerOptimizer:
    """Federated averaging with server momentum (Hsu et al. 2019; Reddi et al. 2021): v ← μv + Δ, step = η·v."""

    learning_rate: float = 1.0
    momentum: float = 0.0
    velocity: Float32[np.ndarray, "d"] | None = None

    def step(self, mean: Update) -> tuple[Update, "ServerOptimizer"]:
        """The step to broadcast, and the optimiser after it."""
        if self.momentum == 0:
            return mean.derive(mean.dense() * np.float32(self.learning_rate)), self
        velocity = mean.dense()
        if self.velocity is not None:
            velocity = np.float32(self.momentum) * self.velocity + velocity
        # Not derive: the velocity reaches beyond this mean's support. It is made of releases alone, so the claim holds.
        step = replace(mean, values=velocity * np.float32(self.learning_rate), support=Everywhere())
        return step, replace(self, velocity=velocity)

"""Client-level training of a round's clients as one compiled program: plain local SGD, released or sent as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from dpcomp.core.randomness import SecretSeed
from dpcomp.pipeline import Pipeline
from dpcomp.training.jax.batches import Batches, filled, power_of_two
from dpcomp.training.jax.programs import Model, for_each, in_float32
from dpcomp.training.trainer import LocalWork
from dpcomp.wire.update import Update


@dataclass(frozen=True, eq=False)
class ClientLevel:
    """Plain local SGD on Poisson batches, for all clients of a round in one program.

    Where nobody is trusted, each change is charged to the client's ledger, clipped and noised on the host. Where the
    server is trusted, it leaves clean, and the server charges, clips and adds the noise. A batch without examples is no
    step.

    Args:
        model: The loss and the structure of its parameters.
        examples: The inputs and targets of all clients, on the device.
        pipeline: Clips and releases, where nobody is trusted.
        batches: Draws the batches; no privacy depends on it.
        secret: Where noise is drawn from.
        local_steps: Steps in a round.
        momentum: Of the steps.
    """

    model: Model
    examples: tuple[Any, Any]
    pipeline: Pipeline
    batches: Batches
    secret: SecretSeed
    local_steps: int
    momentum: float

    @cached_property
    def _program(self) -> Any:
        return jax.jit(in_float32(self._clients))

    def train(self, work: Sequence[LocalWork], rates: Sequence[float]) -> list[Update]:
        """Train all clients, and return their updates in the same order: released, or clean for a trusted server.

        Args:
            work: What each client starts from.
            rates: The learning rate of each.

        Raises:
            BudgetExhausted: A charge was refused. The clients before it are charged, and drew no noise.
        """
        clean = self.pipeline.trust_model.server_sees_clean
        permits = [] if clean else [each.ledger.charge(self.pipeline.cost, each.memory.address) for each in work]
        rows = power_of_two(len(work))
        starts = np.stack([each.start for each in work])
        batches = map(filled, self.batches.draw(work, self.local_steps), (rows, rows))
        arguments = filled(starts, rows), *batches, filled(np.array(rates, dtype=np.float32), rows)
        vectors = self._program(self.examples, arguments, np.int32(len(work)))
        changes = np.asarray(vectors)[: len(work)] - starts
        if clean:
            # What is not finite counts as zero, as under Clip; a client that sent nothing would be seen.
            changes[~np.isfinite(changes).all(axis=1)] = 0.0
            return [
                Update(values=change, layout=each.memory.layout, address=each.memory.address)
                for each, change in zip(work, changes, strict=True)
            ]
        return [
            self.pipeline.release([change[None, :]], each.memory, self.secret, permit)
            for each, change, permit in zip(work, changes, permits, strict=True)
        ]

    def _clients(self, examples: tuple[Any, Any], arguments: tuple[Any, ...], clients: Any) -> Any:
        """Train the clients: the program that is compiled."""
        return for_each(lambda mine: self._client(examples, *mine), arguments, clients)

    def _client(self, examples: tuple[Any, Any], vector: Any, positions: Any, counts: Any, rate: Any) -> Any:
        def step(state: Any, drawn: Any) -> tuple[Any, None]:
            (vector, buffer), (chosen, count) = state, drawn

            def add(number: Any, total: Any) -> Any:
                part = self.model.part(number, chosen, count, examples)
                return total + self.model.gradient_sum(vector, *part)

            total = lax.fori_loop(0, self.model.parts(count), add, jnp.zeros_like(vector))
            moved = np.float32(self.momentum) * buffer + total / jnp.maximum(count, 1)
            after = (vector - rate * moved, moved)
            return jax.tree.map(lambda new, old: jnp.where(count > 0, new, old), after, state), None

        (vector, _), _ = lax.scan(step, (vector, jnp.zeros_like(vector)), (positions, counts))
        return vector

"""Example-level training of a round's clients as one compiled program: noise in every local step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float32

from dpcomp.core.randomness import SecretSeed
from dpcomp.pipeline import Pipeline
from dpcomp.privacy.ledger.permit import Permit
from dpcomp.privacy.traced.noise import DrawnNoise, StepNoise
from dpcomp.privacy.traced.release import TracedRelease
from dpcomp.training.jax.batches import Batches, filled, power_of_two
from dpcomp.training.jax.programs import Model, for_each
from dpcomp.training.trainer import LocalWork
from dpcomp.wire.update import Update

NOISE_AT_ONCE = 2**26  # draws, 512 MB in float64


@dataclass(frozen=True, eq=False)
class ExampleLevel:
    """DP-SGD on per-example gradients (Abadi et al. 2016, algorithm 1), for all clients of a round in one program.

    The program loops over the clients, over the local steps of each and over the chunks of each batch. Batches and
    noise are its arguments, drawn on the host as any other trainer draws them. A step clips and adds up in float64,
    adds its noise and rounds to the public grid by the pipeline's own lines (`Pipeline.release_in_trace`), and the
    released float32 values alone move the parameters.

    **Privacy:** all clients are charged before any noise is drawn. What a client's update is derived from is the start,
    its releases and public constants: no other value reaches the parameters in the program. Where noise of all clients
    and steps would take more than 512 MB, it is drawn and used in parts.

    Args:
        model: The loss and the structure of its parameters.
        examples: The inputs and targets of all clients, on the device.
        pipeline: Clips and releases.
        batches: Draws the batches.
        secret: Where noise is drawn from.
        local_steps: Steps in a round, each charged.
        divisor: The public constant that divides a step's sum.
        momentum: Of the steps.
    """

    model: Model
    examples: tuple[Any, Any]
    pipeline: Pipeline
    batches: Batches
    secret: SecretSeed
    local_steps: int
    divisor: float
    momentum: float

    @cached_property
    def _program(self) -> Any:
        return jax.jit(self._clients)

    def train(self, work: Sequence[LocalWork], rates: Sequence[float]) -> list[Update]:
        """Charge all clients, then train them, and return their updates in the same order.

        Args:
            work: What each client starts from.
            rates: The learning rate of each.

        Raises:
            BudgetExhausted: A charge was refused. The clients before it are charged, and drew no noise.
        """
        permits = [each.ledger.charge(self.pipeline.cost, each.memory.address, steps=self.local_steps) for each in work]
        most = max(1, NOISE_AT_ONCE // (self.local_steps * self.model.parameters.layout.size))
        parts = [slice(start, start + most) for start in range(0, len(work), most)]
        return [update for part in parts for update in self._train_group(work[part], permits[part], rates[part])]

    def _train_group(
        self, work: Sequence[LocalWork], permits: Sequence[Permit], rates: Sequence[float]
    ) -> list[Update]:
        rows = power_of_two(len(work))
        positions, counts = self.batches.draw(work, self.local_steps)
        starts = np.stack([each.start for each in work])
        vectors, buffers = filled(starts, rows), np.zeros((rows, starts.shape[1]), np.float32)
        masks = [self.pipeline.public_positions(each.memory) for each in work]
        given = [mask.astype(np.int32) for mask in masks if mask is not None]
        mask = filled(np.stack(given), rows) if given else None
        learning_rates = filled(np.array(rates, dtype=np.float32), rows)
        steps_at_once = max(1, min(self.local_steps, NOISE_AT_ONCE // starts.shape[1]))
        drawn: list[DrawnNoise] = []
        release: Any = None
        with jax.enable_x64(True):  # of the sums alone: the model is traced without
            for first in range(0, self.local_steps, steps_at_once):
                part = slice(first, min(self.local_steps, first + steps_at_once))
                drawn = [
                    self.pipeline.draw_noise(each.memory, self.secret, permit, part.stop - part.start)
                    for each, permit in zip(work, permits, strict=True)
                ]
                noise = StepNoise.stacked([each.noise for each in drawn], rows)
                batches = filled(positions[:, part], rows), filled(counts[:, part], rows)
                arguments = (vectors, buffers, *batches, noise, mask, learning_rates)
                vectors, buffers, release = self._program(self.examples, arguments, np.int32(len(work)))
            release = jax.tree.map(np.asarray, release)
        changes = np.asarray(vectors)[: len(work)] - starts
        noise_in_update = noise_through_sgd(self.local_steps, self.momentum)
        updates: list[Update] = []
        for i, (mine, change) in enumerate(zip(drawn, changes, strict=True)):
            last = self.pipeline.released(jax.tree.map(lambda array, i=i: array[i], release), mine)
            stddev = rates[i] * noise_in_update * mine.stddev / self.divisor
            updates.append(last.derive(change, noise_stddev=stddev or None))
        return updates

    def _clients(self, examples: tuple[Any, Any], arguments: tuple[Any, ...], clients: Any) -> Any:
        """Train the clients: the program that is compiled."""
        return for_each(lambda mine: self._client(examples, *mine), arguments, clients)

    def _client(
        self,
        examples: tuple[Any, Any],
        vector: Float32[Array, "d"],
        buffer: Float32[Array, "d"],
        positions: Any,
        counts: Any,
        noise: StepNoise,
        mask: Any,
        rate: Float32[Array, ""],
    ) -> tuple[Float32[Array, "d"], Float32[Array, "d"], TracedRelease]:
        layout = self.model.parameters.layout

        def step(state: Any, drawn: Any) -> tuple[Any, TracedRelease]:
            (vector, buffer), (chosen, count, step_noise) = state, drawn

            def block_at(number: Any) -> Any:
                inputs, targets, present = self.model.part(number, chosen, count, examples)
                return self.model.rows(vector, inputs, targets), present

            release = self.pipeline.release_in_trace(block_at, self.model.parts(count), step_noise, layout, mask)
            gradient = release.values
            if mask is not None:
                gradient = jnp.zeros(layout.size, jnp.float32).at[mask].set(gradient)
            buffer = np.float32(self.momentum) * buffer + gradient / np.float32(self.divisor)
            return (vector - rate * buffer, buffer), release

        (vector, buffer), releases = lax.scan(step, (vector, buffer), (positions, counts, noise))
        last = jax.tree.map(lambda array: array[-1], releases)
        units, not_finite = jnp.sum(releases.units), jnp.sum(releases.not_finite)
        return vector, buffer, replace(last, units=units, not_finite=not_finite)


def noise_through_sgd(steps: int, momentum: float) -> float:
    """Return how much noise SGD leaves in each parameter: of noise of standard deviation 1 in each step, at rate 1.

    The gradient of step s enters the parameters with the weight W_s = 1 + momentum·W_(s+1).

    Args:
        steps: The number of steps.
        momentum: Of all of them.
    """
    weights = np.cumsum(momentum ** np.arange(steps))
    return float(np.sqrt(np.sum(weights**2)))

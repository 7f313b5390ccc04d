"""Releases inside a compiled program of JAX: noise that is drawn before the program runs, and what leaves with it.

A program is traced once and runs for many arguments, so it cannot draw noise: what it drew while it was traced would be
the same for ever (PRIVACY_RULES hazard 4). `MechanismInTrace.draw` therefore draws the noise of a permit's next steps
on the host, `MechanismInTrace.release` clips, adds up and adds one step's noise inside the program, and
`MechanismInTrace.values` takes what came out of the program. A pipeline offers them as `draw_noise`, `release_in_trace`
and `released`.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32

from dpcomp.core.checks import check_type
from dpcomp.core.errors import BudgetExhausted, NotPrivate
from dpcomp.core.layout import Layout
from dpcomp.core.public_context import HasPublicSupport, PublicContext
from dpcomp.core.randomness import SecretSeed
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.gaussian import Gaussian, noise_of_step, public_grid
from dpcomp.privacy.ledger.permit import Permit
from dpcomp.privacy.traced.noise import DrawnNoise, StepNoise
from dpcomp.privacy.units.clipped_sum import added
from dpcomp.privacy.units.unit_gradients import Total, Units

Block = tuple[tuple[Float[Any, "n ..."], ...], Bool[Any, "n"]]  # rows a layer, and which of them are units


@dataclass(frozen=True, eq=False, repr=False)
class TracedRelease:
    """A release inside a compiled program, or what came out of one: a pytree, which `pipeline.released` takes.

    Attributes:
        values: (…, k) float32 values on the public grid.
        numbers: (…,) the number of the noise that is in them.
        units: (…,) how many units were in the sum, a private value.
        not_finite: (…,) how many of them counted as zero, a private value.
        drawn_by: What identifies the mechanism that clipped, and that the noise was drawn for.
    """

    values: Float[Any, "*steps k"]
    numbers: Int32[Any, "*steps"]
    units: Int32[Any, "*steps"]
    not_finite: Int32[Any, "*steps"]
    drawn_by: Any

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<private>)"


@dataclass(frozen=True, eq=False)
class SumInTrace:
    """Applies the stages before the noise to blocks inside a trace, and adds them up.

    Args:
        stages: The stages.
        layout: The layers of the whole vector.
        positions: The k coordinates that a stage with a public support keeps, which are an argument of the program;
            None without such a stage.
    """

    stages: tuple[Any, ...]
    layout: Layout
    positions: Int32[Any, "k"] | None

    def of(self, block_at: Callable[[Any], Block], count: Any) -> "TracedSum":
        """Return the sum of `count` blocks, in float64.

        Args:
            block_at: Returns the rows of the block of a traced number, and which of them are units.
            count: The number of blocks, which may be traced.

        Raises:
            TypeError: The trace has no float64.
            ValueError: A block does not fit the layout.
        """
        jax, xp = _jax()
        if xp.zeros(()).dtype != xp.float64:
            raise TypeError(
                "the trace has no float64, in which sum and noise are added: trace and call the program under "
                "jax.enable_x64(True), and the model alone under jax.enable_x64(False)"
            )

        def add(number: Any, sums: tuple[Any, ...]) -> tuple[Any, ...]:
            high, low, units, not_finite = sums
            rows, present = block_at(number)
            total = self._clipped(rows, present)
            rests = total.remainders or (0.0,) * len(high)
            pairs = [
                added(mine, low[i] + rests[i], more)
                for i, (mine, more) in enumerate(zip(high, total.layers, strict=True))
            ]
            present = xp.sum(present, dtype=xp.int32)
            # Rows that fill a block are zeros, hence finite.
            counts = units + present, not_finite + xp.asarray(total.not_finite, xp.int32)
            return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs), *counts

        sizes = self.layout.sizes if self.positions is None else (self.positions.shape[0],)
        shapes = jax.eval_shape(lambda: self._clipped(*block_at(xp.int32(0))).layers)
        zeros = tuple(xp.zeros(shape.shape, xp.float64) for shape in shapes)
        none = xp.zeros((), xp.int32)
        high, low, units, not_finite = jax.lax.fori_loop(0, count, add, (zeros, zeros, none, none))
        assert sum(layer.shape[0] for layer in high) == sum(sizes)
        return TracedSum(xp.concatenate(high) + xp.concatenate(low), units, not_finite)

    def _clipped(self, rows: tuple[Any, ...], present: Any) -> Total:
        _, xp = _jax()
        units = Units.of(tuple(rows), self.layout)
        zeroed = tuple(xp.where(present[:, None], layer, xp.zeros_like(layer)) for layer in units.layers)
        value: Units | Total = replace(units, layers=zeroed)
        context = PublicContext(layout=self.layout)  # which no stage reads that is allowed here, but for its layout
        for stage in self.stages:
            value = self._restricted(value) if isinstance(stage, HasPublicSupport) else stage.apply(value, context)
        return value if isinstance(value, Total) else value.sum()

    def _restricted(self, value: Any) -> Any:
        _, xp = _jax()

        def kept(layers: tuple[Any, ...]) -> tuple[Any, ...]:
            return (xp.concatenate(layers, axis=-1)[..., self.positions],) if layers else ()

        restricted = replace(value, layers=kept(value.layers))
        return restricted.with_remainders(kept(value.remainders)) if isinstance(value, Total) else restricted


@dataclass(frozen=True, eq=False)
class TracedSum:
    """A clipped sum inside a trace; `MechanismInTrace.release` adds the noise to it, and nobody else gets it.

    Attributes:
        vector: (k,) float64.
        units: How many units are in it.
        not_finite: How many of them counted as zero.
    """

    vector: Float64[Any, "k"]
    units: Int32[Any, ""]
    not_finite: Int32[Any, ""]


@dataclass(frozen=True, kw_only=True, eq=False)
class MechanismInTrace:
    """Releases inside a compiled program, whose noise is drawn before the program runs.

    Args:
        stages: The stages before the noise.
        gaussian: The noise; None for an unsafe mechanism without any.
        l2: The L2 sensitivity of the sum, which scales the noise.
        drawn_by: What identifies the mechanism.
    """

    stages: tuple[Any, ...]
    gaussian: Gaussian | None
    l2: float
    drawn_by: Any

    @property
    def stddev(self) -> float:
        """The standard deviation of the noise in a release; 0 without noise."""
        return self.gaussian.noise_multiplier * self.l2 if self.gaussian else 0.0

    def draw(self, empty: Total, secret: SecretSeed, permit: Permit, cost: Cost, steps: int) -> DrawnNoise:
        """Draw the noise of the next steps of a permit.

        Args:
            empty: The total of no unit, on the support of the releases.
            secret: The source of the noise.
            permit: What the ledger gave for the cost.
            cost: The cost of one release.
            steps: The number of releases, which use up as many steps of the permit.

        Raises:
            BudgetExhausted: The permit has too few steps left, or was charged for another cost.
        """
        if permit.steps - permit.used < steps:
            raise BudgetExhausted(
                f"{permit} does not allow {steps} more releases: charge more steps at the next address"
            )
        k = len(empty.vector())
        normals = np.zeros((steps, k))
        for row in normals:
            step = permit.spend(cost, seeded=secret.seeded)
            if self.gaussian:
                row[:] = noise_of_step(secret, permit.address, step, k)
        numbers = np.array([secrets.randbits(31) for _ in range(steps)], dtype=np.int32)
        register()
        noise = StepNoise(normals, numbers, self.drawn_by)
        return DrawnNoise(noise, permit.address, empty.layout, empty.support, self.stddev)

    def release(
        self,
        block_at: Callable[[Any], Block],
        count: Any,
        noise: StepNoise,
        layout: Layout,
        positions: Int32[Any, "k"] | None,
    ) -> TracedRelease:
        """Clip blocks, add them up, and add the noise of one step, while JAX traces the program.

        Args:
            block_at: Returns the rows of the block of a traced number, and which of them are units.
            count: The number of blocks, which may be traced.
            noise: The noise of this step.
            layout: The layers of the whole vector.
            positions: The k coordinates of the public support, as an argument of the program; None for all.

        Returns:
            The release, of the k supported coordinates.

        Raises:
            NotPrivate: The noise is of another mechanism, or would be used twice.
            TypeError: It is no noise of `draw`, or the trace has no float64.
            ValueError: A block does not fit the layout.
        """
        check_type(noise, StepNoise, f"release_in_trace: give a StepNoise of draw_noise, not a {type(noise).__name__}")
        if noise.drawn_by != self.drawn_by:
            raise NotPrivate("the noise was drawn for another mechanism, so its standard deviation may be another")
        released = SumInTrace(self.stages, layout, positions).of(block_at, count)
        vector = released.vector
        noise.take(vector)
        if self.gaussian:
            vector = self.gaussian.add(vector, noise.standard_normal, self.l2)
        vector = rounded_in_trace(vector, public_grid(self.stddev) if self.stddev else 0.0)
        return TracedRelease(vector, noise.numbers, released.units, released.not_finite, noise.drawn_by)

    def values(self, release: TracedRelease, drawn: DrawnNoise) -> Float[np.ndarray, "k"]:
        """Return the values of a release that a compiled program made, and use up its noise.

        Args:
            release: What `release` returned in the program, of the last of its steps.
            drawn: The noise that was the program's argument.

        Raises:
            NotPrivate: Another mechanism made the release, it was made with other noise, or the noise was used up.
            TypeError: It is no release.
        """
        check_type(release, TracedRelease, f"released: give a TracedRelease, not a {type(release).__name__}")
        if not release.drawn_by == drawn.noise.drawn_by == self.drawn_by:
            raise NotPrivate("the release or its noise is of another mechanism than this pipeline's")
        drawn.take(int(release.numbers))
        return np.asarray(release.values)


def rounded_in_trace(vector: Float64[Any, "k"], grid: float) -> Float[Any, "k"]:
    """Return noised values rounded to the nearest multiple of a power of two, as float32, like `on_public_grid`.

    Args:
        vector: (k,) values with noise.
        grid: The step of the public grid; 0 for none.
    """
    _, xp = _jax()
    if grid:
        vector = xp.rint(vector * (1 / grid)) * grid
        vector = xp.where(vector == 0, 0.0, vector)  # -0.0 is the negative half of a cell
    return vector.astype(xp.float32)


def _jax() -> tuple[Any, Any]:
    """Return `jax` and `jax.numpy`, which are imported here and not before; their types are not complete."""
    import jax

    return jax, jax.numpy


@cache
def register() -> None:
    """Tell JAX that noise and releases are pytrees."""
    jax, _ = _jax()
    register_dataclass = jax.tree_util.register_dataclass
    jax.tree_util.register_pytree_node(StepNoise, StepNoise.leaves, StepNoise.of_leaves)
    register_dataclass(TracedRelease, ["values", "numbers", "units", "not_finite"], ["drawn_by"])

"""Releases inside a compiled program of JAX: noise that is drawn before the program runs, and what leaves with it.

A program is traced once and runs for many arguments, so it cannot draw noise: what it drew while it was traced would be
the same for ever (PRIVACY_RULES hazard 4). `pipeline.draw_noise` therefore draws the noise of a permit's next steps on
the host, `pipeline.release_in_trace` clips, adds up and adds one step's noise inside the program, and
`pipeline.released` turns what came out of the program into an `Update`.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32

from dpcomp.core.address import Address
from dpcomp.core.errors import NotPrivate
from dpcomp.core.layout import Layout
from dpcomp.core.public_context import HasPublicSupport, PublicContext
from dpcomp.core.support import Support
from dpcomp.privacy.units.clipped_sum import added
from dpcomp.privacy.units.unit_gradients import Total, Units

SEVERAL_SUMS = (
    "the noise of one step would be added to several sums, whose differences have none: give the StepNoise to "
    "lax.scan, lax.map or vmap as an argument that is mapped over, release once in each turn, and hand it on to nothing"
)
Block = tuple[tuple[Float[Any, "n ..."], ...], Bool[Any, "n"]]  # rows a layer, and which of them are units


@dataclass(frozen=True, eq=False)
class StepNoise:
    """The noise of steps, as an argument of a compiled program: a pytree, of which `lax.scan` gives one step at a time.

    **Privacy:** one step's noise is for one release: while a program is traced, the noise of a step is used once, and
    where it is drawn from, by the loop or map around the release, which hands it on to no next turn (PRIVACY_RULES
    hazards 4 and 39). Whoever changes the leaves by `jax.tree.map`, or gives the same noise to several compiled
    functions, vouches for them.

    Attributes:
        standard_normal: (…, k) float64 draws of N(0, 1).
        numbers: (…,) secret whole numbers, by which a release is known to have come from this noise.
        drawn_by: What identifies the mechanism that the noise was drawn for.
    """

    standard_normal: Float64[Any, "*steps k"]
    numbers: Int32[Any, "*steps"]
    drawn_by: Any
    _used: list[bool] = field(default_factory=lambda: [False], init=False, repr=False)

    def take(self, place: Any) -> None:
        """Use up the noise of one step, while a program is traced.

        Args:
            place: A traced array that was computed where the noise is to be added.

        Raises:
            NotPrivate: It was used already, or a loop or map around the release would use it again.
        """
        noise, here = (getattr(array, "_trace", None) for array in (self.standard_normal, place))
        if self._used[0] or noise is not here:
            raise NotPrivate(SEVERAL_SUMS)
        self._used[0] = True

    def leaves(self) -> tuple[tuple[Any, Any], Any]:
        """Return the arrays, and what they were drawn by: JAX asks for them where the noise is handed on.

        Raises:
            NotPrivate: It was used in this trace, so that the next turn of a loop would use it again.
        """
        if self._used[0]:
            raise NotPrivate(SEVERAL_SUMS)
        return (self.standard_normal, self.numbers), self.drawn_by

    @staticmethod
    def of_leaves(drawn_by: Any, leaves: tuple[Any, Any]) -> "StepNoise":
        """Return the noise of arrays, which `leaves` gave."""
        return StepNoise(*leaves, drawn_by)

    @staticmethod
    def stacked(noises: "Sequence[StepNoise]", rows: int) -> "StepNoise":
        """Return the noise of several clients under a new first axis of `rows`, the last of which may be empty.

        Args:
            noises: Of each client, for the same number of steps and of the same mechanism.
            rows: The length of the new axis.

        Raises:
            ValueError: The noises differ in shape or mechanism.
        """
        first = noises[0]
        shape = first.standard_normal.shape
        if any(each.standard_normal.shape != shape or each.drawn_by != first.drawn_by for each in noises):
            raise ValueError("noises of different shapes or mechanisms were stacked: draw them by one pipeline")
        normals, numbers = np.zeros((rows, *shape)), np.zeros((rows, *first.numbers.shape), dtype=np.int32)
        for i, each in enumerate(noises):
            normals[i], numbers[i] = each.standard_normal, each.numbers
        return StepNoise(normals, numbers, first.drawn_by)


class DrawnNoise:
    """The noise of a permit's steps, drawn and charged; `pipeline.draw_noise` alone makes it.

    Args:
        noise: The draws, an argument for the program.
        address: Of the permit.
        layout: Of the memory.
        support: Which k of the layout's coordinates are released.
        stddev: The standard deviation of the noise in a release.

    Attributes:
        noise: As the argument.
        support: As the argument.
    """

    def __init__(self, noise: StepNoise, address: Address, layout: Layout, support: Support, stddev: float):
        self.noise, self.address, self.layout, self.support, self.stddev = noise, address, layout, support, stddev
        self._lock, self._left = threading.Lock(), set(map(int, noise.numbers))

    def take(self, number: int) -> None:
        """Use up the draws up to the one with a number: none of them is released with again.

        Raises:
            NotPrivate: The number is not of this noise, or was used up before.
        """
        with self._lock:
            if number not in self._left:
                raise NotPrivate(
                    "this release was not made with this noise, or was taken out of it before: give the release that "
                    "the program computed with the noise of this client and these steps, once"
                )
            self._left.clear()

    def __reduce__(self):
        raise TypeError("noise stays in the process that was charged: draw it where the program runs")


@dataclass(frozen=True, eq=False)
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
    """A clipped sum inside a trace; `release_in_trace` adds the noise to it, and nobody else gets it.

    Attributes:
        vector: (k,) float64.
        units: How many units are in it.
        not_finite: How many of them counted as zero.
    """

    vector: Float64[Any, "k"]
    units: Int32[Any, ""]
    not_finite: Int32[Any, ""]


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

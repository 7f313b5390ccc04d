"""Noise that is drawn before a compiled program of JAX runs, of which each step is used once."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32

from dpcomp.core.address import Address
from dpcomp.core.errors import NotPrivate
from dpcomp.core.layout import Layout
from dpcomp.core.support import Support

SEVERAL_SUMS = (
    "the noise of one step would be added to several sums, whose differences have none: give the StepNoise to "
    "lax.scan, lax.map or vmap as an argument that is mapped over, release once in each turn, and hand it on to nothing"
)


@dataclass(frozen=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<private>)"

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

"""Setting: how many clients and coordinates a benchmark has, and its privacy; and the vectors that clients hold."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from dpcomp.core.checks import real_number, whole_number
from dpcomp.core.randomness import PublicSeed
from dpcomp.privacy.accounting.epsilon import check_delta

DELTA = 1e-6  # of PPR's experiments (Liu et al. 2024, section 7)
MOST_EPSILON = 100.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A task of mean estimation: n clients, each with one vector of d coordinates in the unit L2 ball, and (ε, δ).

    Attributes:
        clients: n, a public number.
        dimensions: d, the coordinates of a vector.
        epsilon: ε of the one release, for adding or removing a client's vector.
        delta: δ.

    Raises:
        TypeError: A number has another type.
        ValueError: A number lies outside its range.
    """

    clients: int
    dimensions: int
    epsilon: float
    delta: float = DELTA

    def __post_init__(self):
        whole_number(self.clients, "Setting(clients)", least=1)
        whole_number(self.dimensions, "Setting(dimensions)", least=1)
        allowed = f"a number above 0, up to {MOST_EPSILON:g}"
        if not 0 < real_number(self.epsilon, "Setting(epsilon)", allowed) <= MOST_EPSILON:
            raise ValueError(f"Setting(epsilon={self.epsilon!r}): give {allowed}")
        check_delta(self.delta)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A kind of vectors that clients hold.

    Attributes:
        name: In results, such as "signs".
        about: In a table.
        draw: Makes n vectors of d coordinates, as an (n, d) array, from a stream.
    """

    name: str
    about: str
    draw: Callable[[int, int, np.random.Generator], Float64[np.ndarray, "n d"]]

    def vectors(self, setting: Setting, seed: int) -> Float64[np.ndarray, "n d"]:
        """Return the vectors of all clients, the same for each ε and each method."""
        stream = PublicSeed(seed).stream(f"inputs {self.name}", setting.clients, setting.dimensions)
        return self.draw(setting.clients, setting.dimensions, stream)


def _signs(n: int, d: int, stream: np.random.Generator) -> Float64[np.ndarray, "n d"]:
    return np.where(stream.random((n, d)) < 0.8, 1.0, -1.0) / math.sqrt(d)


def _values(n: int, d: int, stream: np.random.Generator) -> Float64[np.ndarray, "n d"]:
    return stream.uniform(-0.2, 1.0, (n, d)) / math.sqrt(d)


SIGNS = Inputs(
    name="signs",
    about="±1/√d, positive with probability 0.8 (Chen et al. 2023, section 7)",
    draw=_signs,
)
VALUES = Inputs(name="values", about="uniform between −0.2/√d and 1/√d", draw=_values)
INPUTS = (SIGNS, VALUES)

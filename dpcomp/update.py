"""Updates: flat vectors with named layers, and the address they belong to."""

import hashlib
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from array_api_compat import is_torch_array
from jaxtyping import Float32, Int64

from dpcomp.claim import Claim, Unbounded
from dpcomp.support import Everywhere, Support

SERVER = 2**32 - 1  # stands where a client's number stands, when the server acts


@dataclass(frozen=True)
class Address:
    """(run, client, round): every random stream, charge and frame is identified by it.

    A memory's is (the number of its public seed, its client or `SERVER`, the broadcasts so far).

    Raises:
        TypeError, ValueError: run is no whole number below 2⁶⁴, or client or round none below 2³².
    """

    run: int
    client: int
    round: int

    def __post_init__(self):
        for name, limit in (("run", 2**64), ("client", 2**32), ("round", 2**32)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
                raise TypeError(f"Address.{name} is {number!r}: it must be a whole number")
            if not 0 <= number < limit:
                raise ValueError(f"Address.{name} is {number}: it must lie in [0, {limit})")
            object.__setattr__(self, name, int(number))


@dataclass(frozen=True)
class Layout:
    """The layers of a flat vector, in order: their names and shapes.

    Raises:
        ValueError: it has no coordinates, or 2³² and more.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, layers: "int | Mapping[str, tuple[int, ...]] | Layout") -> "Layout":
        """A layout from the number of coordinates, or from a mapping name → shape."""
        if isinstance(layers, Layout):
            return layers
        if isinstance(layers, Mapping):
            return cls(tuple((str(name), tuple(map(operator.index, shape))) for name, shape in layers.items()))
        return cls((("update", (operator.index(layers),)),))

    def __post_init__(self):
        if self.size < 1 or any(side < 0 for _, shape in self.shapes for side in shape):
            raise ValueError(f"{self} has no coordinates: a layout needs at least one")
        if self.size >= 2**32:
            raise ValueError(f"{self} has {self.size} coordinates: the wire format holds fewer than 2**32")

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of coordinates of each layer."""
        return tuple(math.prod(shape) for _, shape in self.shapes)

    @cached_property
    def size(self) -> int:
        """d, the number of coordinates."""
        return sum(self.sizes)

    @cached_property
    def edges(self) -> Int64[np.ndarray, "layers_plus_one"]:
        """Where each layer begins in the flat vector, and at the end d."""
        return np.cumsum([0, *self.sizes], dtype=np.int64)

    @cached_property
    def digest(self) -> bytes:
        """8 bytes that name the layout."""
        return hashlib.blake2b(repr(self.shapes).encode(), digest_size=8).digest()


UNKNOWN = Unbounded(
    because="the update was made by hand, from nobody knows what",
    remedy="Make it with pipeline.release, or with .derive(values) of a released update",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Update:
    """A flat vector on its support.

    `values` has one float32 a supported coordinate, in ascending order of position. `claim` is what is
    known about them: only a pipeline's `release` (or `receive`, of what was released) makes it `Released`.

    Raises:
        ValueError: the values are not one row of as many as the support holds.
    """

    values: Float32[np.ndarray, "k"]
    layout: Layout
    address: Address
    support: Support = field(default_factory=Everywhere)
    claim: Claim = UNKNOWN
    noise_stddev: float | None = None

    def __post_init__(self):
        given = self.values.detach().cpu().numpy() if is_torch_array(self.values) else self.values
        values = np.array(given, dtype=np.float32)
        expected = self.support.count(self.layout.size)
        if values.shape != (expected,):
            raise ValueError(
                f"an update on {type(self.support).__name__} of {self.layout.size} coordinates holds "
                f"{expected} values; these have shape {values.shape}"
            )
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    def dense(self) -> Float32[np.ndarray, "d"]:
        """The whole vector; zero where the support is not. On `Everywhere` it is `values` itself, read-only."""
        if isinstance(self.support, Everywhere):
            return self.values
        vector = np.zeros(self.layout.size, dtype=np.float32)
        vector[self.support.indices(self.layout.size)] = self.values
        return vector

    def derive(self, vector: Float32[np.ndarray, "d"], noise_stddev: float | None = None) -> "Update":
        """Another vector computed from this update and public values alone, restricted to its support.

        `noise_stddev` is that of the privacy noise in the new values, if the caller can say it.

        **Privacy:** post-processing of a release is a release (Dwork & Roth 2014, Prop. 2.1), so the
        claim is kept. Nothing private may have entered `vector`.

        Raises:
            ValueError: the vector is not of shape (d,).
        """
        vector = np.asarray(vector, dtype=np.float32)
        if vector.shape != (self.layout.size,):
            raise ValueError(f"derive: the vector has shape {vector.shape}, not ({self.layout.size},)")
        return replace(self, values=vector[self.support.indices(self.layout.size)], noise_stddev=noise_stddev)

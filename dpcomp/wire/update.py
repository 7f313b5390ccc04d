"""Updates: flat vectors with named layers, and the address they belong to."""

from dataclasses import dataclass, field, replace

import numpy as np
from array_api_compat import is_torch_array
from jaxtyping import Float32

from dpcomp.core.address import Address
from dpcomp.core.layout import Layout
from dpcomp.core.support import Everywhere, Support
from dpcomp.privacy.claim import Claim, Unbounded

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

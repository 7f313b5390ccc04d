"""Update: a flat vector with named layers, a support and an address."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from array_api_compat import is_torch_array
from jaxtyping import Float, Float32

from dpcomp.core.address import Address
from dpcomp.core.errors import NotPrivate
from dpcomp.core.layout import Layout
from dpcomp.core.read_only import immutable
from dpcomp.core.support import Everywhere, Support
from dpcomp.display import html
from dpcomp.privacy.claim import Bounded, Claim, Released, ShareOfNoise, Unbounded

UNKNOWN = Unbounded(
    because="the update was made by hand, so nothing is known of its values",
    remedy="Make it with pipeline.release, or with .derive(values) of a released update",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Update:
    """A flat vector with named layers: its values on a support, and the address that it belongs to.

    A pipeline's `release` makes updates with a released claim, and so does `receive` of a payload that holds a release.
    An update that is made by hand may be sent to a trusted server alone. A released update does not change: its values
    lie in memory that NumPy cannot write to, and `dataclasses.replace` refuses it, since other values need not be
    released; values that were computed of it go through `derive`.

    Args:
        values: (k,) floats, a value for each coordinate of the support, in ascending order of position. They are
            copied into a read-only float32 array of NumPy; a torch tensor will do.
        layout: The layers of the whole vector of d coordinates.
        address: The run, client and round that it belongs to.
        support: Which k coordinates it holds.
        claim: What is proven of the values. A `Released` claim is not given by hand: a pipeline's release has it.
        noise_stddev: The standard deviation of the privacy noise in the values; None if it is not known.
        learning_rate: The learning rate that the values contain, where it follows a schedule, which is a public
            function of the round; else 1. A sender with a momentum divides by it (`MomentumCorrection`, `EF21`).
        noisy_count: What a release with `AdaptiveClip` counts beside its sum, with noise; else None.

    Raises:
        NotPrivate: `claim` is `Released`.
        ValueError: The number of values is not that of the support.

    Examples:
        >>> import numpy as np
        >>> import dpcomp as dp
        >>> update = dp.Update(
        ...     values=np.array([1.0, -2.0]),
        ...     layout=dp.Layout.of(4),
        ...     address=dp.Address(run=0, client=7, round=0),
        ...     support=dp.Listed(np.array([1, 3])),
        ... )
        >>> update.dense().tolist()
        [0.0, 1.0, 0.0, -2.0]
    """

    values: Float[Any, "k"]
    layout: Layout
    address: Address
    support: Support = field(default_factory=Everywhere)
    claim: Claim = UNKNOWN
    noise_stddev: float | None = None
    learning_rate: float = 1.0
    noisy_count: float | None = None

    def __post_init__(self):
        if isinstance(self.claim, Released):
            raise NotPrivate(
                "an update with a released claim was made by hand or by dataclasses.replace, and nothing shows that "
                "its values were released: make it with pipeline.release, or with .derive(values) of a released update"
            )
        if isinstance(self.claim, ShareOfNoise):
            raise NotPrivate(
                "an update with a share of the noise was made by hand or by dataclasses.replace, and nothing shows "
                "that its values have the noise: give what pipeline.receive returned, as it is"
            )
        given = self.values.detach().cpu().numpy() if is_torch_array(self.values) else self.values
        values = np.asarray(given, dtype=np.float32)
        expected = self.support.count(self.layout.size)
        if values.shape != (expected,):
            raise ValueError(
                f"an update on {type(self.support).__name__} of {self.layout.size} coordinates holds "
                f"{expected} values; these have shape {values.shape}"
            )
        object.__setattr__(self, "values", _immutable_copy(values))

    def __repr__(self) -> str:
        facts = [
            f"{len(self.values):,} of {self.layout.size:,} values",
            repr(self.address),
            self._claimed,
            *([] if self.noise_stddev is None else [f"noise_stddev={self.noise_stddev:.4g}"]),
            *([] if self.learning_rate == 1 else [f"learning_rate={self.learning_rate:.4g}"]),
        ]
        return f"Update({', '.join(facts)})"

    def _repr_html_(self) -> str:
        noise = "not known" if self.noise_stddev is None else f"standard deviation {self.noise_stddev:.4g}"
        pairs = [
            ("values", f"{len(self.values):,} of {self.layout.size:,}, on {type(self.support).__name__}"),
            ("layers", f"{len(self.layout.shapes):,}"),
            ("address", f"run {self.address.run}, client {self.address.client}, round {self.address.round}"),
            ("state", self._claimed),
            ("noise", noise),
        ]
        return html.panel("Update", html.facts(pairs))

    @property
    def _claimed(self) -> str:
        # The values are not shown, for those of a clean update are private.
        if isinstance(self.claim, Released):
            return "released"
        return "clean" if not isinstance(self.claim, Bounded) else f"clean, sensitivity {self.claim.l2:.4g}"

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles take: the fields, and no share of the noise, which hides one update once."""
        state = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**state, "claim": _of_another(self.claim)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        # Of a copy and of what was pickled: NumPy makes arrays anew there, that could be written to.
        vars(self).update(state, values=_immutable_copy(state["values"]))

    def dense(self) -> Float32[np.ndarray, "d"]:
        """Return the whole (d,) vector, zero outside the support; on `Everywhere` it is `values` itself, read-only."""
        if isinstance(self.support, Everywhere):
            return self.values
        vector = np.zeros(self.layout.size, dtype=np.float32)
        vector[self.support.indices(self.layout.size)] = self.values
        return vector

    def derive(self, vector: Float[Any, "d"], noise_stddev: float | None = None) -> "Update":
        """Return an update with other values, which were computed from this update and public values alone.

        **Privacy:** post-processing of a release is a release (Dwork & Roth 2014, Prop. 2.1), so the
        claim is kept. No private value may have entered `vector`. Of an update with a client's share of the noise, the
        result has no claim, for other values have another noise.

        Args:
            vector: (d,) floats; the new values are those on this update's support.
            noise_stddev: The standard deviation of the privacy noise in the new values; None if it is not known.

        Raises:
            ValueError: The vector does not have the shape (d,).
        """
        vector = np.asarray(vector, dtype=np.float32)
        if vector.shape != (self.layout.size,):
            raise ValueError(f"derive: the vector has shape {vector.shape}, not ({self.layout.size},)")
        everywhere = isinstance(self.support, Everywhere)
        values = vector if everywhere else vector[self.support.indices(self.layout.size)]
        made = replace(self, values=values, noise_stddev=noise_stddev, claim=UNKNOWN)
        return with_claim(made, _of_another(self.claim))


def with_learning_rate(update: Update, learning_rate: float) -> Update:
    """Return an update that says which learning rate its values contain.

    **Privacy:** the rate must be public: one of a schedule that was fixed before the first round.

    Args:
        update: The update; its values stay as they are.
        learning_rate: A finite number from 0 on.

    Raises:
        ValueError: The rate lies outside its range.
    """
    if not 0 <= learning_rate < np.inf:
        raise ValueError(f"with_learning_rate({learning_rate!r}): a learning rate is a finite number from 0 on")
    stated = object.__new__(Update)
    vars(stated).update(vars(update), learning_rate=float(learning_rate), claim=_of_another(update.claim))
    return stated


def with_claim(update: Update, claim: Claim) -> Update:
    """Return an update with another claim; the one way to a released one.

    **Privacy:** the caller has proven the claim. Only what releases, decodes or post-processes releases calls this.

    Args:
        update: The update.
        claim: What is proven of its values.
    """
    proven = object.__new__(Update)
    vars(proven).update(vars(update), claim=claim)
    return proven


def decoded_update(values: Float32[np.ndarray, "k"], layout: Layout, address: Address, support: Support) -> Update:
    """Return an update, without a claim, of values that a codec decoded; it takes over their array without a copy.

    Args:
        values: A new (k,) array, which the caller gives up.
        layout: The layers of the whole vector.
        address: The run, client and round that it belongs to.
        support: Which k coordinates it holds.
    """
    made = object.__new__(Update)
    fields = {
        "values": immutable(np.ascontiguousarray(values)),
        "layout": layout,
        "address": address,
        "support": support,
    }
    vars(made).update(fields, claim=UNKNOWN, noise_stddev=None, learning_rate=1.0)
    return made


def _of_another(claim: Claim) -> Claim:
    """Return what a claim says of another update with the same values: of a share of the noise, nothing."""
    return UNKNOWN if isinstance(claim, ShareOfNoise) else claim


def _immutable_copy(values: Float32[np.ndarray, "k"]) -> Float32[np.ndarray, "k"]:
    """Return a copy of the values that no flag of the array, or of its base, makes writeable."""
    return immutable(np.array(values, dtype=np.float32, order="C"))

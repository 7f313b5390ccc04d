"""PublicContext: what both ends know when a stage or a codec runs."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from dpcomp.core.layout import Layout
from dpcomp.core.support import Listed, Support


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicContext:
    """The public values of one message: sender and receiver hold the same, before it is written and before it is read.

    Stages (`apply`), sparsifiers (`select`), public supports (`public_support`) and quantisers get it as an argument. A
    part may depend on it in any way, since all of it is public or was released: that costs no privacy
    (PRIVACY_RULES 7).

    Attributes:
        layout: The layers of the whole vector of d coordinates.
        version: How many broadcasts both ends have followed.
        round: The round of the message, from 0.
        client: The number of the client that sends, or `dp.SERVER` for a broadcast.
        mask_key: 256 public bits, the same for all messages of a version: random supports are drawn from it.
        dither_key: 256 public bits that no other message of the run has: rounding and rotation are drawn from it.
        last_broadcast: The last broadcast as a (d,) float32 vector, where the codec predicts from it; else None.
        history: What the pipeline's part with `ReadsHistory` keeps of all broadcasts so far; None where no part asks.
        public_support: The support that both ends compute for the message, where a part has one; the codec gets it.
        previous_support: The last support that was listed on the same link: the next is coded by how it differs.
        packed: Whether the codec packs levels into whole bits, as `dp.FixedWidth` does; the codec sets it.
    """

    layout: Layout
    version: int = 0
    round: int = 0
    client: int = 0
    mask_key: int = 0
    dither_key: int = 0
    last_broadcast: Float32[np.ndarray, "d"] | None = None
    history: Float32[np.ndarray, "h"] | None = None
    public_support: Support | None = None
    previous_support: Listed | None = None
    packed: bool = False


@runtime_checkable
class HasPublicSupport(Protocol):
    """A stage or sparsifier whose support both ends compute from the context alone: its positions are never sent.

    **Privacy:** the support is a function of public and released values, so it reveals nothing (PRIVACY_RULES 2 and 7).
    """

    def public_support(self, context: PublicContext) -> Support:
        """Return the support of the message that the context is about."""
        ...


@runtime_checkable
class ReadsHistory(Protocol):
    """A part that needs more of the past than the last broadcast: it says what is kept, as a fold over broadcasts.

    Both ends keep the (h,) float32 vector in their shared memory, so it travels in snapshots and stands in checkpoints.
    `update_history` must give the same bits on every machine: sums and products of float32, no other functions.
    """

    def initial_history(self, layout: Layout) -> Float32[np.ndarray, "h"]:
        """Return the history before any broadcast."""
        ...

    def update_history(
        self, history: Float32[np.ndarray, "h"], broadcast: Float32[np.ndarray, "d"], layout: Layout
    ) -> Float32[np.ndarray, "h"]:
        """Return the history after one more broadcast, a (d,) vector as every end has decoded it."""
        ...

"""PublicContext: the public values that both ends have when a stage or a codec runs."""

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from dpcomp.core.layout import Layout
from dpcomp.core.support import Listed, Support

LARGEST_ERROR = 20.0  # in standard deviations: beyond 17 no layer reaches, for want of bits that it is drawn with
SIGNIFICAND_BITS = 23  # of a float32: whole numbers up to twice 2^23 are float32 numbers


@dataclass(frozen=True, kw_only=True)
class NoiseShare:
    """What a client's codec needs to make its share of the noise by the error of one message; the key is secret.

    Attributes:
        clip_norm: C, the largest L2 norm of the vector that is encoded.
        stddev: σ, the standard deviation of the error in each coordinate.
        dither_key: 256 bits that this client and the server alone know, and no other message of any run has.
    """

    clip_norm: float
    stddev: float
    dither_key: int = field(repr=False)

    @property
    def grid(self) -> float:
        """The step of the grid of decoded values: the least power of two at which float32 holds each of them."""
        return share_grid(self.clip_norm, self.stddev)


def share_grid(clip_norm: float, stddev: float) -> float:
    """Return the step of the grid of the values that are decoded of a message with a share of the noise.

    Args:
        clip_norm: C, the largest L2 norm of the vector.
        stddev: σ, the standard deviation of the error.
    """
    return math.ldexp(1.0, math.frexp(clip_norm + LARGEST_ERROR * stddev)[1] - SIGNIFICAND_BITS)


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicContext:
    """The public values of one message, the same at the sender before encoding and at the receiver before decoding.

    Stages (`apply`), sparsifiers (`select`), public supports (`public_support`) and quantisers get it as an argument. A
    part may depend on any of it: every value is public or computed from released values, which costs no privacy
    (PRIVACY_RULES 7). Integers and keys are the same on all machines; what a part computes from the float vectors has
    to be bit for bit the same at both ends.

    Attributes:
        layout: The layers of the whole vector of d coordinates.
        version: How many broadcasts both ends have followed.
        round: The round of the message, from 0.
        client: The number of the client that sends, or `dp.SERVER` for a broadcast.
        mask_key: 256 public bits, the same for all messages of a version: random supports are drawn from it.
        run_key: 256 public bits, the same for all messages of a run: supports that one permutation deals over many
            rounds are drawn from it.
        dither_key: 256 public bits that no other message of the run has: rounding and rotation are drawn from it.
        last_broadcast: The last broadcast as a (d,) float32 vector, where the codec predicts from it; else None.
        history: The (h,) float32 vector that the pipeline's part with `ReadsHistory` keeps of all broadcasts so far;
            None where no part does.
        public_support: The support that both ends compute for the message, where a part has one; set before the codec
            runs, so it is None in `HasPublicSupport.public_support` itself.
        previous_support: The last support that was listed on the same link; the entropy coder may code the next one by
            its changes. None before the first.
        clip_norm: The clip norm of `dp.AdaptiveClip` in this round, in the contexts of stages at the server; else None.
        packed: Whether levels are packed into whole bits, as `dp.FixedWidth` does; the codec sets it.
        noise_share: The only value that is not public: what `dp.ExactGaussian` makes its share of the noise with. None
            where the codec has another quantiser, and in each context of a stage.

    Examples:
        >>> import dpcomp as dp
        >>> context = dp.PublicContext(layout=dp.Layout.of(1000), mask_key=dp.PublicSeed(0).key("mask", 0))
        >>> dp.RandomK(0.01).public_support(context).count(1000)
        10
    """

    layout: Layout
    version: int = 0
    round: int = 0
    client: int = 0
    mask_key: int = 0
    run_key: int = 0
    dither_key: int = 0
    last_broadcast: Float32[np.ndarray, "d"] | None = None
    history: Float32[np.ndarray, "h"] | None = None
    public_support: Support | None = None
    previous_support: Listed | None = None
    clip_norm: float | None = None
    packed: bool = False
    noise_share: NoiseShare | None = None


@runtime_checkable
class HasPublicSupport(Protocol):
    """A stage or sparsifier whose support both ends compute from the context alone, so that no position is sent.

    Add the method `public_support` to a stage (with `claim` and `apply`), to a sparsifier (with `select`), or to a
    class that is both; `select` and `apply` must use the same support. No other declaration is needed. A message has
    one public support: a pipeline with two such parts is refused.

    **Privacy:** the support is a function of public and released values, so it reveals nothing (PRIVACY_RULES 2 and 7).
    """

    def public_support(self, context: PublicContext) -> Support:
        """Return the support of the message that the context describes, the same at both ends."""
        ...


@runtime_checkable
class ReadsHistory(Protocol):
    """A part that needs more of the past than the last broadcast; its history is a fold over the broadcasts.

    Add the two methods to the part; it reads the result as `context.history`. Both ends keep the (h,) float32 vector in
    their shared memory: it is sent in snapshots to clients that come back, and saved in checkpoints. h is the part's
    choice and stays the same, such as d for a value a coordinate. A pipeline has at most one such part.

    `update_history` must return the same bits on every machine: use sums, products and comparisons of float32 element
    by element, no reductions such as `np.sum` and no functions such as `exp`. It returns a new array and leaves its
    arguments unchanged.

    A support that is chosen from its own history alone never gets news of other coordinates: give it a share of random
    ones, drawn from `context.mask_key`. Give the pipeline a `downlink=` of its own where a sparsifier reads history, as
    below: without it the broadcasts are sparsified as the updates are, so the history never sees what a broadcast would
    hold elsewhere, such as server momentum.

    **Privacy:** broadcasts are released values, so the history is too (PRIVACY_RULES 7).

    Examples:
        >>> import dpcomp as dp
        >>> from dpcomp.sparsify.top_k_indices import top_k_indices
        >>> @dataclass(frozen=True)
        ... class MovedMost:
        ...     fraction: float
        ...
        ...     def initial_history(self, layout):
        ...         return np.zeros(layout.size, np.float32)
        ...
        ...     def update_history(self, history, broadcast, layout):
        ...         return np.float32(0.5) * history + broadcast * broadcast
        ...
        ...     def public_support(self, context):
        ...         return dp.Listed(top_k_indices(context.history, round(self.fraction * context.layout.size)))
        ...
        ...     def select(self, vector, candidates, context):
        ...         return self.public_support(context)
        >>> mechanism = (dp.Clip(1.0), dp.Gaussian(1.0))
        >>> pipeline = dp.Pipeline(mechanism=mechanism, codec=dp.Codec(sparsify=MovedMost(0.1)), downlink=dp.Codec())
    """

    def initial_history(self, layout: Layout) -> Float32[np.ndarray, "h"]:
        """Return the (h,) history before any broadcast."""
        ...

    def update_history(
        self, history: Float32[np.ndarray, "h"], broadcast: Float32[np.ndarray, "d"], layout: Layout
    ) -> Float32[np.ndarray, "h"]:
        """Return the history after one more broadcast.

        Args:
            history: The (h,) history before it.
            broadcast: The (d,) broadcast as every end decoded it.
            layout: The layers of the broadcast.

        Returns:
            The (h,) history after it, a new array.
        """
        ...

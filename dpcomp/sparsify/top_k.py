"""TopK: the coordinates of largest magnitude, exactly."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float, Float32, Int64

from dpcomp.core.layout import Layout
from dpcomp.core.public_context import PublicContext
from dpcomp.core.support import Everywhere, Support, listed_ascending
from dpcomp.privacy.claim import Bounded, Claim, Unbounded
from dpcomp.privacy.units.unit_gradients import Total, Units
from dpcomp.sparsify.fraction import Fraction
from dpcomp.sparsify.top_k_indices import top_k_indices, top_k_of_sum


@dataclass(frozen=True)
class TopK(Fraction):
    """Keep the round(fraction·d) coordinates of largest magnitude, exactly; of equal ones the lower position is kept.

    In a codec it selects what is sent of a released update: of all supports of its size, the one with the smallest
    squared error (sparsification with error feedback: Aji & Heafield 2017; Stich et al. 2018, §2). The positions are
    sent; `RangeCoder` spends at most about H₂(k/d)·d/k bits on each (8.1 at 1 %), less where the support resembles the
    last one. Biased: use it with feedback. Of an update that is mostly noise, the largest coordinates are close to
    random ones, at the price of their positions; `RandomK` sends as many without.

    In a mechanism, before `Clip`, it sets all but each unit's own largest coordinates to zero. The update stays dense
    and no byte is saved by it; of coordinates that `RandomK` has left it keeps that share.

    **Privacy:** before `Clip` it maps each unit by itself, and the clip bounds the result (PRIVACY_RULES 5).
    After `Clip` the support would be a deterministic function of private data: no guarantee (PRIVACY_RULES 4).

    Attributes:
        fraction: The density k/d, in (0, 1]; at least one coordinate is kept.
        per: `"vector"` ranks all coordinates together. `"layer"` keeps round(fraction·n) of each layer's n coordinates,
            at least one of a layer that is not empty, so that layers with small gradients are sent too.

    Raises:
        TypeError: The fraction is not a number.
        ValueError: The fraction lies outside (0, 1], or `per` is neither "vector" nor "layer".

    Examples:
        >>> import dpcomp as dp
        >>> vector = np.array([0.1, -3.0, 0.0, 2.0], dtype=np.float32)
        >>> context = dp.PublicContext(layout=dp.Layout.of(4))
        >>> dp.TopK(0.5).select(vector, dp.Everywhere(), context)
        Listed(positions=array([1, 3]))
    """

    per: Literal["vector", "layer"] = "vector"

    def __post_init__(self):
        super().__post_init__()
        if self.per not in ("vector", "layer"):
            raise ValueError(
                f'{self}: write per="vector" for the top of the whole vector, per="layer" for each layer\'s'
            )

    def claim(self, before: Claim, where: str) -> Claim:
        """Return the claim about the output: unchanged before the clip, unbounded after it.

        Args:
            before: The claim about the input.
            where: The name and place of the stage, for errors.

        Raises:
            ValueError: The stage stands after the noise.
        """
        self.refuse_after_noise(before, where)
        if isinstance(before, Bounded):
            return Unbounded(
                because=f"{where} chooses coordinates from private data",
                remedy="Move TopK to the codec, use RandomK, or put TopK before Clip, where it masks each unit",
                support_is_public=False,
            )
        return before

    def apply(self, value: "Units | Total", context: PublicContext) -> "Units | Total":
        """Mask each unit by its own top k; or, under `dp.unsafe` alone, restrict a sum to the support of its top k."""
        if isinstance(value, Total):
            return value.restrict(self.select(value.vector(), Everywhere(), context))
        parts = list(pairwise(self._cuts(value.support, value.layout)))
        xp = array_namespace(*value.layers)
        return value.masked(lambda units: xp.concat([self._mask(units[:, a:b]) for a, b in parts if a < b], axis=1))

    def select(self, vector: Float[np.ndarray, "d"], candidates: Support, context: PublicContext) -> Support:
        """Return the candidates of largest magnitude; this depends on the values alone, never on a key.

        k is the share of the whole vector, or of the whole layer; where there are fewer candidates, all are kept.

        Args:
            vector: The (d,) vector to be sent.
            candidates: The coordinates that may be chosen.
            context: Gives the layout.

        Returns:
            A `Listed` support, or the candidates themselves where all are kept.

        Raises:
            ValueError: A value that has to be ranked is not finite.
        """
        layout, everywhere = context.layout, isinstance(candidates, Everywhere)  # its positions would be d more numbers
        positions = None if everywhere else candidates.indices(layout.size)
        values = vector if positions is None else vector[positions]
        parts = self._kept(candidates, layout)
        if sum(k for _, _, k in parts) == len(values):
            return candidates
        chosen = np.concatenate([a + top_k_indices(values[a:b], k) for a, b, k in parts])
        return listed_ascending(chosen if positions is None else positions[chosen])

    def select_of_sum(
        self,
        residual: Float32[np.ndarray, "d"],
        update: Float32[np.ndarray, "d"],
        out: Float32[np.ndarray, "d"],
        context: PublicContext,
    ) -> Support:
        """Add an update to the residual, and return the coordinates of largest magnitude of the sum, in one pass.

        Args:
            residual: The (d,) residual.
            update: The (d,) update.
            out: The (d,) array that the sum is written to, even where an error is raised.
            context: Gives the layout.

        Returns:
            What `select` returns for the sum, with all coordinates as candidates.

        Raises:
            ValueError: A sum that has to be ranked is not finite.
        """
        parts = self._kept(Everywhere(), context.layout)
        if type(self).select is not TopK.select or sum(k for _, _, k in parts) == len(out):
            np.add(residual, update, out=out)
            return self.select(out, Everywhere(), context)
        with np.errstate(over="ignore", invalid="ignore"):
            if len(parts) == 1:
                return listed_ascending(top_k_of_sum(residual, update, parts[0][2], out))
            chosen = [a + top_k_of_sum(residual[a:b], update[a:b], k, out[a:b]) for a, b, k in parts]
        return listed_ascending(np.concatenate(chosen))

    def _kept(self, candidates: Support, layout: Layout) -> list[tuple[int, int, int]]:
        """Return where each part that is ranked by itself begins and ends among the candidates, and its k."""
        if self.per == "vector" and isinstance(candidates, Everywhere):
            return [(0, layout.size, self.count(layout.size))]
        cuts, whole = self._cuts(candidates, layout).tolist(), self._cuts(Everywhere(), layout).tolist()
        counts = [self.count(stop - start) for start, stop in pairwise(whole)]
        return [(a, b, min(k, b - a)) for (a, b), k in zip(pairwise(cuts), counts, strict=True)]

    def _cuts(self, support: Support, layout: Layout) -> Int64[np.ndarray, "parts_plus_one"]:
        """Return where each part that is ranked by itself begins among the supported coordinates, and the last ends."""
        edges = layout.edges if self.per == "layer" else layout.edges[[0, -1]]
        return edges if isinstance(support, Everywhere) else np.searchsorted(support.indices(layout.size), edges)

    def _mask(self, units: Float[Any, "n d"]) -> Float[Any, "n d"]:
        xp, d = array_namespace(units), units.shape[1]
        k, magnitude = self.count(d), xp.abs(units)
        threshold = xp.sort(magnitude, axis=1)[:, d - k][:, None]
        above, tied = magnitude > threshold, magnitude == threshold
        room = k - xp.sum(xp.astype(above, xp.int32), axis=1)[:, None]
        first = tied & (xp.cumulative_sum(xp.astype(tied, xp.int32), axis=1) <= room)
        return xp.where(above | first, units, xp.zeros_like(units))

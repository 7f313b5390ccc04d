"""TopK: the coordinates of largest magnitude, exactly."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float, Int64

from dpcomp.core.layout import Layout
from dpcomp.core.public_context import PublicContext
from dpcomp.core.support import Everywhere, Listed, Support
from dpcomp.privacy.claim import Bounded, Claim, Unbounded
from dpcomp.privacy.unit_gradients import Total, Units
from dpcomp.sparsify.fraction import Fraction
from dpcomp.sparsify.top_k_indices import top_k_indices


@dataclass(frozen=True)
class TopK(Fraction):
    """The round(fraction·d) coordinates of largest magnitude, exactly; of equal ones the lower position wins.

    `per="layer"` keeps round(fraction·n) of each layer's n coordinates instead, at least one of a layer that
    is not empty, so that no layer starves because its gradients are small. In the codec it selects what is
    sent. In a mechanism, before `Clip`, it sets all but each unit's own largest coordinates to zero, and the
    update stays dense; of coordinates that `RandomK` has left it keeps that share.

    **Privacy:** before `Clip` it maps each unit by itself, and the clip bounds the result (PRIVACY_RULES 5).
    After `Clip` the support would be a deterministic function of private data: no guarantee (rule 4).

    Raises:
        ValueError: the fraction lies outside (0, 1], or `per` is neither "vector" nor "layer".
    """

    per: Literal["vector", "layer"] = "vector"

    def __post_init__(self):
        super().__post_init__()
        if self.per not in ("vector", "layer"):
            raise ValueError(
                f'{self}: write per="vector" for the top of the whole vector, per="layer" for each layer\'s'
            )

    def claim(self, before: Claim, where: str) -> Claim:
        """Before the clip a map of each unit; after it a leak."""
        self.refuse_after_noise(before, where)
        if isinstance(before, Bounded):
            return Unbounded(
                because=f"{where} chooses coordinates from private data",
                remedy="Move TopK to the codec, use RandomK, or put TopK before Clip, where it masks each unit",
                support_is_public=False,
            )
        return before

    def apply(self, value: "Units | Total", context: PublicContext) -> "Units | Total":
        """Each unit masked; or, under `dp.unsafe` alone, a sum on the support that it chose itself."""
        if isinstance(value, Total):
            return value.restrict(self.select(value.vector(), Everywhere(), context))
        parts = list(pairwise(self._cuts(value.support, value.layout)))
        xp = array_namespace(*value.layers)
        return value.masked(lambda units: xp.concat([self._mask(units[:, a:b]) for a, b in parts if a < b], axis=1))

    def select(self, vector: Float[np.ndarray, "d"], candidates: Support, context: PublicContext) -> Support:
        """The codec's choice among the candidates: it looks at the values, never at the key.

        It keeps the share of the whole vector, or layer, or all its candidates where there are fewer.

        Raises:
            ValueError: some value that it has to rank is not finite.
        """
        layout, everywhere = context.layout, isinstance(candidates, Everywhere)  # its positions would be d more numbers
        positions = None if everywhere else candidates.indices(layout.size)
        values = vector if positions is None else vector[positions]
        cuts, whole = self._cuts(candidates, layout), self._cuts(Everywhere(), layout)
        keep = [min(self.count(int(n)), int(m)) for n, m in zip(np.diff(whole), np.diff(cuts), strict=True)]
        if sum(keep) == len(values):
            return candidates
        parts = zip(pairwise(cuts), keep, strict=True)
        chosen = np.concatenate([a + top_k_indices(values[a:b], k) for (a, b), k in parts])
        return Listed(chosen if positions is None else positions[chosen])

    def _cuts(self, support: Support, layout: Layout) -> Int64[np.ndarray, "parts_plus_one"]:
        """Where each part that is ranked by itself begins among the supported coordinates, and where the last ends."""
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

"""What a payload spends its bits on, and how few of them would do: entropies of supports and of levels.

Entropies of supports are in bits a kept coordinate. They are those of a support that is drawn at random among all with
the same counts, which both ends know; what telling the counts takes is not in them.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int32, Int64
from scipy.special import gammaln

from analysis.measures.ranking import SupportChange
from dpcomp.codec.codec import Body
from dpcomp.codec.entropy.positions import CandidateSet, split_by_previous, support_bits
from dpcomp.codec.rate import entropy_bits
from dpcomp.core.support import Listed
from dpcomp.pipeline import Pipeline
from dpcomp.wire.bits_by_part import measure_payload
from dpcomp.wire.memory import ClientMemory, ServerMemory


@dataclass(frozen=True, kw_only=True)
class PayloadRate:
    """One payload: its parts as they are on the wire, and the entropies that they can be held against, all in bits.

    The first five parts add up to 8·`payload_bytes`, exactly. `header_bits` frame the rest; `index_bits` tell a listed
    support, the counts of its models included; `side_bits` are gains, steps or scales, widths, tables of frequencies;
    `value_bits` the levels or floats. In a range-coded stream, which its parts share, index and values have their
    information under the coder's models; `rounding_bits` are what is left of whole bytes and words.

    The entropies of a support that both ends know are 0. `..._by_layer` count each layer by itself; `conditional_...`
    are given the last listed support of the same way, and NaN without one. `value_entropy_bits` are those of the
    levels, each layer under its own frequencies, tables left out; NaN of floats.
    """

    payload_bytes: int
    coordinates: int
    kept: int
    header_bits: float
    index_bits: float
    side_bits: float
    value_bits: float
    rounding_bits: float
    support_entropy_bits: float
    support_entropy_bits_by_layer: float
    conditional_entropy_bits: float
    conditional_entropy_bits_by_layer: float
    value_entropy_bits: float

    @classmethod
    def of(cls, pipeline: Pipeline, payload: bytes, memory: ClientMemory | ServerMemory) -> "PayloadRate":
        """What a payload says to the memory of an end that has yet to accept it (`dpcomp.wire.bits_by_part.measure`).

        Raises:
            CorruptPayload, VersionMismatch: the payload is damaged, or of another state than the memory.
        """
        body, bits = measure_payload(pipeline.channel, payload, memory)
        alone, given_last = _worlds(body)
        values_are_floats = bits.value > 0 and not body.bounds.coded.any()
        return cls(
            payload_bytes=len(payload),
            coordinates=memory.layout.size,
            kept=int(body.counts.sum()),
            header_bits=bits.header,
            index_bits=bits.index,
            side_bits=bits.side,
            value_bits=bits.value,
            rounding_bits=bits.rounding,
            support_entropy_bits=_information([world.as_one_layer() for world in alone]),
            support_entropy_bits_by_layer=_information(alone),
            conditional_entropy_bits=np.nan
            if given_last is None
            else _information([world.as_one_layer() for world in given_last]),
            conditional_entropy_bits_by_layer=np.nan if given_last is None else _information(given_last),
            value_entropy_bits=np.nan
            if values_are_floats
            else level_entropy(body.levels, body.counts) * len(body.levels),
        )


def rate_table(rates: Iterable[PayloadRate]) -> pd.DataFrame:
    """A row a payload: its rate, and per kept coordinate what index and values take and could take."""
    table = pd.DataFrame([asdict(rate) for rate in rates])
    kept = table["kept"].where(table["kept"] > 0)
    table["density"] = table["kept"] / table["coordinates"]
    table["compression_ratio"] = 4 * table["coordinates"] / table["payload_bytes"]
    for part in ("index", "value", "support_entropy", "conditional_entropy", "value_entropy"):
        table[f"{part}_bits_per_kept"] = table[f"{part}_bits"] / kept
    return table


def support_entropy(coordinates: Int64[np.ndarray, "m"], kept: Int64[np.ndarray, "m"]) -> float:
    """Σ log₂ C(n, k) ÷ Σ k, over layers or other worlds of n coordinates, k of which are kept; NaN if none is."""
    return _log2_binomials(coordinates, kept) / kept.sum() if kept.sum() else np.nan


def support_entropy_approximation(coordinates: Int64[np.ndarray, "m"], kept: Int64[np.ndarray, "m"]) -> float:
    """Σ n·H₂(k/n) ÷ Σ k, which for one world of density κ is H₂(κ)/κ; from above (Cover & Thomas 2006, eq. 11.40)."""
    return float(support_bits(coordinates, kept).sum()) / kept.sum() if kept.sum() else np.nan


def conditional_support_entropy(change: SupportChange) -> float:
    """Of a support given the one before: which of the old places were kept, and which of the others are new."""
    return support_entropy(*_told_by_change(change))


def conditional_support_entropy_approximation(change: SupportChange) -> float:
    """The same by H₂; for supports of one size with density κ and overlap r it is

    h(r) = H₂(r) + ((1 − κ)/κ)·H₂((1 − r)κ/(1 − κ)).
    """
    return support_entropy_approximation(*_told_by_change(change))


def level_entropy(levels: Int32[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]) -> float:
    """Bits a value of quantised levels, `counts` of them a layer, each layer under its own frequencies; of none, 0."""
    layers = [layer for layer in np.split(levels, np.cumsum(counts)[:-1]) if len(layer)]
    return sum(len(layer) * entropy_bits(np.bincount(layer - layer.min())) for layer in layers) / max(1, len(levels))


def _told_by_change(change: SupportChange) -> tuple[Int64[np.ndarray, "2"], Int64[np.ndarray, "2"]]:
    """The places of the last support and all others, and how many of them the support holds."""
    before = change.kept + change.dropped
    return np.array([before, change.coordinates - before]), np.array([change.kept, change.new])


def _worlds(body: Body) -> tuple[list[CandidateSet], list[CandidateSet] | None]:
    """A body's support by itself, and beside the last one, if there is one; of a known support nothing is told."""
    previous, edges = body.context.previous_support, body.context.layout.edges
    if not isinstance(body.support, Listed):
        return [], []
    positions = body.support.positions
    given_last = None if previous is None else [*split_by_previous(positions, previous.positions, edges)]
    return [CandidateSet(positions, edges)], given_last


def _information(worlds: list[CandidateSet]) -> float:
    return sum(_log2_binomials(np.diff(world.edges), world.counts) for world in worlds)


def _log2_binomials(coordinates: Int64[np.ndarray, "m"], kept: Int64[np.ndarray, "m"]) -> float:
    chosen = gammaln(coordinates + 1) - gammaln(kept + 1) - gammaln(coordinates - kept + 1)
    return float(chosen.sum() / np.log(2))

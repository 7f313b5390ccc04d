"""What a payload spends its bits on, and how few bits would do: entropies of supports and of levels."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int64
from scipy.special import gammaln

from dpcomp.codec.codec import Body
from dpcomp.codec.entropy.positions import CandidateSet, split_by_previous
from dpcomp.codec.rate import entropy_bits
from dpcomp.core.layout import split_by_counts
from dpcomp.core.support import Listed
from dpcomp.pipeline import Pipeline
from dpcomp.wire.bits_by_part import measure_payload
from dpcomp.wire.memory import ClientMemory, ServerMemory


@dataclass(frozen=True, kw_only=True)
class PayloadRate:
    """The bits of one payload by part, and the entropies to compare them with.

    The five parts header, index, side, value and rounding add up to 8·`payload_bytes`, exactly. In a range-coded
    stream, which the parts share, index and values count by their information under the coder's models, and
    `rounding_bits` is what whole bytes and words add.

    A support's entropy is log₂ of the number of supports with the same counts (C(d, k), or their product over layers),
    which both ends know; the bits of the counts are not in it. It is 0 for a support that both ends know.

    Attributes:
        payload_bytes: Length of the payload.
        coordinates: d, of the full vector.
        kept: k, of the support.
        header_bits: Bits of the header and of what frames the body.
        index_bits: Bits of a listed support, the counts of its models included.
        side_bits: Bits of gains, steps or scales, widths, and tables of frequencies.
        value_bits: Bits of the levels or floats.
        rounding_bits: Bits that whole bytes and words add to a range-coded stream.
        support_entropy_bits: Entropy of the support among all of k coordinates.
        support_entropy_bits_by_layer: Entropy of the support among all with the same count in each layer.
        conditional_entropy_bits: Entropy of the support among all that have as many coordinates in common with the
            last listed support of the same direction; NaN where there is none.
        conditional_entropy_bits_by_layer: The same, with the counts of each layer; NaN where there is no last support.
        value_entropy_bits: Entropy of the levels, each layer under its own frequencies, their tables left out; NaN
            where the values are floats.
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
        """Measure a payload, as read by an end that has not accepted it yet; nothing changes.

        Args:
            pipeline: The pipeline of both ends.
            payload: The bytes of an update or a broadcast.
            memory: That of the server, or of the sender before it sent the payload; of any end for a broadcast.

        Raises:
            CorruptPayload: The bytes are damaged.
            VersionMismatch: They are sound, but of another state than the memory.
        """
        body, bits = measure_payload(pipeline.channel, payload, memory)
        alone, given_last = _ranks(body)
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
            support_entropy_bits=_entropy([ranks.as_one_layer() for ranks in alone]),
            support_entropy_bits_by_layer=_entropy(alone),
            conditional_entropy_bits=np.nan
            if given_last is None
            else _entropy([ranks.as_one_layer() for ranks in given_last]),
            conditional_entropy_bits_by_layer=np.nan if given_last is None else _entropy(given_last),
            value_entropy_bits=np.nan
            if values_are_floats
            else _bits_per_level(body.levels, body.counts) * len(body.levels),
        )


def _ranks(body: Body) -> tuple[list[CandidateSet], list[CandidateSet] | None]:
    """Give a body's support as ranks among all places, and as ranks inside and outside of the last support.

    No ranks for a support that both ends know; None where there is no last support.
    """
    previous, edges = body.context.previous_support, body.context.layout.edges
    if not isinstance(body.support, Listed):
        return [], []
    positions = body.support.positions
    given_last = None if previous is None else [*split_by_previous(positions, previous.positions, edges)]
    return [CandidateSet(positions, edges)], given_last


def _entropy(ranks: list[CandidateSet]) -> float:
    return sum(_log2_binomials(np.diff(part.edges), part.counts) for part in ranks)


def _log2_binomials(places: Int64[np.ndarray, "m"], chosen: Int64[np.ndarray, "m"]) -> float:
    logarithms = gammaln(places + 1) - gammaln(chosen + 1) - gammaln(places - chosen + 1)
    return float(logarithms.sum() / np.log(2))


def _bits_per_level(levels: Int[np.ndarray, "k"], counts: Int64[np.ndarray, "layers"]) -> float:
    """Compute the entropy of levels, `counts` of them a layer, each layer under its own frequencies; 0 without any."""
    layers = [layer for layer in split_by_counts(levels, counts) if len(layer)]
    return sum(len(layer) * entropy_bits(np.bincount(layer.astype(np.int64) - layer.min())) for layer in layers) / max(
        1, len(levels)
    )

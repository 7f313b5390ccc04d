"""What noise costs a compressor, in bytes that were really sent.

The efficiency is the noise-free case's bytes ÷ the noisy case's, so 1 where noise costs nothing; 1 − efficiency is the
loss. It is taken in two ways, which differ in what is held equal:

(a) the density. The payloads of runs of rounds, so that supports are coded by their changes: `efficiency` of the two.
    It is also the ratio of the compression ratios.
(b) the captured energy of the clean update: `efficiency` of `bytes_for_energy`, which encodes the smallest support that
    captures it, or of `bytes_at_energy`, which looks between payloads that were measured at some densities.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from analysis.measures.ranking import coordinates_for_energy
from dpcomp.codec import Codec
from dpcomp.core.public_context import PublicContext
from dpcomp.core.support import Listed
from dpcomp.sparsify.top_k_indices import top_k_indices
from dpcomp.wire.frame import HEADER_BYTES

FLOAT_BYTES = 4  # of a dense coordinate


def compression_ratio(coordinates: int, payload_bytes: Sequence[float]) -> float:
    """Dense float32 bytes ÷ payload bytes, headers included, over all payloads."""
    return FLOAT_BYTES * coordinates * len(payload_bytes) / sum(payload_bytes)


def efficiency(payload_bytes: Sequence[float], noiseless_bytes: Sequence[float]) -> float:
    """The mean payload without noise ÷ that with noise."""
    return float(np.mean(noiseless_bytes) / np.mean(payload_bytes))


def smallest_support(clean: Float[np.ndarray, "d"], other: Float[np.ndarray, "d"], share: float) -> Listed:
    """The other's smallest top k that holds that share of the clean vector's squared norm.

    **Privacy:** it looks at the clean vector, so it is for measurements alone.

    Raises:
        ValueError: the share lies outside [0, 1], or the clean vector is zero.
    """
    return Listed(top_k_indices(other, coordinates_for_energy(clean, other, share)))


def bytes_for_energy(
    codec: Codec, common: PublicContext, clean: Float[np.ndarray, "d"], other: Float32[np.ndarray, "d"], share: float
) -> int:
    """The payload bytes, header included, of the other vector on its smallest support with that share of clean energy.

    The codec's quantiser and entropy coder encode it, given what both ends know; gains of a prediction are not counted.

    Raises:
        ValueError: as `smallest_support` does.
    """
    support = smallest_support(clean, other, share)
    body, _ = codec.encode(other[support.positions], support, common)
    return HEADER_BYTES + len(body)


def bytes_at_energy(payload_bytes: Sequence[float], captured_energy: Sequence[float], share: float) -> float:
    """The payload bytes at which that share of energy is captured, between payloads that were measured.

    Of a payload that is larger than another which captures more nothing is used. The logarithm of the bytes is
    interpolated linearly in the energy. NaN outside of what was measured.

    Raises:
        ValueError: there is not one energy a payload.
    """
    sizes, energies = np.asarray(payload_bytes, dtype=np.float64), np.asarray(captured_energy, dtype=np.float64)
    if sizes.shape != energies.shape or sizes.ndim != 1 or not len(sizes):
        raise ValueError(
            f"bytes_at_energy: {sizes.shape} payloads and {energies.shape} energies; give one of each a point"
        )
    order = np.lexsort((-sizes, energies))
    sizes, energies = sizes[order], energies[order]
    best = sizes <= np.minimum.accumulate(sizes[::-1])[::-1]
    return float(np.exp(np.interp(share, energies[best], np.log(sizes[best]), left=np.nan, right=np.nan)))

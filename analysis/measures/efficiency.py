"""What noise costs a compressor, in bytes that are really sent.

The efficiency of a compressor under noise is the bytes of the noise-free case ÷ those of the noisy case: 1 where noise
costs nothing; 1 − efficiency is the loss. There are two definitions, by what is held equal:

(a) The density. Payloads of runs of rounds are compared, with supports coded by their changes from round to round.
    The efficiency is also the ratio of the two compression ratios.
(b) The captured energy of the clean update. `smallest_support` and `encoded_bytes` give the payload of the smallest
    support that captures a share of it; `bytes_at_energy` interpolates between payloads of a few densities.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from analysis.cost.model import FLOAT_BYTES
from dpcomp.codec import Codec
from dpcomp.core.public_context import PublicContext
from dpcomp.core.support import Support
from dpcomp.wire.short_header import SHORT_HEADER_BYTES


def compression_ratio(coordinates: int, payload_bytes: float) -> float:
    """Compute dense float32 bytes ÷ payload bytes, headers included.

    Examples:
        >>> compression_ratio(26_010, 424)
        245.37735849056602
    """
    return FLOAT_BYTES * coordinates / payload_bytes


def encoded_bytes(codec: Codec, vector: Float32[np.ndarray, "d"], support: Support, common: PublicContext) -> int:
    """Encode a vector's values on a support, and count the bytes of the payload, its short header included.

    The codec's quantiser and entropy coder are used; its sparsifier is not, and gains of a prediction are not counted.

    Args:
        codec: Encodes the values and the support.
        vector: The whole vector (d,).
        support: Which coordinates are encoded.
        common: What both ends know: the layout, and the support before, if there is one.

    Returns:
        The payload's length in bytes.
    """
    body, _ = codec.encode(vector[support.indices(len(vector))], support, common)
    return SHORT_HEADER_BYTES + len(body)


def bytes_at_energy(payload_bytes: Sequence[float], captured_energy: Sequence[float], share: float) -> float:
    """Interpolate the payload bytes at which a share of energy is captured, between payloads of several densities.

    The logarithm of the bytes is interpolated linearly in the energy. A payload that is larger than another which
    captures more is not used.

    Args:
        payload_bytes: Size of each payload, positive.
        captured_energy: Share of the clean energy that each payload captures, in the same order.
        share: At which to interpolate, in [0, 1].

    Returns:
        Bytes; NaN where the share lies outside of the energies that are given.

    Raises:
        ValueError: There are no payloads, or not one energy for each.

    Examples:
        >>> round(bytes_at_energy([100, 400], [0.2, 0.4], share=0.3))
        200
    """
    sizes, energies = np.asarray(payload_bytes, dtype=np.float64), np.asarray(captured_energy, dtype=np.float64)
    if sizes.shape != energies.shape or sizes.ndim != 1 or not len(sizes):
        raise ValueError(
            f"bytes_at_energy: {len(payload_bytes)} payloads and {len(captured_energy)} energies; give at least one "
            "payload, and one energy for each"
        )
    order = np.lexsort((-sizes, energies))
    sizes, energies = sizes[order], energies[order]
    best = sizes <= np.minimum.accumulate(sizes[::-1])[::-1]
    return float(np.exp(np.interp(share, energies[best], np.log(sizes[best]), left=np.nan, right=np.nan)))

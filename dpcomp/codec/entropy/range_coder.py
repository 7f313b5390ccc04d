"""Entropy coding with a range coder, under models that both ends build from the same integers.

Positions are coded as gaps under the geometric law of a random support, among the candidates that take the fewest bits;
levels under tables of their frequencies, with a table for a layer alone where that pays. The coder is constriction's
(Bamler 2022, 2201.01741).
"""

from dataclasses import dataclass

from dpcomp.codec.entropy.range_meter import RangeMeter
from dpcomp.codec.entropy.range_reader import RangeReader
from dpcomp.codec.entropy.range_writer import RangeWriter


@dataclass(frozen=True)
class RangeCoder:
    """Code positions and levels at the entropy of their models, to within a few bytes.

    The bytes of a message depend on its values: few for levels that are often 0 or supports that resemble the last one.
    Each group of levels has a frequency table of about a byte a symbol in the message. It is the default of `Codec`;
    `FixedWidth` is faster, and its messages have the same length whatever the values are.

    **Privacy:** the length of a message depends on what is coded, which is free for released values; of a clean uplink
    to a trusted server it is visible to whoever sees the channel (PRIVACY_RULES 20).

    Examples:
        >>> import dpcomp as dp
        >>> import numpy as np
        >>> values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
        >>> context = dp.PublicContext(layout=dp.Layout.of(10_000))
        >>> for entropy in (dp.RangeCoder(), dp.FixedWidth()):
        ...     codec = dp.Codec(quantize=dp.Uniform(4), entropy=entropy)
        ...     body, _ = codec.encode(values, dp.Everywhere(), context)
        ...     print(entropy, len(body))
        RangeCoder() 3650
        FixedWidth() 5003
    """

    packed = False
    narrow_levels = True

    def writer(self) -> RangeWriter:
        """Return a new writer, for one body."""
        return RangeWriter()

    def reader(self, body: bytes | memoryview) -> RangeReader:
        """Return a reader of one body."""
        return RangeReader(body)

    def meter(self, body: bytes | memoryview) -> RangeMeter:
        """Return a meter of one body."""
        return RangeMeter(body)

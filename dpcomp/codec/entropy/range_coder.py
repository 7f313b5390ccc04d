"""Entropy coding with a range coder, under models that both ends build from the same integers.

Positions are coded as gaps under the geometric law of a random support, in the worlds where they are cheapest;
levels under tables of their frequencies, a layer with its own where that pays. The coder is constriction's
(Bamler 2022, 2201.01741).
"""

from dataclasses import dataclass

from dpcomp.codec.entropy.range_meter import RangeMeter
from dpcomp.codec.entropy.range_reader import RangeReader
from dpcomp.codec.entropy.range_writer import RangeWriter


@dataclass(frozen=True)
class RangeCoder:
    """Positions and levels, each at the entropy of its model, to within a few bytes."""

    packed = False

    def writer(self) -> RangeWriter:
        """A fresh writer, for one body."""
        return RangeWriter()

    def reader(self, body: bytes | memoryview) -> RangeReader:
        """A reader of one body."""
        return RangeReader(body)

    def meter(self, body: bytes | memoryview) -> RangeMeter:
        """A meter of one body."""
        return RangeMeter(body)

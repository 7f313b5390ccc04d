"""Where compression pays: the time and the energy that an update takes, and the bandwidth at which two ways are even.

A model, and no measurement: what a codec takes on this machine stands in the results of the cost study, and what
devices and radios are like in `analysis.cost.devices`.
"""

import math
from dataclasses import dataclass

BITS = 8  # a byte
FLOAT_BYTES = 4  # of a coordinate; a copy reads them and writes them, and they count once


@dataclass(frozen=True)
class Range:
    """A quantity of which no more is known than that it lies between `low` and `high`, both included.

    Raises:
        ValueError: not 0 < low ≤ high < ∞.
    """

    low: float
    high: float

    def __post_init__(self):
        if not 0 < self.low <= self.high < math.inf:
            raise ValueError(f"{self}: 0 < low ≤ high, and both finite")

    @property
    def middle(self) -> float:
        """The geometric mean of the ends, for these quantities differ by factors."""
        return math.sqrt(self.low * self.high)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What one update takes on its way: CPU seconds of the sender and of the receiver, and payload bytes.

    `decode_seconds` is a term of its own: 0 leaves out a receiver that is no bottleneck, as a server beside an edge
    device; that of a broadcast is the device's.

    Raises:
        ValueError: a time is negative or not finite, or there are no bytes.
    """

    payload_bytes: float
    encode_seconds: float
    decode_seconds: float = 0.0

    def __post_init__(self):
        times = (self.encode_seconds, self.decode_seconds)
        if not all(0 <= seconds < math.inf for seconds in times) or not 0 < self.payload_bytes < math.inf:
            raise ValueError(f"{self}: finite times of 0 s or more, and more bytes than none")

    def seconds(self, bits_per_second: float) -> float:
        """From the update to what the receiver has of it: encode + 8·bytes/bandwidth + decode.

        The three follow on each other; a sender that pipelines them needs the longest alone. Latency, which is the
        same for all, and retransmissions are left out.
        """
        if not bits_per_second > 0:
            raise ValueError(f"bits_per_second = {bits_per_second}: nothing is delivered without bandwidth")
        return self.encode_seconds + BITS * self.payload_bytes / bits_per_second + self.decode_seconds

    def joules(self, *, watts: float, joules_per_bit: float) -> float:
        """What the sender spends: watts × its CPU seconds + joules a bit × 8·bytes.

        watts: what a busy core takes beyond an idle one. The receiver's are not the sender's.
        """
        if not (watts >= 0 and joules_per_bit >= 0):
            raise ValueError(f"watts = {watts}, joules_per_bit = {joules_per_bit}: neither is negative")
        return watts * self.encode_seconds + joules_per_bit * BITS * self.payload_bytes


def break_even_bandwidth(coded: Delivery, other: Delivery) -> float:
    """Bits a second below which `coded` is delivered sooner than `other`, and above which it is later.

    8(other's bytes − coded's) ÷ (coded's seconds − other's), encode and decode added up. Infinite where the smaller is
    no slower, 0 where it is not smaller: then no bandwidth is low enough.

    Raises:
        ValueError: `coded` is larger and faster: it is the other that low bandwidths favour.
    """
    slower = (coded.encode_seconds + coded.decode_seconds) - (other.encode_seconds + other.decode_seconds)
    return _ratio(BITS * (other.payload_bytes - coded.payload_bytes), slower)


def break_even_joules_per_bit(coded: Delivery, other: Delivery, *, watts: float) -> float:
    """Joules a bit above which `coded` takes the sender less energy than `other`, and below which it takes more.

    watts × (coded's encode seconds − other's) ÷ 8(other's bytes − coded's): the watts ÷ the break-even bandwidth
    without decoding. 0 where the smaller is no slower, infinite where it is not smaller.

    Raises:
        ValueError: the watts are not positive; or `coded` is larger and faster: swap them.
    """
    if not 0 < watts < math.inf:
        raise ValueError(f"watts = {watts}: a busy core takes some")
    bits = BITS * (other.payload_bytes - coded.payload_bytes)
    bandwidth = _ratio(bits, coded.encode_seconds - other.encode_seconds)
    return watts / bandwidth if bandwidth else math.inf


def _ratio(bits_saved: float, seconds_lost: float) -> float:
    if seconds_lost > 0:
        return max(0.0, bits_saved / seconds_lost)
    if bits_saved < 0:
        raise ValueError(
            f"the first is {-bits_saved / BITS:g} bytes larger and {-seconds_lost:g} s faster: swap the two, to ask "
            "where the smaller one pays"
        )
    return math.inf


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device, as far as the model sees it.

    copied_bytes_per_second: of one core, from memory to memory, with each byte counted once, as tinymembench has it;
        STREAM's copy counts it twice, as it is read and as it is written.
    watts: of one busy core, beyond an idle one; None if they are not known.
    source: who published both, and what was derived from it.
    """

    name: str
    copied_bytes_per_second: Range
    watts: Range | None
    source: str

    def seconds(self, copies: Range, coordinates: int) -> Range:
        """What work takes here that takes so many copies of the float32 vector elsewhere: copies × 4d ÷ bandwidth.

        A model, right for work that waits for memory, on vectors which no cache holds. Arithmetic scales by clock and
        width of the core instead: where memory is fast beside the core, an entropy coder takes longer than this.

        copies: seconds of the work ÷ seconds of a copy between two warm buffers, in the same run.
        """
        if coordinates < 1:
            raise ValueError(f"coordinates = {coordinates}: a vector has one at least")
        copied = FLOAT_BYTES * coordinates
        speed = self.copied_bytes_per_second
        return Range(copied * copies.low / speed.high, copied * copies.high / speed.low)


@dataclass(frozen=True, kw_only=True)
class Radio:
    """What a radio takes for one more bit that is sent; `source` says who published it."""

    name: str
    joules_per_bit: Range
    source: str


@dataclass(frozen=True, kw_only=True)
class Link:
    """How fast an uplink is; `source` says who published it."""

    name: str
    bits_per_second: Range
    source: str

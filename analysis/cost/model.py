"""A model of the time and the energy that an update takes, and of the bandwidth at which two codecs take the same.

The model measures nothing: what codecs cost on this machine is in the results of the cost study, and what devices and
radios are like in `analysis.cost.devices`.
"""

import math
from dataclasses import dataclass

BYTE_BITS = 8
FLOAT_BYTES = 4  # of a float32 coordinate


@dataclass(frozen=True)
class Range:
    """A quantity that is known only to lie between `low` and `high`, both included.

    Raises:
        ValueError: Not 0 < low ≤ high < ∞.
    """

    low: float
    high: float

    def __post_init__(self):
        if not 0 < self.low <= self.high < math.inf:
            raise ValueError(f"{self}: give 0 < low ≤ high, both finite")

    @property
    def middle(self) -> float:
        """The geometric mean of the ends, as these quantities differ by factors."""
        return math.sqrt(self.low * self.high)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """The cost of one update on its way: payload bytes, and CPU seconds of the sender and of the receiver.

    Attributes:
        payload_bytes: Length of the payload, positive.
        encode_seconds: CPU time of the sender, at least 0.
        decode_seconds: CPU time of the receiver, at least 0. Leave it 0 for a receiver that is no bottleneck, such as a
            server beside an edge device; for a broadcast it is the device's.

    Raises:
        ValueError: A time is negative or not finite, or the bytes are not positive.

    Examples:
        >>> raw = Delivery(payload_bytes=4_000_000, encode_seconds=0.01)
        >>> coded = Delivery(payload_bytes=1_000_000, encode_seconds=0.25)
        >>> round(coded.seconds(8e6), 2)
        1.25
        >>> round(break_even_bandwidth(coded, raw) / 1e6)  # Mbit/s
        100
    """

    payload_bytes: float
    encode_seconds: float
    decode_seconds: float = 0.0

    def __post_init__(self):
        times = (self.encode_seconds, self.decode_seconds)
        if not all(0 <= seconds < math.inf for seconds in times) or not 0 < self.payload_bytes < math.inf:
            raise ValueError(f"{self}: give finite times of at least 0 s, and a positive number of bytes")

    def seconds(self, bits_per_second: float) -> float:
        """Compute the time from the update to what the receiver decodes: encode + 8·bytes/bandwidth + decode.

        The three follow one another; a sender that pipelines them needs only as long as the longest. Latency, which
        is the same for all codecs, and retransmissions are left out.

        Raises:
            ValueError: The bandwidth is not positive.
        """
        if not bits_per_second > 0:
            raise ValueError(f"bits_per_second = {bits_per_second}; give a positive bandwidth")
        return self.encode_seconds + BYTE_BITS * self.payload_bytes / bits_per_second + self.decode_seconds

    def joules(self, *, watts: float, joules_per_bit: float) -> float:
        """Compute the energy of the sender: watts × its CPU seconds + joules a bit × 8·bytes.

        Args:
            watts: Power of a busy core beyond an idle one, at least 0.
            joules_per_bit: Energy of the radio for one more bit, at least 0.

        Raises:
            ValueError: An argument is negative.
        """
        if not (watts >= 0 and joules_per_bit >= 0):
            raise ValueError(f"watts = {watts}, joules_per_bit = {joules_per_bit}; give neither below 0")
        return watts * self.encode_seconds + joules_per_bit * BYTE_BITS * self.payload_bytes


def break_even_bandwidth(coded: Delivery, other: Delivery) -> float:
    """Compute the bandwidth in bits a second below which `coded` is delivered sooner than `other`, and above later.

    8(other's bytes − coded's) ÷ (coded's seconds − other's), encode and decode added up. Infinite where the smaller
    payload is no slower; 0 where `coded` is not smaller, so that no bandwidth is low enough.

    Raises:
        ValueError: `coded` is larger and faster, so that low bandwidths favour the other: swap the two.
    """
    slower = (coded.encode_seconds + coded.decode_seconds) - (other.encode_seconds + other.decode_seconds)
    return _ratio(BYTE_BITS * (other.payload_bytes - coded.payload_bytes), slower)


def break_even_joules_per_bit(coded: Delivery, other: Delivery, *, watts: float) -> float:
    """Compute the energy a bit above which `coded` takes the sender less energy than `other`, and below which more.

    watts × (coded's encode seconds − other's) ÷ 8(other's bytes − coded's): the watts ÷ the break-even bandwidth
    without decoding. 0 where the smaller payload is no slower, infinite where `coded` is not smaller.

    Args:
        coded: The smaller payload.
        other: What it is compared with.
        watts: Power of a busy core beyond an idle one, positive.

    Returns:
        Joules a bit.

    Raises:
        ValueError: The watts are not positive; or `coded` is larger and faster: swap the two.
    """
    if not 0 < watts < math.inf:
        raise ValueError(f"watts = {watts}; a busy core takes more than an idle one: give a positive, finite power")
    bits = BYTE_BITS * (other.payload_bytes - coded.payload_bytes)
    bandwidth = _ratio(bits, coded.encode_seconds - other.encode_seconds)
    return watts / bandwidth if bandwidth else math.inf


def _ratio(bits_saved: float, seconds_lost: float) -> float:
    if seconds_lost > 0:
        return max(0.0, bits_saved / seconds_lost)
    if bits_saved < 0:
        raise ValueError(
            f"the first delivery is {-bits_saved / BYTE_BITS:g} bytes larger and {-seconds_lost:g} s faster than the "
            "second: swap the two, to ask where the smaller one pays"
        )
    return math.inf


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device as the model describes it.

    Attributes:
        name: The name that tables and figures print.
        copied_bytes_per_second: Memory copy of one core, with each byte counted once, as tinymembench does; STREAM's
            copy counts it twice, as it is read and as it is written.
        watts: Power of one busy core beyond an idle one; None if unknown.
        source: Who published both, and what was derived from it.
    """

    name: str
    copied_bytes_per_second: Range
    watts: Range | None
    source: str

    def seconds(self, copies: Range, coordinates: int) -> Range:
        """Scale work to this device, from its time elsewhere in copies of the float32 vector: copies × 4d ÷ bandwidth.

        Right for work that waits for memory, on vectors larger than any cache. Arithmetic scales by clock and width of
        the core instead: where memory is fast beside the core, an entropy coder takes longer than this.

        Args:
            copies: Seconds of the work ÷ seconds of a copy between two warm buffers, in the same run.
            coordinates: d, of the vector, at least 1.

        Returns:
            Seconds, from the fewest copies on the fastest memory to the most on the slowest.

        Raises:
            ValueError: There are no coordinates.
        """
        if coordinates < 1:
            raise ValueError(f"coordinates = {coordinates}; give a vector of at least one")
        copied = FLOAT_BYTES * coordinates
        speed = self.copied_bytes_per_second
        return Range(copied * copies.low / speed.high, copied * copies.high / speed.low)


@dataclass(frozen=True, kw_only=True)
class Radio:
    """The energy that a radio takes for one more bit that is sent; `source` names who published it."""

    name: str
    joules_per_bit: Range
    source: str


@dataclass(frozen=True, kw_only=True)
class Link:
    """The bandwidth of an uplink; `source` names who published it."""

    name: str
    bits_per_second: Range
    source: str

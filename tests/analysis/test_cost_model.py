import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from analysis.cost.devices import DEVICES, LINKS, RADIOS
from analysis.cost.model import Delivery, Device, Range, break_even_bandwidth, break_even_joules_per_bit

SECONDS = st.integers(1, 10**6).map(lambda tenths: tenths * 1e-4)  # a difference is more than rounding
BYTES = st.floats(1.0, 1e9)
DELIVERIES = st.builds(Delivery, payload_bytes=BYTES, encode_seconds=SECONDS, decode_seconds=SECONDS)
RAW = Delivery(payload_bytes=4e6, encode_seconds=0.01)
CODED = Delivery(payload_bytes=1e6, encode_seconds=0.25)


def test_by_hand():
    assert CODED.seconds(8e6) == pytest.approx(1.25)
    assert CODED.joules(watts=2.0, joules_per_bit=1e-7) == pytest.approx(1.3)
    assert break_even_bandwidth(CODED, RAW) == pytest.approx(100e6)
    assert break_even_joules_per_bit(CODED, RAW, watts=2.0) == pytest.approx(20e-9)


@given(DELIVERIES, DELIVERIES, st.floats(0.1, 10))
def test_at_the_break_even_both_take_the_same_and_beside_it_the_smaller_wins_on_its_side(one, other, watts):
    small, large = sorted((one, other), key=lambda each: each.payload_bytes)
    assume(large.payload_bytes > 1.01 * small.payload_bytes)
    even = break_even_bandwidth(small, large)
    if small.encode_seconds + small.decode_seconds <= large.encode_seconds + large.decode_seconds:
        assert even == math.inf
    else:
        assert small.seconds(even) == pytest.approx(large.seconds(even), rel=1e-6)
        assert small.seconds(even / 2) < large.seconds(even / 2)
        assert small.seconds(even * 2) > large.seconds(even * 2)
    bit = break_even_joules_per_bit(small, large, watts=watts)
    if small.encode_seconds <= large.encode_seconds:
        assert bit == 0
    else:
        spent = [each.joules(watts=watts, joules_per_bit=bit) for each in (small, large)]
        assert spent[0] == pytest.approx(spent[1], rel=1e-6)
        spent = [each.joules(watts=watts, joules_per_bit=2 * bit) for each in (small, large)]
        assert spent[0] < spent[1]


@given(DELIVERIES, st.floats(1e3, 1e9), st.floats(1.01, 10))
def test_more_bandwidth_is_never_slower_and_more_work_or_bytes_never_faster(sent, bandwidth, factor):
    assert sent.seconds(bandwidth * factor) <= sent.seconds(bandwidth)
    for name in ("payload_bytes", "encode_seconds", "decode_seconds"):
        assert replace(sent, **{name: factor * getattr(sent, name)}).seconds(bandwidth) >= sent.seconds(bandwidth)
    assert sent.seconds(bandwidth) > sent.encode_seconds + sent.decode_seconds


@given(st.floats(0.02, 10), st.floats(1e3, 3.9e6))
def test_slower_or_larger_codecs_pay_in_fewer_places(seconds, payload_bytes):
    sent = Delivery(payload_bytes=payload_bytes, encode_seconds=seconds)
    for worse in (replace(sent, encode_seconds=2 * seconds), replace(sent, payload_bytes=payload_bytes + 1e3)):
        assert break_even_bandwidth(worse, RAW) < break_even_bandwidth(sent, RAW)
        assert break_even_joules_per_bit(worse, RAW, watts=1.0) > break_even_joules_per_bit(sent, RAW, watts=1.0)


@given(st.floats(0.1, 10))
def test_the_break_even_energy_is_the_watts_over_the_break_even_bandwidth(watts):
    computed = break_even_joules_per_bit(CODED, RAW, watts=watts)
    assert computed == pytest.approx(watts / break_even_bandwidth(CODED, RAW))


def test_what_is_no_smaller_and_slower_pays_nowhere_and_what_is_as_good_everywhere():
    large = replace(RAW, encode_seconds=1.0)
    assert break_even_bandwidth(large, RAW) == 0
    assert break_even_joules_per_bit(large, RAW, watts=1.0) == math.inf
    assert break_even_bandwidth(RAW, RAW) == math.inf
    assert break_even_joules_per_bit(RAW, RAW, watts=1.0) == 0


def test_decoding_counts_in_time_and_not_in_the_senders_energy():
    sent = replace(CODED, decode_seconds=0.24)
    assert break_even_bandwidth(sent, RAW) == pytest.approx(50e6)
    assert break_even_joules_per_bit(sent, RAW, watts=1.0) == break_even_joules_per_bit(CODED, RAW, watts=1.0)


def test_a_device_scales_copies_by_its_memory():
    device = Device(name="a", copied_bytes_per_second=Range(1e9, 2e9), watts=None, source="by hand")
    assert device.seconds(Range(10, 20), 25_000_000) == Range(0.5, 2.0)


@given(st.floats(1, 1e3), st.floats(1, 10), st.integers(1, 10**8))
def test_a_devices_seconds_are_a_range_that_scales_with_the_vector(copies, factor, coordinates):
    for device in DEVICES:
        computed = device.seconds(Range(copies, copies * factor), coordinates)
        assert computed.low <= computed.middle * (1 + 1e-9) and computed.middle <= computed.high * (1 + 1e-9)
        twice = device.seconds(Range(copies, copies * factor), 2 * coordinates)
        assert twice.low == pytest.approx(2 * computed.low)


def test_everything_published_names_its_source():
    named = (*DEVICES, *RADIOS, *LINKS)
    assert len({each.name for each in named}) == len(named)
    assert all(each.source for each in named)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Range(0.0, 1.0), "0 < low"),
        (lambda: Range(2.0, 1.0), "low ≤ high"),
        (lambda: Range(1.0, math.inf), "finite"),
        (lambda: Delivery(payload_bytes=0, encode_seconds=1.0), "bytes"),
        (lambda: Delivery(payload_bytes=1, encode_seconds=-1.0), "times"),
        (lambda: Delivery(payload_bytes=1, encode_seconds=math.nan), "times"),
        (lambda: RAW.seconds(0.0), "bandwidth"),
        (lambda: RAW.joules(watts=-1.0, joules_per_bit=0.0), "watts = -1"),
        (lambda: break_even_joules_per_bit(CODED, RAW, watts=0.0), "watts = 0"),
        (lambda: break_even_bandwidth(RAW, CODED), "swap"),
        (lambda: DEVICES[0].seconds(Range(1, 1), 0), "coordinates = 0"),
    ],
)
def test_impossible_values_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()

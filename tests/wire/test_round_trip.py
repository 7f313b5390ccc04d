"""What a codec writes, it reads: exactly, on any layout and support."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dpcomp as dp
from dpcomp.core.public_context import PublicContext

ENTROPIES = pytest.mark.parametrize("entropy", [dp.FixedWidth(), dp.RangeCoder()], ids=str)


@dataclass(frozen=True)
class PerLayer:
    """An allocator that says one number of bits after the other, over and over."""

    bits: tuple[int, ...]

    def widths_and_steps(self, values, counts):
        return self.widths(len(counts)), self.steps(values, counts)

    def steps(self, values, counts):
        layers = np.split(np.abs(values.astype(np.float64)), np.cumsum(counts)[:-1])
        tops = [2 ** (bits - 1) - 1 for bits in self.widths(len(counts))]
        return tuple(float(layer.max(initial=0)) / top for layer, top in zip(layers, tops, strict=True))

    def widths(self, layers):
        return tuple(self.bits[number % len(self.bits)] for number in range(layers))


def widths(bits, layout):
    return (bits,) * len(layout.sizes) if isinstance(bits, int) else bits.widths(len(layout.sizes))


BITS = st.one_of(st.integers(2, 16), st.lists(st.integers(2, 16), min_size=1, max_size=3).map(tuple).map(PerLayer))


@st.composite
def layouts(draw):
    sizes = draw(st.lists(st.integers(0, 60), min_size=1, max_size=4).filter(any))
    return dp.Layout.of({str(number): (size,) for number, size in enumerate(sizes)})


@st.composite
def supports(draw, d):
    kind = draw(st.sampled_from(["everywhere", "seeded", "listed"]))
    if kind == "everywhere":
        return dp.Everywhere()
    if kind == "seeded":
        return dp.Seeded(draw(st.integers(0, 2**256 - 1)), draw(st.integers(0, d)))
    return dp.Listed(np.flatnonzero(draw(st.lists(st.booleans(), min_size=d, max_size=d))))


@st.composite
def messages(draw):
    """A layout, a support and values of it, of any size that a gradient has."""
    layout = draw(layouts())
    support = draw(supports(layout.size))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.standard_normal(support.count(layout.size)) * 10.0 ** draw(st.integers(-30, 30))
    if draw(st.booleans()):
        values[rng.random(len(values)) < 0.7] = 0
    return layout, support, values.astype(np.float32)


def round_trip(codec, values, support, layout):
    """The decoded values, after both ends were seen to agree on them bit for bit."""
    common = PublicContext(layout=layout, public_support=support if isinstance(support, dp.Seeded) else None)
    body, sent = codec.encode(values, support, common)
    found, where = codec.decode(body, common)
    assert found.dtype == sent.dtype == np.float32
    assert found.tobytes() == sent.tobytes()
    np.testing.assert_array_equal(where.indices(layout.size), support.indices(layout.size))
    return found


def layer_of_each(support, layout):
    return np.searchsorted(layout.edges, support.indices(layout.size), side="right") - 1


@ENTROPIES
@settings(max_examples=80, deadline=None)
@given(message=messages())
def test_unquantised_values_arrive_bit_for_bit(entropy, message):
    layout, support, values = message
    assert round_trip(dp.Codec(entropy=entropy), values, support, layout).tobytes() == values.tobytes()


@ENTROPIES
@settings(max_examples=120, deadline=None)
@given(message=messages(), bits=BITS)
def test_a_quantised_value_is_off_by_half_a_step_at_most(entropy, message, bits):
    layout, support, values = message
    quantize = dp.Uniform(bits)
    found = round_trip(dp.Codec(quantize=quantize, entropy=entropy), values, support, layout).astype(np.float64)
    layers = layer_of_each(support, layout)
    largest = np.zeros(len(layout.shapes))
    np.maximum.at(largest, layers, np.abs(values.astype(np.float64)))
    # The step that spans the layer, rounded up to 8 significant bits.
    steps = largest / [2 ** (width - 1) - 1 for width in widths(bits, layout)] * (1 + 2**-7)
    assert (np.abs(found - values) <= steps[layers] / 2 * (1 + 1e-6)).all()


@ENTROPIES
@settings(max_examples=80, deadline=None)
@given(message=messages(), bits=BITS, exponent=st.integers(-60, 60))
def test_whole_numbers_that_fit_the_levels_arrive_as_they_are(entropy, message, bits, exponent):
    layout, support, values = message
    quantize, layers = dp.Uniform(bits), layer_of_each(support, layout)
    tops = np.array([2 ** (width - 1) - 1 for width in widths(bits, layout)])[layers]
    whole = np.random.default_rng(len(values)).integers(-tops, tops, endpoint=True)
    whole[np.unique(layers, return_index=True)[1]] = tops[np.unique(layers, return_index=True)[1]]
    scaled = np.ldexp(whole.astype(np.float32), exponent)
    found = round_trip(dp.Codec(quantize=quantize, entropy=entropy), scaled, support, layout)
    np.testing.assert_array_equal(found, scaled)


@ENTROPIES
@pytest.mark.parametrize("bits", [None, 2, 8, 9, 16])
@pytest.mark.parametrize(
    ("d", "positions"),
    [
        (1, [0]),
        (2, [0, 1]),
        (300, range(300)),
        (300, []),
        (10**6, [0]),
        (10**6, [999_999]),
        (10**6, [0, 999_999]),
        (10**6, range(999_000, 10**6)),
        (10**6, [*range(1000), 999_999]),
    ],
    ids=str,
)
def test_listed_positions_arrive_wherever_they_lie(entropy, bits, d, positions):
    values = np.linspace(-1, 1, len(positions), dtype=np.float32)
    codec = dp.Codec(quantize=None if bits is None else dp.Uniform(bits), entropy=entropy)
    round_trip(codec, values, dp.Listed(np.array(positions, dtype=np.int64)), dp.Layout.of(d))


@ENTROPIES
def test_one_coordinate_of_a_very_long_vector_arrives(entropy):
    d = 2**28
    round_trip(dp.Codec(entropy=entropy), np.ones(1, np.float32), dp.Listed(np.array([d - 2])), dp.Layout.of(d))


@ENTROPIES
@pytest.mark.parametrize("bits", [2, 8, 12])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.0])
def test_a_constant_vector_arrives_as_it_is(entropy, bits, value):
    values = np.full(500, value, np.float32)
    found = round_trip(dp.Codec(quantize=dp.Uniform(bits), entropy=entropy), values, dp.Everywhere(), dp.Layout.of(500))
    np.testing.assert_allclose(found, values, rtol=2**-7)


@ENTROPIES
@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("largest", [3.4028235e38, 3.39e38, 1e-45, 1e-40])
def test_the_largest_and_smallest_floats_arrive_as_they_were_sent(entropy, bits, largest):
    values = np.array([largest, -largest, largest / 2, 0], np.float32)
    found = round_trip(dp.Codec(quantize=dp.Uniform(bits), entropy=entropy), values, dp.Everywhere(), dp.Layout.of(4))
    assert np.isfinite(found).all()


def test_int8_is_one_byte_a_coordinate():
    codec = dp.Codec(quantize=dp.Uniform(8), entropy=dp.FixedWidth())
    rng, bodies = np.random.default_rng(0), {}
    for d in (1, 100, 4321):
        values = rng.standard_normal(d).astype(np.float32)
        bodies[d], _ = codec.encode(values, dp.Everywhere(), PublicContext(layout=dp.Layout.of(d)))
    assert len(bodies[100]) - len(bodies[1]) == 99
    assert len(bodies[4321]) - len(bodies[100]) == 4221
    assert len(bodies[1]) == 1 + 1 + 2  # behind the kind of the support, and one step


@pytest.mark.parametrize(("bits", "level_bytes"), [(2, 25), (3, 38), (7, 88), (12, 150), (16, 200)])
def test_fixed_width_packs_levels_without_gaps(bits, level_bytes):
    codec = dp.Codec(quantize=dp.Uniform(bits), entropy=dp.FixedWidth())
    body, _ = codec.encode(np.ones(100, np.float32), dp.Everywhere(), PublicContext(layout=dp.Layout.of(100)))
    assert len(body) == 1 + 2 + level_bytes


def test_the_values_of_an_update_are_left_alone():
    values = np.array([0.1, -0.7, 0.3], np.float32)
    values.flags.writeable = False
    dp.Codec(quantize=dp.Uniform(2)).encode(values, dp.Everywhere(), PublicContext(layout=dp.Layout.of(3)))
    assert values.tolist() == [np.float32(0.1), np.float32(-0.7), np.float32(0.3)]


@pytest.mark.parametrize("bits", [1, 17, True, 4.0])
def test_a_width_that_no_quantiser_has_is_refused_at_birth(bits):
    for make in (dp.Uniform, dp.Equal):
        with pytest.raises((ValueError, TypeError), match="bits"):
            make(bits)

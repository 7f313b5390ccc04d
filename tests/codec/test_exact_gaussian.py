"""The layered quantiser: its error is Gaussian whatever the values are, and its messages are as short as their law."""

import hashlib
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from constriction import stream
from scipy import stats

import dpcomp as dp
from dpcomp.codec.quantize import laplace_code
from dpcomp.codec.quantize.laplace_code import (
    CHUNK_BITS,
    LENGTHS,
    UNARY,
    LaplaceReader,
    LaplaceWriter,
    Margins,
    scale_of,
)
from dpcomp.codec.quantize.layers import LayerStream, natural_logarithm
from dpcomp.core.public_context import NoiseShare

ALPHA = 1e-6
CNN = {
    **{"first": (1024,), "first bias": (16,), "second": (8192,), "second bias": (32,)},
    **{"hidden": (16384,), "hidden bias": (32,), "output": (320,), "output bias": (10,)},
}  # the sizes of a CNN with 26,010 parameters
CODEC = dp.Codec(quantize=dp.ExactGaussian(cohort=10))


def context_of(layout, stddev, key=1, clip_norm=1.0):
    share = NoiseShare(clip_norm=clip_norm, stddev=stddev, dither_key=key)
    return dp.PublicContext(layout=dp.Layout.of(layout), noise_share=share)


def update_like(layout, rng, scales=None):
    """A vector of norm 1 (a little less, for rounding) with Laplace values, of another scale in each layer."""
    layout = dp.Layout.of(layout)
    scales = rng.uniform(0.3, 3.0, len(layout.sizes)) if scales is None else scales
    vector = rng.laplace(size=layout.size) * layout.spread(np.asarray(scales))
    return (vector / np.linalg.norm(vector) * (1 - 1e-6)).astype(np.float32)


def coded(vector, context):
    return CODEC.encode(vector, dp.Everywhere(), context)


def ideal_bytes(vector, context):
    """−Σ log₂ P(level | dither, step) under a Laplace law with the mean magnitude of each layer as its scale."""
    share, layout = context.noise_share, context.layout
    drawn = LayerStream(share.dither_key).draw(layout.size)
    step = 2 * drawn.half * share.stddev
    level = np.rint(vector / step + drawn.dither)
    scale = layout.spread(np.array([np.abs(part).mean() for part in layout.split(vector)])).astype(np.float64)
    low, high = ((level - drawn.dither + side) * step / scale for side in (-0.5, 0.5))
    low, high = np.where(high < 0, -high, low), np.where(high < 0, -low, high)  # a Laplace law is symmetric
    inside = 1 - 0.5 * np.exp(np.minimum(low, 0)) - 0.5 * np.exp(-np.maximum(high, 0))
    apart = 0.5 * np.exp(-np.maximum(low, 0)) - 0.5 * np.exp(-np.maximum(high, 0))
    return -np.log2(np.where(low < 0, inside, apart)).sum() / 8


# The error.


@pytest.fixture(scope="module")
def million_errors():
    """A vector of a million values with zeros, small values and a few large ones; and its errors in units of σ."""
    rng, d, stddev = np.random.default_rng(0), 10**6, 0.01
    vector = rng.standard_t(3, d) * (rng.random(d) < 0.7)
    vector = (vector / np.linalg.norm(vector) * (1 - 1e-6)).astype(np.float32)
    vector[:4], vector[4:] = 0.4, vector[4:] * np.float32(0.55)
    _, decoded = coded(vector, context_of(d, stddev, key=2**200 + 7))
    return vector, (decoded - vector.astype(np.float64)) / stddev


def test_the_error_of_a_million_values_is_gaussian(million_errors):
    _, errors = million_errors
    assert stats.kstest(errors, "norm").pvalue > ALPHA
    assert abs(np.mean(errors**2) - 1) < 5 * math.sqrt(2 / 10**6)
    assert abs(np.mean(errors)) < 5e-3
    assert abs(np.mean(errors**4) - 3) < 5 * math.sqrt(96 / 10**6)


def test_the_error_does_not_depend_on_the_value(million_errors):
    vector, errors = million_errors
    zero, large = vector == 0, np.abs(vector) > np.quantile(np.abs(vector), 0.95)
    assert stats.ks_2samp(errors[zero], errors[large]).pvalue > ALPHA
    assert abs(np.corrcoef(vector, errors)[0, 1]) < 5e-3
    assert abs(np.corrcoef(np.abs(vector), errors**2)[0, 1]) < 5e-3
    assert abs(np.corrcoef(errors[1:], errors[:-1])[0, 1]) < 5e-3


@pytest.mark.parametrize("value", [0.0, 0.002, -0.0099])
def test_the_error_of_values_alike_is_gaussian(value):
    vector = np.full(10_000, value, np.float32)
    errors = coded(vector, context_of(10_000, 0.05, key=8))[1] - vector.astype(np.float64)
    assert stats.kstest(errors / 0.05, "norm").pvalue > 1e-4


def test_the_error_of_one_value_is_gaussian_over_keys():
    vector = np.array([0.9], np.float32)
    errors = [coded(vector, context_of(1, 0.05, key))[1][0] - vector[0] for key in range(80)]
    assert stats.kstest(np.array(errors) / 0.05, "norm").pvalue > 1e-4


def test_layers_have_the_law_of_chi_with_three_degrees_of_freedom_and_dither_is_uniform():
    half, dither = (getattr(LayerStream(5).draw(200_000), name) for name in ("half", "dither"))
    assert stats.kstest(half, stats.chi(3).cdf).pvalue > ALPHA
    assert stats.kstest(dither, stats.uniform(-0.5, 1).cdf).pvalue > ALPHA
    assert abs(np.corrcoef(half, dither)[0, 1]) < 0.012
    assert abs(np.corrcoef(half, np.abs(dither))[0, 1]) < 0.012
    assert np.abs(dither).max() < 0.5
    assert (np.mod(dither * 2**53, 2) == 1).all()


def test_the_logarithm_is_right_to_a_unit_in_the_last_place():
    rng = np.random.default_rng(0)
    numbers = np.concatenate([rng.random(10_000), 2.0 ** -np.arange(130.0), 1 - 2.0 ** -np.arange(2.0, 54), [1.0]])
    expected = np.log(numbers)
    assert np.all(np.abs(natural_logarithm(numbers) - expected) <= np.spacing(np.abs(expected)))


def test_the_bits_that_both_ends_draw_never_change():
    """They are computed alike on every machine, so a digest that another machine computed has to come out here."""
    drawn = LayerStream(2**255 + 3).draw(5000)
    digest = hashlib.blake2b(digest_size=8)
    for array in (drawn.dither, drawn.half, laplace_code.TAIL):
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    assert digest.hexdigest() == "e88ee0a7d4fc1707"
    body, _ = coded(update_like(CNN, np.random.default_rng(1)), context_of(CNN, 0.1, key=9))
    assert hashlib.blake2b(body, digest_size=8).hexdigest() == "82402a2d3f0ea4fa"


def test_values_lie_on_a_grid_that_float32_holds():
    for stddev in (1e-4, 0.1, 3.0):
        context = context_of(2000, stddev)
        vector = update_like(2000, np.random.default_rng(2))
        vector[:] *= np.float32(0.01)
        vector[0] = 0.9
        _, decoded = coded(vector, context)
        places = decoded.astype(np.float64) / context.noise_share.grid
        assert (places == np.rint(places)).all()
        assert context.noise_share.grid < 2e-5 * stddev + 4e-7


# The message.


@pytest.mark.parametrize(("cohort", "most"), [(10, 1.1), (100, 1.05), (1000, 1.03)])
def test_a_message_is_as_short_as_the_law_of_its_levels(cohort, most):
    rng, stddev = np.random.default_rng(cohort), 1 / math.sqrt(cohort)
    sizes, ideal = [], []
    for key in range(12):
        vector, context = update_like(CNN, rng), context_of(CNN, stddev, key)
        sizes.append(len(coded(vector, context)[0]) - 1)
        ideal.append(ideal_bytes(vector, context))
    assert np.sum(sizes) < most * np.sum(ideal)
    assert 4 * 26_010 / (np.mean(sizes) + 1 + 16) > {10: 1000, 100: 400, 1000: 150}[cohort]


@pytest.mark.parametrize("steps", [0.5, 0.1])
def test_a_message_of_large_levels_is_as_short_as_their_law(steps):
    """With many values beyond a step from 0, as with little noise; `steps` is σ in units of the root mean square."""
    vector, context = update_like(5000, np.random.default_rng(12)), context_of(5000, steps / math.sqrt(5000), 3)
    assert len(coded(vector, context)[0]) - 1 < 1.05 * ideal_bytes(vector, context)


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(300),
        np.eye(1, 300)[0],
        np.full(300, 1 / math.sqrt(300)),
        np.concatenate([[0.8], np.full(299, 1e-9)]),
        np.concatenate([np.zeros(200), np.full(100, -0.05)]),
        np.full(300, 1e-30),
    ],
    ids=["zeros", "a spike", "all alike", "a spike above dust", "a layer of zeros", "nearly nothing"],
)
@pytest.mark.parametrize("stddev", [10.0, 0.1, 1e-3, 1e-6])
def test_any_clipped_vector_is_decoded_with_its_error(vector, stddev):
    vector = (vector * (1 - 1e-6)).astype(np.float32)
    context = context_of({"a": (200,), "b": (3, 33), "c": (1,)}, stddev)
    body, sent = coded(vector, context)
    received, support = CODEC.decode(body, context)
    assert support == dp.Everywhere()
    np.testing.assert_array_equal(received, sent)
    assert stats.kstest((received - vector.astype(np.float64)) / stddev, "norm").pvalue > ALPHA


def test_one_layer_and_many_layers_of_one_value_are_decoded():
    for layout in (1, 70_000, {f"layer {number}": (1,) for number in range(300)}):
        vector = update_like(layout, np.random.default_rng(3), scales=np.ones(len(dp.Layout.of(layout).sizes)))
        body, sent = coded(vector, context_of(layout, 0.2))
        np.testing.assert_array_equal(CODEC.decode(body, context_of(layout, 0.2))[0], sent)


def test_another_process_with_another_hash_seed_decodes_the_same_bits():
    vector, context = update_like(CNN, np.random.default_rng(4)), context_of(CNN, 0.05, key=77)
    body, sent = coded(vector, context)
    program = (
        "import sys, hashlib, dpcomp as dp\n"
        "from tests.codec.test_exact_gaussian import CNN, CODEC, context_of\n"
        f"values, _ = CODEC.decode(bytes.fromhex('{body.hex()}'), context_of(CNN, 0.05, key=77))\n"
        "print(hashlib.blake2b(values.tobytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "4242", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == hashlib.blake2b(sent.tobytes()).hexdigest(), done.stderr


def test_another_key_decodes_nothing_of_the_vector():
    vector, context = update_like(500, np.random.default_rng(5)), context_of(500, 0.001, key=1)
    body, _ = coded(vector, context)
    with pytest.raises(dp.CorruptPayload):
        CODEC.decode(body, context_of(500, 0.001, key=2))


# What hostile bytes and hostile clients can do.


def test_hostile_bytes_are_refused_or_decode_to_what_a_clipped_vector_could_have_sent():
    rng, context = np.random.default_rng(6), context_of(2000, 0.05)
    body, _ = coded(update_like(2000, rng), context)
    refused, started = 0, time.process_time()
    for attempt in range(150):
        changed = bytearray(body)
        if attempt % 3 == 0:
            changed[rng.integers(1, len(body))] ^= 1 << rng.integers(8)
        elif attempt % 3 == 1:
            changed = changed[: rng.integers(0, len(body))]
        else:
            changed = changed[:1] + rng.bytes(int(rng.integers(0, 4000)))
        try:
            values, _ = CODEC.decode(bytes(changed), context)
        except dp.CorruptPayload:
            refused += 1
        else:
            assert np.abs(values).max() <= 1 + 20 * 0.05
    assert refused > 75  # the digest in the header finds damage; here, what no sender writes is meant
    assert time.process_time() - started < 60


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 5, b"\1"], ids=repr)
def test_bytes_after_the_last_level_are_refused(tail):
    context = context_of(2000, 0.05)
    body, _ = coded(update_like(2000, np.random.default_rng(7)), context)
    with pytest.raises(dp.CorruptPayload):
        CODEC.decode(body + tail, context)


def forged(vector, context):
    """The body of a client that quantises a vector without clipping it."""
    share, layout = context.noise_share, context.layout
    drawn = LayerStream(share.dither_key).draw(layout.size)
    step = 2 * drawn.half * share.stddev
    levels = np.rint(vector / step + drawn.dither).astype(np.int64)
    writer, numbers = LaplaceWriter(), np.full(len(layout.sizes), 8)
    writer.scales(numbers, layout.size)
    places = Margins.of(drawn.dither, step).places(scale_of(layout.spread(numbers), share.clip_norm))
    writer.levels(np.where(drawn.dither < 0, -levels, levels), places)
    return b"\0" + writer.finish()


def test_levels_that_no_clipped_vector_has_are_refused():
    context = context_of(50, 0.01)
    direction = update_like(50, np.random.default_rng(8)).astype(np.float64)
    for norm in (0.5, 1.0):
        CODEC.decode(forged(norm * direction, context), context)
    for norm in (1.2, 3.0, 1e4):
        with pytest.raises(dp.CorruptPayload, match="did not clip"):
            CODEC.decode(forged(norm * direction, context), context)


def test_a_level_of_more_bits_than_a_writer_writes_is_refused():
    writer = LaplaceWriter()
    writer.scales(np.array([0]), 1)
    with pytest.raises(ValueError, match="narrow"):
        writer.levels(np.array([2**50]), Margins(*np.ones((3, 1))).places(np.ones(1)))


@pytest.mark.parametrize("bits", [3, 44])
def test_a_level_beyond_its_own_number_of_bits_is_refused_as_damage(bits):
    """Chunks have 16 bits, so that a hostile client can write more of them than it says that there are."""
    coder = stream.queue.RangeEncoder()
    places = Margins(*np.ones((3, 1))).places(np.ones(1))
    unary = [places.up() / 2**24, *[places.further() / 2**24] * UNARY]
    for probability in unary:
        coder.encode(np.ones(1, np.int32), stream.model.Bernoulli(perfect=False), probability)
    coder.encode(np.array([bits], np.int32), stream.model.Uniform(LENGTHS))
    for _ in range(0, bits, CHUNK_BITS):
        coder.encode(np.array([2**CHUNK_BITS - 1], np.int32), stream.model.Uniform(1 << CHUNK_BITS))
    with pytest.raises(dp.CorruptPayload, match="more bits"):
        LaplaceReader(coder.get_compressed().astype(">u4").tobytes()).levels(places)


def test_magnitudes_of_any_size_are_read_as_they_were_written():
    levels = np.array([0, 1, -1, 2, 16, 17, 18, -19, 1000, -70_000, 2**40, -(2**33), 5, 0])
    places = Margins(*np.full((3, len(levels)), 0.5)).places(np.ones(len(levels)))
    writer = LaplaceWriter()
    writer.levels(levels, places)
    np.testing.assert_array_equal(LaplaceReader(writer.finish()).levels(places), levels)


def test_random_streams_end_with_the_byte_that_they_need():
    rng = np.random.default_rng(9)
    for _ in range(60):
        n = int(rng.integers(0, 200))
        places = Margins(*rng.exponential(4, (3, n))).places(np.ones(n))
        levels = (rng.random(n) < places.up() / 2**24) * np.ones(n, np.int64)
        writer = LaplaceWriter()
        writer.levels(levels, places)
        data = writer.finish()
        assert not data.endswith(b"\0")
        np.testing.assert_array_equal(LaplaceReader(data).levels(places), levels)


# What is refused.


def test_a_vector_beyond_the_clip_norm_is_refused():
    vector = update_like(100, np.random.default_rng(10)) * np.float32(1.0001)
    with pytest.raises(ValueError, match="clip norm"):
        coded(vector, context_of(100, 0.1))
    with pytest.raises(ValueError, match="clip norm"):
        coded(np.full(100, np.nan, np.float32), context_of(100, 0.1))


def test_it_is_a_part_of_a_pipeline():
    with pytest.raises(ValueError, match="pipeline"):
        coded(np.zeros(3, np.float32), dp.PublicContext(layout=dp.Layout.of(3)))


def test_its_codec_has_no_other_part():
    for parts in ({"sparsify": dp.TopK(0.1)}, {"entropy": dp.FixedWidth()}, {"predict": dp.LastBroadcast()}):
        with pytest.raises(ValueError, match="itself"):
            dp.Codec(quantize=dp.ExactGaussian(cohort=10), **parts)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"cohort": 1}, ValueError),
        ({"cohort": 2.0}, TypeError),
        ({"cohort": 2**24 + 1}, ValueError),
        ({"cohort": 5, "colluding": 5}, ValueError),
        ({"cohort": 5, "colluding": 0}, ValueError),
        ({"cohort": 5, "colluding": True}, TypeError),
    ],
)
def test_numbers_outside_their_range_are_refused(arguments, error):
    with pytest.raises(error):
        dp.ExactGaussian(**arguments)


def test_the_bits_of_a_body_add_up():
    context = context_of(2000, 0.05)
    body, _ = coded(update_like(2000, np.random.default_rng(11)), context)
    _, bits = CODEC.measure(body, context)
    assert bits.total == 8 * len(body)
    assert bits.value == 8 * (len(body) - 1)


def test_the_key_is_not_shown():
    share = context_of(3, 0.1, key=123456789).noise_share
    assert "123456789" not in repr(share)

"""What each quantiser promises: its bias or none, its error, its bytes, and one decoded vector at both ends."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats

import dpcomp as dp
from dpcomp.codec.quantize.rotated import _blocks
from dpcomp.core.public_context import PublicContext

ENTROPIES = pytest.mark.parametrize("entropy", [dp.FixedWidth(), dp.RangeCoder()], ids=str)
RANDOM = [dp.Uniform(bits, rounding=rounding) for bits in (2, 4, 8) for rounding in (dp.Stochastic(), dp.Dithered())]
ROTATED = [dp.Rotated(), dp.Rotated(3)]
ALL = [*RANDOM, dp.Uniform(2), dp.Uniform(8), dp.Float32(), dp.Float16(), dp.Sign(), dp.Ternary(), *ROTATED]
UNBIASED = [quantizer for quantizer in ALL if quantizer.unbiased]
BIASED = [quantizer for quantizer in ALL if not quantizer.unbiased]
LARGE = 1e38
K = 300  # for Rotated: a block of 256, and 44 of one
VECTORS = {
    "gaussian": np.random.default_rng(1).standard_normal(K),
    "heavy-tailed": np.random.default_rng(2).standard_t(2, K),
    "one-hot": np.eye(K)[17] * -3,
    "constant": np.full(K, 0.3),
}
SPIKE = np.where(np.arange(64) == 5, 1.0, 1e-3 * np.random.default_rng(3).standard_normal(64))


def decoded(quantizer, values, key=0, layers=None):
    """What the receiver finds, and the bytes before the levels."""
    common = PublicContext(layout=layers or dp.Layout.of(len(values)), dither_key=key)
    counts = np.diff(common.layout.edges)
    levels, side = quantizer.levels(values.astype(np.float32), counts, common)
    return quantizer.values(levels, side, counts, common), side


def errors(quantizer, values, draws, copies=1):
    """Decoded minus value, a row a draw: `copies` of them from each dither key, of as many copies side by side."""
    values = np.tile(values.astype(np.float32), copies)
    found = [decoded(quantizer, values, key)[0] - values.astype(np.float64) for key in range(draws // copies)]
    return np.stack(found).reshape(draws, -1)


def standard_error(samples):
    return samples.std(axis=0) / math.sqrt(len(samples))


def squared(values):
    return float(np.sum(np.square(values, dtype=np.float64)))


def normalised_error(quantizer, values, key=0):
    return squared(decoded(quantizer, values, key)[0] - values) / squared(values)


def assert_centred(found, values):
    """No coordinate is off, nor is the whole, in any direction in which an error would tend to lie."""
    rounding = 1e-6 * np.abs(values).max()
    never_drawn = 12 * np.abs(found).max() / len(found)  # a chance below 12 in all draws may not show at all
    assert (np.abs(found.mean(axis=0)) <= 5 * standard_error(found) + never_drawn + rounding).all()
    for direction in (values, np.sign(values), np.ones_like(values), np.resize([1, -1], len(values))):
        along = found @ (direction / np.linalg.norm(direction))
        assert abs(along.mean()) <= 5 * standard_error(along) + 20 * rounding


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("quantizer", UNBIASED, ids=str)
def test_what_says_it_is_unbiased_is(quantizer, name):
    # Twenty copies of a vector have its largest value, so its steps, and twenty independent draws of its dither.
    assert_centred(errors(quantizer, VECTORS[name], 2000, copies=20), VECTORS[name])


@pytest.mark.parametrize("quantizer", BIASED, ids=str)
def test_what_says_it_is_biased_is_biased_somewhere(quantizer):
    found = (errors(quantizer, values, 1000) for values in (VECTORS["gaussian"], SPIKE))
    assert any((np.abs(each.mean(axis=0)) > 10 * standard_error(each) + 1e-6).any() for each in found)


def test_every_quantiser_is_of_one_kind_or_the_other():
    assert len(UNBIASED) == 7
    assert len(BIASED) == 7


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("values", [VECTORS["gaussian"], VECTORS["constant"]], ids=["gaussian", "constant"])
def test_the_error_of_a_dithered_value_is_uniform_whatever_the_value_is(bits, values):
    values = np.resize(values, 30_000).astype(np.float32)
    found, side = decoded(dp.Uniform(bits, rounding=dp.Dithered()), values, key=11)
    step = np.array([np.frombuffer(side, "<u2")[0].astype(np.uint32) << 16]).view(np.float32)[0]
    error, place = (found.astype(np.float64) - values) / step, (values.astype(np.float64) / step) % 1
    assert np.abs(error).max() <= 0.5 + 1e-4
    for part in (error, error[place < 0.25], error[(place >= 0.25) & (place < 0.75)], error[np.abs(values) < 0.5]):
        assert len(part) == 0 or stats.kstest(part, stats.uniform(-0.5, 1).cdf).pvalue > 1e-3
    assert np.abs(error @ values) <= 5 * np.linalg.norm(values) / math.sqrt(12)


def test_an_undithered_error_is_not_uniform():
    values = np.resize(VECTORS["constant"], 30_000)
    for rounding in (dp.Nearest(), dp.Stochastic()):
        found, _ = decoded(dp.Uniform(8, rounding=rounding), np.append(values, 1.0), key=11)
        assert len(np.unique(found[:-1])) <= 2


@st.composite
def messages(draw):
    """A layout with empty layers, a support, and values of every size that a float32 has."""
    sizes = draw(st.lists(st.sampled_from([0, 0, 1, 2, 3, 7, 64, 65, 130, 300]), min_size=1, max_size=4).filter(any))
    layout = dp.Layout.of({str(number): (size,) for number, size in enumerate(sizes)})
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    support = draw(
        st.sampled_from(
            [
                dp.Everywhere(),
                dp.Listed(np.flatnonzero(rng.random(layout.size) < rng.random())),
                dp.Seeded(int(rng.integers(2**62)), int(rng.integers(layout.size, endpoint=True))),
            ]
        )
    )
    values = rng.standard_normal(support.count(layout.size)) * 10.0 ** draw(st.integers(-44, 37))
    for value in draw(st.lists(st.sampled_from([0.0, -0.0, 1e-45, -1e-40, LARGE, -LARGE, 1.0]), max_size=2)):
        values[rng.random(len(values)) < rng.random()] = value
    return layout, support, np.clip(values, -LARGE, LARGE).astype(np.float32), draw(st.integers(0, 2**256 - 1))


@ENTROPIES
@pytest.mark.parametrize("quantizer", ALL, ids=str)
@settings(max_examples=25)
@given(message=messages())
def test_both_ends_find_the_same_finite_values(quantizer, entropy, message):
    layout, support, values, key = message
    values.flags.writeable = False
    common = PublicContext(
        layout=layout, public_support=support if isinstance(support, dp.Seeded) else None, dither_key=key
    )
    codec = dp.Codec(quantize=quantizer, entropy=entropy)
    body, sent = codec.encode(values, support, common)
    found, where = codec.decode(body, common)
    assert found.dtype == sent.dtype == np.float32
    assert found.tobytes() == sent.tobytes()
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(where.indices(layout.size), support.indices(layout.size))
    assert codec.encode(values, support, common)[0] == body
    _, side = quantizer.levels(values, layout.counts(support), common)
    assert len(side) == quantizer.side_bytes(layout.counts(support), common)


@pytest.mark.parametrize("quantizer", [dp.Sign(), dp.Ternary(), dp.Rotated(), dp.Rotated(2)], ids=str)
@pytest.mark.parametrize("k", [1, 64, 4096])
def test_the_largest_float32_is_decoded_to_one(quantizer, k):
    largest = np.finfo(np.float32).max
    for values in (np.full(k, largest), np.resize([largest, -largest], k), np.eye(k)[0] * largest):
        assert np.isfinite(decoded(quantizer, values)[0]).all()


@pytest.mark.parametrize("quantizer", ALL, ids=str)
@pytest.mark.parametrize("k", [1, 2, 64, 200])
def test_zeros_arrive_as_zeros_but_for_the_dither(quantizer, k):
    assert not decoded(quantizer, np.zeros(k), key=4)[0].any()


BLOCK_BYTES = [(1, 4), (63, 4 * 63), (64, 2), (100, 2 + 4 * 36), (1000, 4 * 2 + 4 * 40), (2**16, 2), (2**17 + 2**15, 6)]


@pytest.mark.parametrize(("k", "side_bytes"), BLOCK_BYTES)
@pytest.mark.parametrize("bits", [1, 3])
def test_rotated_values_take_their_bits_and_two_bytes_a_block(k, side_bytes, bits):
    assert body_bytes(dp.Rotated(bits), [k]) == math.ceil(bits * k / 8) + side_bytes


def test_rotated_side_bytes_grow_with_the_blocks_alone():
    assert body_bytes(dp.Rotated(), [10, 0, 117, 1]) == 128 // 8 + 2


@pytest.mark.parametrize("sizes", [[1], [8], [9], [1000], [3, 0, 17], [2**16 + 1, 5]], ids=str)
def test_signs_take_a_bit_each_and_two_bytes_a_layer(sizes):
    assert body_bytes(dp.Sign(), sizes) == math.ceil(sum(sizes) / 8) + 2 * len(sizes)


@pytest.mark.parametrize("sizes", [[1], [9], [3, 0, 17]], ids=str)
def test_ternary_values_take_two_bits_each_at_most(sizes):
    assert body_bytes(dp.Ternary(), sizes) == math.ceil(sum(sizes) / 4) + 2 * len(sizes)


@ENTROPIES
def test_half_precision_takes_two_bytes_a_value(entropy):
    assert body_bytes(dp.Float16(), [2001], entropy) - body_bytes(dp.Float16(), [1001], entropy) == 2000


def body_bytes(quantizer, sizes, entropy=None):
    """Bytes behind the one that names the support."""
    layout = dp.Layout.of({str(number): (size,) for number, size in enumerate(sizes)})
    values = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    codec = dp.Codec(quantize=quantizer, entropy=entropy or dp.FixedWidth())
    return len(codec.encode(values, dp.Everywhere(), PublicContext(layout=layout))[0]) - 1


def test_entropy_coding_takes_a_ternary_gaussian_to_its_entropy():
    x = stats.norm.cdf(-0.6120)  # half of what lies beyond the thresholds of the best three levels (Max 1960)
    bits = -2 * x * math.log2(x) - (1 - 2 * x) * math.log2(1 - 2 * x)
    assert 8 * body_bytes(dp.Ternary(), [200_000], dp.RangeCoder()) / 200_000 == pytest.approx(bits, rel=0.01)


@pytest.mark.parametrize("name", VECTORS)
def test_the_error_of_signs_is_what_the_mean_magnitude_leaves(name):
    values = VECTORS[name].astype(np.float32)
    found, _ = decoded(dp.Sign(), values)
    mean = np.abs(values.astype(np.float64)).mean()
    assert np.abs(found) == pytest.approx(mean, rel=2**-8)
    least = squared(values) - K * mean**2
    # The scale on the wire is off by 2^-8 at most, and the least error grows by the square of that.
    assert least - 1e-6 <= squared(found - values) <= least + K * (mean * 2**-8) ** 2 + 1e-6


def test_every_layer_has_a_scale_of_its_own():
    layout = dp.Layout.of({"small": (40,), "none": (0,), "large": (60,)})
    values = np.concatenate([np.full(40, -0.25), np.full(60, 64.0)])
    for quantizer in (dp.Sign(), dp.Ternary()):
        np.testing.assert_array_equal(decoded(quantizer, values, layers=layout)[0], values)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([0.3, 1, 3]))
def test_no_other_three_levels_come_nearer_than_ternary(seed, n, power):
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(n) * np.abs(rng.standard_normal(n)) ** power).astype(np.float32)
    largest_first = np.sort(np.abs(values.astype(np.float64)))[::-1]
    least = squared(values) - max(np.cumsum(largest_first) ** 2 / np.arange(1, n + 1))
    assert squared(decoded(dp.Ternary(), values)[0] - values) <= least + 1e-4 * squared(values)


def test_known_errors_on_a_long_gaussian():
    values = np.random.default_rng(8).standard_normal(3 * 2**16).astype(np.float32)
    assert normalised_error(dp.Sign(), values) == pytest.approx(1 - 2 / math.pi, rel=0.02)
    assert normalised_error(dp.Ternary(), values) == pytest.approx(0.1902, rel=0.02)  # Max 1960, Table I
    assert normalised_error(dp.Rotated(), values) == pytest.approx(math.pi / 2 - 1, rel=0.02)


@pytest.mark.parametrize(("bits", "least"), [(2, 0.1175), (3, 0.03454), (4, 0.009497)])  # Max 1960, Table I
def test_rotated_levels_are_optimal_for_a_gaussian_and_err_across_the_vector_alone(bits, least):
    for values in (np.random.default_rng(8).standard_normal(2**16), np.random.default_rng(9).standard_t(2, 2**12)):
        found = decoded(dp.Rotated(bits), values.astype(np.float32))[0].astype(np.float64)
        assert squared(found - values) / squared(values) == pytest.approx(least / (1 - least), rel=0.05)
        assert found @ values / squared(values) == pytest.approx(1, abs=1 / 256)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_unbiased_rounding_errs_no_less_than_nearest(bits):
    values = VECTORS["heavy-tailed"]
    nearest = normalised_error(dp.Uniform(bits), values)
    for rounding in (dp.Stochastic(), dp.Dithered()):
        random = np.mean([normalised_error(dp.Uniform(bits, rounding=rounding), values, key) for key in range(50)])
        assert random >= nearest


@pytest.mark.parametrize("name", ["spike", *VECTORS])
def test_a_rotated_vector_loses_the_same_share_whatever_it_looks_like(name):
    values = np.zeros(2**14)
    values[:K] = VECTORS.get(name, np.resize(SPIKE, K) * (np.arange(K) < 64))
    shares = [normalised_error(dp.Rotated(), values, key) for key in range(5)]
    assert np.mean(shares) == pytest.approx(math.pi / 2 - 1, rel=0.03)


@pytest.mark.parametrize("n", [64, 128, 512, 2**16])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_along_the_vector_a_rotated_block_is_right_at_every_draw(n, scale):
    values = (np.random.default_rng(n).standard_t(3, n) * scale).astype(np.float32).astype(np.float64)
    for key in range(3):
        found = decoded(dp.Rotated(), values, key)[0].astype(np.float64)
        assert found @ values == pytest.approx(squared(values), rel=2.0**-8)  # by the rounded scale


def signs_of(n, key):
    """The public random signs D1 and D2 of a block, a row each."""
    ((_, signs),) = _blocks(n, key)
    return signs


def hadamard(blocks):
    """H of each row; as in the library, a row's result is transposed as a square matrix, which permutes H's rows."""
    n, side = blocks.shape[-1], math.isqrt(blocks.shape[-1])
    products = blocks @ linalg.hadamard(n).astype(np.float64)
    return products.reshape(-1, side, side).swapaxes(1, 2).reshape(-1, n)


def rotated(block, signs):
    """R x = H D2 H D1 x/n of a block, a row a draw of the signs (draws, 2, n)."""
    return hadamard(signs[:, 1] * hadamard(signs[:, 0] * block)) / signs.shape[-1]


def rotated_back(blocks, signs):
    """The transpose of R, likewise."""
    return signs[:, 0] * hadamard(signs[:, 1] * hadamard(blocks)) / signs.shape[-1]


def rotated_errors(block, signs):
    """Decoded minus value of a block, by the formula in the docstring of Rotated, a row a draw of the signs."""
    turned = rotated(block, signs)
    scales = squared(block) / np.abs(turned).sum(axis=1, keepdims=True)
    return scales * rotated_back(np.where(turned >= 0, 1.0, -1.0), signs) - block


@pytest.mark.parametrize("name", VECTORS)
def test_a_rotated_block_is_what_the_formula_says(name):
    values = VECTORS[name][:256].astype(np.float32)
    for key in range(40):
        signs = signs_of(256, key)[None]
        turned = rotated(values.astype(np.float64), signs)[0]
        common = PublicContext(layout=dp.Layout.of(256), dither_key=key)
        levels, side = dp.Rotated().levels(values, np.array([256]), common)
        clear = np.abs(turned) > 1e-5 * np.abs(turned).max()  # the sign of a zero is up to the rounding
        np.testing.assert_array_equal(levels[clear], turned[clear] > 0)
        scale = squared(values) / np.abs(turned).sum()
        found = dp.Rotated().values(levels, side, np.array([256]), common)
        back = rotated_back(2.0 * levels[None] - 1, signs)[0]
        rounded = (found @ back) / (back @ back)
        assert rounded == pytest.approx(scale, rel=2.0**-8)
        np.testing.assert_allclose(found, rounded * back, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [64, 256])
def test_the_signs_of_a_rotation_are_fair_and_independent(n):
    signs = np.stack([signs_of(n, key) for key in range(1000)])
    assert set(np.unique(signs)) == {-1.0, 1.0}
    flat = signs.reshape(len(signs), 2 * n)
    correlations = np.triu(flat.T @ flat, k=1)[np.triu_indices(2 * n, k=1)] / math.sqrt(len(signs))
    assert np.abs(flat.sum(axis=0)).max() < 5 * math.sqrt(len(signs))
    assert np.abs(correlations).max() < 6.5  # one of 10¹⁰ normal values is larger, and there are 10⁵ pairs
    assert correlations.std() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("name", VECTORS)
def test_across_the_vector_a_rotated_block_is_right_on_average_unless_few_values_dwarf_the_rest(name):
    values = VECTORS[name][:256]
    signs = np.random.default_rng(5).choice([-1.0, 1.0], (4000, 2, 256))
    assert_centred(rotated_errors(values, signs), values)


@pytest.mark.parametrize("equal", [1, 4])
def test_few_values_that_dwarf_the_rest_bias_a_rotated_block_by_as_much_as_is_said(equal):
    values = np.where(np.arange(64) < equal, 1 / math.sqrt(equal), np.roll(SPIKE, 59))
    found = rotated_errors(values, np.random.default_rng(5).choice([-1.0, 1.0], (4000, 2, 64)))
    bias = math.sqrt(squared(found.mean(axis=0)) - squared(standard_error(found)))
    assert 0.05 < bias <= 1.05 * 1.3 / math.sqrt(64)


def test_the_last_values_of_a_rotated_vector_are_exact():
    values = VECTORS["heavy-tailed"].astype(np.float32)
    np.testing.assert_array_equal(decoded(dp.Rotated(), values)[0][256:], values[256:])
    np.testing.assert_array_equal(decoded(dp.Rotated(), values[:63])[0], values[:63])


@pytest.mark.parametrize("m", [6, 7, 15, 16])
def test_rotating_back_makes_no_rounding_error(m):
    n, common = 2**m, PublicContext(layout=dp.Layout.of(2**m), dither_key=m)
    rng = np.random.default_rng(m)
    ramp = np.arange(n) & 1
    for levels in (np.ones(n), ramp, rng.integers(0, 2, n)):
        side = b"\x80\x3f"  # 1 as a bfloat16
        found = dp.Rotated().values(levels.astype(np.int32), side, np.array([n]), common)
        whole = found.astype(np.float64) * 2 ** (m // 2)
        np.testing.assert_array_equal(whole, np.rint(whole))
        assert sum(int(number) ** 2 for number in whole) == n * n * n  # orthogonal, in whole numbers


def test_rotations_differ_from_key_to_key():
    values = VECTORS["gaussian"][:256]
    assert len({decoded(dp.Rotated(), values, key)[0].tobytes() for key in (0, 1, 2**64, 2**255)}) == 4


@pytest.mark.parametrize("quantizer", ALL, ids=str)
def test_its_repr_makes_it_again(quantizer):
    again = eval(repr(quantizer), {name: getattr(dp, name) for name in dp.__all__})  # noqa: S307
    assert again == quantizer
    assert hash(again) == hash(quantizer)


@pytest.mark.parametrize("rounding", ["nearest", dp.Dithered, None, 0.5], ids=str)
def test_a_rounding_that_is_none_is_refused_at_birth(rounding):
    with pytest.raises(TypeError, match="rounding"):
        dp.Uniform(4, rounding=rounding)


@pytest.mark.parametrize("part", [dp.Sign, dp.Ternary, dp.Rotated, "sign", 8], ids=str)
def test_what_is_no_quantiser_is_refused_by_the_codec(part):
    with pytest.raises(TypeError, match="quantize"):
        dp.Codec(quantize=part)


@pytest.mark.parametrize(("bits", "error"), [(0, ValueError), (5, ValueError), (1.5, TypeError), (True, TypeError)])
def test_rotated_values_have_one_to_four_bits(bits, error):
    with pytest.raises(error, match="bits"):
        dp.Rotated(bits)


@pytest.mark.parametrize("kind", [dp.Sign, dp.Ternary])
def test_there_is_nothing_to_set(kind):
    with pytest.raises(TypeError):
        kind(2)


@pytest.mark.parametrize("scale", [-1.0, -0.0, math.inf, math.nan])
@pytest.mark.parametrize("quantizer", [dp.Sign(), dp.Ternary(), dp.Rotated()], ids=str)
def test_a_scale_that_no_sender_writes_is_refused(quantizer, scale):
    word = np.array([scale], "<f4").tobytes()
    side = word if isinstance(quantizer, dp.Rotated) else word[2:]
    with pytest.raises(dp.CorruptPayload, match="negative or not finite"):
        quantizer.values(np.ones(64, np.int32), side, np.array([64]), PublicContext(layout=dp.Layout.of(64)))
